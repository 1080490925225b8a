"""Estimators of the meta-gradient at equal processor time: `python -m benchmarks.estimators`.

Meta-trains small GRUs with each estimator and judges them on the same validation problems after
the same seconds of processor time; compiling and judging are not counted. Writes
``benchmarks/results/estimators.json`` and a table in docs/method.md.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from optdyn.meta_training import make_meta_step, start_training
from optdyn.meta_training._trainer import INIT_STREAM
from optdyn.meta_training._unroll_options import GRADIENTS
from optdyn.optimizers._componentwise_rnn import ComponentwiseRNN
from optdyn.random_streams import stream
from optdyn.search._learning_rate import make_validator
from optdyn.study._recipes import recipe_for
from optdyn.tasks import make_task

PAGE = Path(__file__).parent.parent / "docs" / "method.md"
BEGIN, END = "<!-- begin estimators -->", "<!-- end estimators -->"
RESULTS = Path(__file__).parent / "results" / "estimators.json"
SEEDS = (0, 1, 2)
UNITS = 16


@dataclasses.dataclass(frozen=True)
class Comparison:
    """``seconds`` of processor time after which ``problems`` validation problems judge."""

    task: str
    options: dict[str, int]
    batch_size: int
    learning_rate: float
    seconds: tuple[float, ...]
    problems: int


COMPARISONS = (
    Comparison("rosenbrock", {}, 16, 1e-2, (1.5, 3.0, 6.0), 256),
    Comparison("digits", {"width": 8, "points": 64}, 4, 5e-3, (2.5, 5.0, 10.0), 16),
)


def main() -> None:
    rows = [row for each in COMPARISONS for name in GRADIENTS for row in measure(each, name)]
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    lines = "\n".join(table(rows))
    PAGE.write_text(f"{before}{BEGIN}\n{lines}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def measure(comparison: Comparison, gradient: str) -> Iterator[dict[str, object]]:
    """A row for each seed and time."""
    recipe = recipe_for(comparison.task, "laptop")
    task = make_task(comparison.task, **comparison.options)
    protocol = dataclasses.replace(
        recipe.protocol,
        batch_size=comparison.batch_size,
        learning_rate=comparison.learning_rate,
        gradient=gradient,
        segment=None,
    )
    architecture = dataclasses.replace(recipe.architecture, units=UNITS)
    meta_step = make_meta_step(task, protocol, seed=0)
    judge = make_validator(task, architecture, protocol, 0, comparison.problems)
    for seed in SEEDS:
        optimizer = ComponentwiseRNN.init(stream(seed, INIT_STREAM), architecture)
        state = start_training(optimizer, protocol)
        # The number of the first meta-step settles the problems: all seeds share a program.
        begin = seed * protocol.num_meta_steps
        state = dataclasses.replace(state, meta_step=jnp.int32(begin))
        jax.block_until_ready(meta_step(state))
        spent = 0.0
        for seconds in comparison.seconds:
            while spent < seconds:
                started = time.process_time()
                state, _ = jax.block_until_ready(meta_step(state))
                spent += time.process_time() - started
            yield {
                "task": comparison.task,
                "gradient": gradient,
                "seed": seed,
                "seconds": seconds,
                "meta_steps": int(state.meta_step) - begin,
                "meta_objective": judge(state.optimizer),
            }


def table(rows: list[dict[str, object]]) -> Iterator[str]:
    """Lines of Markdown: mean and range over the seeds, estimator by estimator."""
    for comparison in COMPARISONS:
        times = comparison.seconds
        name = comparison.task.replace("_", " ").capitalize()
        yield f"| {name} | meta-steps | " + " | ".join(f"{each:g} s" for each in times) + " |"
        yield "|---" * (len(times) + 2) + "|"
        for gradient in GRADIENTS:
            cells = []
            for seconds in times:
                chosen = [
                    row
                    for row in rows
                    if (row["task"], row["gradient"], row["seconds"])
                    == (comparison.task, gradient, seconds)
                ]
                found = np.array([row["meta_objective"] for row in chosen])
                cells.append(f"{found.mean():.3g} ({found.min():.3g} to {found.max():.3g})")
            steps = np.mean([row["meta_steps"] for row in chosen])
            yield f"| `{gradient}` | {steps:.0f} | " + " | ".join(cells) + " |"
        yield ""


if __name__ == "__main__":
    main()
