"""A learned optimizer on networks that it never met: `python -m benchmarks.held_out [DATA...]`.

Trains networks on minibatches of five data sets for 1000 steps with the learned optimizer
``digits/stochastic`` and with Adam, AdamW and schedule-free AdamW, whose learning rates are tuned
on each data set by `optdyn.search.random_search`. Five seeds (initial weights and batches), none
of them used in tuning. Writes ``benchmarks/results/held_out.json`` and the table in
docs/shipped.md.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

from benchmarks.table import write_section
from optdyn.inner_loop import Objective, ProblemSet, with_eval_params
from optdyn.inner_loop._problem_set import EVALUATION_STREAM
from optdyn.optimizers._baselines import Baseline
from optdyn.optimizers._search_space import Axis
from optdyn.pretrained import load_pretrained
from optdyn.search import SearchProtocol, best, random_search
from optdyn.tasks import Problem
from optdyn.tasks._mlp import Layers, apply_mlp, init_mlp

PAGE = Path(__file__).parent.parent / "docs" / "shipped.md"
RESULTS = Path(__file__).parent / "results" / "held_out.json"
OBJECTIVE = Objective(1000)
BATCH, SEEDS = 64, 5
LEARNED = ("digits/stochastic", "digits")
TUNING = SearchProtocol(
    OBJECTIVE, num_samples=13, num_problems=2, rescore_top=3, rescore_problems=4
)
LOADERS = {
    "digits": datasets.load_digits,
    "two moons": functools.partial(datasets.make_moons, 1024, noise=0.1, random_state=0),
    "breast cancer": datasets.load_breast_cancer,
    "wine": datasets.load_wine,
    "diabetes": datasets.load_diabetes,
}
HIDDEN = {"digits": (24, 24, 24), "two moons": (16, 16)}
"""Hidden layers, where they are not one of 16 units."""
REGRESSION = ("diabetes",)


@functools.cache
def data(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features [points, n] and targets, each feature (and a real target) of mean 0, variance 1."""
    loader = LOADERS[name]
    features, targets = loader() if name == "two moons" else loader(return_X_y=True)
    spread = features.std(axis=0)
    features = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    if name in REGRESSION:
        return features.astype(np.float32), standard(targets).astype(np.float32)
    return features.astype(np.float32), targets.astype(np.int32)


def standard(targets: np.ndarray) -> np.ndarray:
    return (targets - targets.mean()) / targets.std()


@dataclasses.dataclass(frozen=True)
class SmallNetwork:
    """A tanh network on minibatches of a data set: cross-entropy, or half the squared error."""

    name: str
    batch: int = BATCH

    def sample(self, key: jax.Array) -> Problem:
        start, batches = jax.random.split(key)
        features, targets = data(self.name)
        outputs = 1 if self.name in REGRESSION else int(targets.max()) + 1
        sizes = (features.shape[1], *HIDDEN.get(self.name, (16,)), outputs)
        return Problem(init_mlp(start, sizes), self.batch_loss, key=batches, full_loss_fn=self.loss)

    def loss(self, layers: Layers) -> jax.Array:
        features, targets = data(self.name)
        return self._loss(layers, jnp.asarray(features), jnp.asarray(targets))

    def batch_loss(self, layers: Layers, key: jax.Array) -> jax.Array:
        features, targets = map(jnp.asarray, data(self.name))
        rows = jax.random.randint(key, (self.batch,), 0, features.shape[0])
        return self._loss(layers, features[rows], targets[rows])

    def _loss(self, layers: Layers, features: jax.Array, targets: jax.Array) -> jax.Array:
        outputs = apply_mlp(layers, features)
        if self.name in REGRESSION:
            return 0.5 * jnp.mean((outputs[:, 0] - targets) ** 2)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, targets))


def schedule_free(alpha: Any) -> optax.GradientTransformation:
    """Schedule-free AdamW (Defazio et al. 2024), judged at its average."""
    tx = optax.contrib.schedule_free_adamw(alpha)
    return with_eval_params(tx, optax.contrib.schedule_free_eval_params)


RATES = (Axis("alpha", "log", 1e-4, 1.0, 13),)
"""Three learning rates a decade; a best one at the end of the range widens it."""
RIVALS = (
    Baseline("Adam", lambda alpha: optax.adam(alpha), RATES),
    Baseline("AdamW", lambda alpha: optax.adamw(alpha, weight_decay=1e-2), RATES),
    Baseline("schedule-free AdamW", schedule_free, RATES),
)


def main(names: list[str]) -> None:
    """Measure the data sets called ``names`` (default: all); the others' results stay."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for name in names or LOADERS:
        rows = [row for row in rows if row["data"] != name] + list(measure(name))
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
        write_section(PAGE, "held out", "\n".join(table(rows)))


def measure(name: str) -> Iterator[dict[str, Any]]:
    """A row for each optimizer on the data set called ``name``."""
    task = SmallNetwork(name)
    problems = ProblemSet(task, 0, SEEDS, OBJECTIVE, EVALUATION_STREAM)

    def row(optimizer: str, make: Callable[[], Any], **more: Any) -> dict[str, Any]:
        losses = problems.curves(make)()
        found = {
            "data": name,
            "optimizer": optimizer,
            "mean": [float(each) for each in problems.scores(losses)],
            "end": [float(each) for each in losses[:, -1]],
            **more,
        }
        print(json.dumps(found), flush=True)
        return found

    for learned in LEARNED:
        yield row(learned, load_pretrained(learned).as_optax)
    for rival in RIVALS:
        table = random_search(rival, task, seed=0, protocol=TUNING)
        chosen = best(table).hyperparameters
        yield row(rival.name, functools.partial(rival.factory, **chosen), tuned=chosen)


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown: the mean over the steps, and the loss at the end, over the seeds."""
    columns = [*LEARNED, *(rival.name for rival in RIVALS)]
    found = {(row["data"], row["optimizer"]): row for row in rows}
    for kind, title in (("mean", "Mean over 1000 steps"), ("end", "Loss at the end")):
        yield f"| {title} | " + " | ".join(shown(column) for column in columns) + " |"
        yield "|---" * (len(columns) + 1) + "|"
        for name in (name for name in LOADERS if any(name == data for data, _ in found)):
            cells = [np.array(found[name, column][kind]) for column in columns]
            least = min(range(len(cells)), key=lambda i: cells[i].mean())
            texts = [spread(each, bold=i == least) for i, each in enumerate(cells)]
            yield f"| {name} | " + " | ".join(texts) + " |"
        yield ""


def shown(column: str) -> str:
    return f"`{column}`" if column in LEARNED else f"tuned {column}"


def spread(values: np.ndarray, bold: bool) -> str:
    """Mean ± standard error; "diverges" where a seed's loss is not finite."""
    if not np.all(np.isfinite(values)):
        return "diverges"
    text = f"{values.mean():.3g} ± {values.std(ddof=1) / np.sqrt(values.size):.1g}"
    return f"**{text}**" if bold else text


if __name__ == "__main__":
    main(sys.argv[1:])
