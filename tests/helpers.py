"""Small objects that several tests share."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
import pytest
from cyclopts import ArgumentCollection

from optdyn.cli.main import make_app
from optdyn.distillation import Fitting
from optdyn.inner_loop import Objective
from optdyn.mechanisms import StageSearch, StageThresholds
from optdyn.meta_training import MetaTraining, meta_value_and_grad
from optdyn.optimizers import Architecture, ComponentwiseRNN, Encoding
from optdyn.runs import Card, Distillation, HeldOut, StageTraining
from optdyn.runs._store import write_bytes
from optdyn.search import SearchProtocol
from optdyn.study import Recipe
from optdyn.study._results import TaskResults
from optdyn.tasks import TASKS, LinearRegression, Rosenbrock, Task, TwoMoons

T = TypeVar("T")

FULL = os.environ.get("SUITE") == "full"
"""Whether the suite is asked for at length (``make test-full``), not a small part of it."""

SMALL_OPTIONS = {
    "linear_regression": {"n": 3},
    "two_moons": {"width": 3, "depth": 1, "points": 16},
    "digits": {"width": 3, "points": 20},
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rate:
    """The smallest meta-optimizer: any optax chain, ``made``, times a learned rate."""

    log_rate: jax.Array
    made: Callable[..., optax.GradientTransformation] = dataclasses.field(
        default=optax.identity, metadata={"static": True}
    )
    componentwise: bool = dataclasses.field(default=False, metadata={"static": True})

    def as_optax(self) -> optax.GradientTransformation:
        rate = jnp.exp(self.log_rate)
        times = optax.stateless(lambda updates, _: jax.tree.map(lambda x: -rate * x, updates))
        return optax.chain(self.made(), times)


def small_part(few: Iterable[T], every: Iterable[T]) -> list[T]:
    """Cases of a test: ``few``, each kind once, and ``every`` one in the full suite."""
    return list(every if FULL else few)


def small_task(name: str) -> Task:
    """The task called ``name``, at a size where a test takes milliseconds."""
    return TASKS[name](**SMALL_OPTIONS.get(name, {}))


def random_rnn(
    cell: str = "rnn", units: int = 4, seed: int = 0, scale: float = 0.05, **architecture: object
) -> ComponentwiseRNN:
    """A learned optimizer that moves: every meta-parameter random.

    Its cell is the one whose programs are compiled soonest.
    """
    encoding = architecture.pop("encoding", Encoding("asinh", gain=2.0))
    return _drawn(seed, scale, Architecture(cell, units, encoding, **architecture))


@functools.partial(jax.jit, static_argnums=2)  # in one program: each operation alone is one more
def _drawn(seed: int, scale: float, made: Architecture) -> ComponentwiseRNN:
    leaves, treedef = jax.tree.flatten(ComponentwiseRNN.init(jax.random.key(seed), made))
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [
        leaf + scale * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(treedef, noisy)


def compiled_gradient(optimizer: Any, task: Task, key: jax.Array, **how: Any) -> Any:
    """What `meta_value_and_grad` gives, from one program and not from one an operation."""
    return jax.jit(lambda given: meta_value_and_grad(given, task, key, **how))(optimizer)


def as_vector(tree: object) -> jax.Array:
    """All leaves of a pytree in one vector."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


TINY_RECIPE = Recipe(
    task=Rosenbrock(),
    architecture=Architecture("gru", 3, Encoding("asinh"), output_scale=0.1),
    protocol=MetaTraining(
        num_meta_steps=3, unroll_length=8, batch_size=2, normalization="first",
        max_cotangent_norm=1.0,
    ),
    baselines=("momentum", "rmsprop"),
    tuning=SearchProtocol(num_samples=40, num_problems=2, rescore_top=3, rescore_problems=2),
    test_problems=4,
    analysis_problems=2,
    explained_problems=2,
    distillation=Distillation(
        imitation_steps=1, meta_steps=1, batch_size=2, demonstrations=2, validation_problems=2,
        test_problems=4,
    ),
)  # fmt: skip
TINY_STAGE = StageTraining(
    architecture=Architecture("gru", 3, Encoding("asinh"), output_scale=0.2),
    protocol=TINY_RECIPE.protocol,
    plan=StageSearch(seeds=(4, 5), first=2, last=3, every=1),
    thresholds=StageThresholds(meta_objective=1e9),
)
TINY_RECIPES = (
    dataclasses.replace(
        TINY_RECIPE, task=LinearRegression(n=3), linear=Fitting(0, 1), stage=TINY_STAGE
    ),
    TINY_RECIPE,
    dataclasses.replace(TINY_RECIPE, task=TwoMoons(), shipped=True),
)
"""A study of seconds, in which two_moons stands for a task that does not ship."""
SMALL_MOONS = TwoMoons(width=3, depth=1, points=16), HeldOut(0, 2, Objective(num_steps=8))
"""A small network, and how optimizers are judged on it."""


def save_unrendered(figure: object, data: object, folder: Path, name: str) -> None:
    """Stands for `save_figure`, which takes half of a study's time."""
    write_bytes(folder / f"{name}.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>")


@contextlib.contextmanager
def empty_pictures() -> Iterator[None]:
    """Render empty figures of the right sizes in the block: a picture takes half a second.

    In the suite at full length they are the pictures themselves.
    """
    from matplotlib.figure import Figure  # scripts that take other helpers need no pictures

    from optdyn.figures import _save

    rendered = _save._rendered

    def empty(figure: Figure, kind: str, metadata: dict[str, Any]) -> bytes:
        return rendered(Figure(tuple(figure.get_size_inches())), kind, metadata)

    with pytest.MonkeyPatch.context() as patch:
        if not FULL:
            patch.setattr(_save, "_rendered", empty)
        yield


def command_options(command: str) -> ArgumentCollection:
    """The options and arguments of a command, as cyclopts sees them."""
    app = make_app()
    with app.app_stack([command]):
        found = app[command].assemble_argument_collection()
    return ArgumentCollection(option for option in found if not option.children)


def task_results(task: str = "rosenbrock", meta_steps: int = 5000, **parts: Any) -> TaskResults:
    """A task's results of which only ``parts`` are there, trained on 32 problems a meta-step."""
    card = Card(task, {}, Architecture(), MetaTraining(num_meta_steps=meta_steps), seed=0)
    fields: dict[str, Any] = dict.fromkeys((f.name for f in dataclasses.fields(TaskResults)), None)
    fields |= {"task": task, "card": card, "evaluations": {}, "faults": {}, "shipped": False}
    return TaskResults(**{**fields, **parts})


@contextlib.contextmanager
def compilations(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The names of the programs that are compiled in the block, known when it ends."""
    names: list[str] = []
    caplog.clear()
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        yield names
    said = [record.getMessage() for record in caplog.records]
    names += [line for line in said if line.startswith("Finished XLA compilation")]
