"""What was measured of an optimizer that ships: gradients, cost, and where it fails."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optdyn.inner_loop import Objective, ProblemSet, unroll
from optdyn.inner_loop._problem_set import EVALUATION_STREAM
from optdyn.optimizers import GradientRange
from optdyn.optimizers._gradient_range import largest_size
from optdyn.random_streams import stream

if TYPE_CHECKING:
    from jaxtyping import Float, PyTree

    from optdyn.tasks import Problem, Task

MEASURED = "measured.json"
"""The file beside the weights that holds `Measurements`."""
ADAM_NUMBERS = 2
REPEATS = 15


@dataclasses.dataclass(frozen=True)
class Cost:
    """What an update costs: ``time`` of Adam's, for a model of ``parameters`` parameters.

    ``numbers``: how many float32 numbers of state each parameter has (Adam: 2). ``machine``:
    where it was timed.
    """

    time: float
    numbers: float
    parameters: int
    machine: str


@dataclasses.dataclass(frozen=True)
class Tried:
    """How an optimizer does on ``problems`` unseen problems of a task, in ``steps`` steps.

    ``batch``: the examples in a gradient (None: all). ``first``, ``last``: the median loss
    before and after. ``mean``: the median over problems of the mean loss over the steps, which
    is what optimizers are trained for. ``adam``: the same of Adam, with the hyperparameters
    that the shipped search found for the task. ``worse``: the problems whose loss ends above
    where it began, or is not finite.
    """

    task: str
    batch: int | None
    steps: int
    problems: int
    first: float
    last: float
    mean: float
    adam: float
    worse: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """Everything that was measured of one stage. The first of ``tried`` is as in training."""

    gradients: GradientRange
    cost: Cost
    tried: tuple[Tried, ...]


@dataclasses.dataclass(frozen=True)
class Measurements:
    """``measured.json``: ``stages`` by name, for the weights of SHA-256 ``weights``.

    ``command``: what made the file.
    """

    weights: str
    command: str
    stages: dict[str, Measured]


def gradients_met(
    tx: optax.GradientTransformation, task: Task, steps: int, problems: int
) -> GradientRange:
    """The sizes max|g| that ``tx`` meets on its way, over unseen problems of ``task``."""
    batch = _problems(task, steps, problems).problems

    @jax.jit
    def sizes(batch: Problem) -> jax.Array:
        def one(problem: Problem) -> jax.Array:
            gradients = unroll(tx, problem, steps, record=("gradients",)).record["gradients"]
            return jax.vmap(largest_size)(gradients)

        return jax.lax.map(one, batch)

    found = np.asarray(sizes(batch))
    found = found[np.isfinite(found) & (found > 0)]
    return GradientRange(float(found.min()), float(found.max()))


def tried(
    tx: optax.GradientTransformation,
    adam: optax.GradientTransformation,
    described: tuple[str, int | None],
    task: Task,
    steps: int,
    problems: int,
) -> Tried:
    """Run ``tx`` and ``adam`` on the same unseen problems of ``task``.

    ``described``: the task's name, and how many examples are in a gradient.
    """
    some = _problems(task, steps, problems)
    ours, theirs = (some.curves(lambda tx=each: tx, at_once=1)() for each in (tx, adam))
    first, last = ours[:, 0], ours[:, -1]
    return Tried(
        task=described[0],
        batch=described[1],
        steps=steps,
        problems=problems,
        first=float(np.median(first)),
        last=_level(last),
        mean=_level(some.scores(ours)),
        adam=_level(some.scores(theirs)),
        worse=int(np.sum(~(last <= first))),
    )


LARGEST_LEVEL = 1e30


def _level(losses: Float[np.ndarray, " problems"]) -> float:
    """The median in a form that can be stored: one that is not finite counts as the largest."""
    finite = np.nan_to_num(losses, nan=LARGEST_LEVEL, posinf=LARGEST_LEVEL)
    return float(np.minimum(np.median(finite), LARGEST_LEVEL))


def _problems(task: Task, steps: int, number: int) -> ProblemSet:
    return ProblemSet(
        task, seed=0, number=number, objective=Objective(steps), stream=EVALUATION_STREAM
    )


def cost(tx: optax.GradientTransformation, parameters: int, machine: str) -> Cost:
    """Time updates of ``tx`` and of Adam, in turns, on one leaf of ``parameters`` parameters."""
    adam = optax.adam(1e-3)
    params = jnp.zeros(parameters)
    gradients = 1e-2 * jax.random.normal(stream(0, "gradients to time"), (parameters,))
    steps = [_stepper(each, params, gradients) for each in (tx, adam)]
    seconds = np.array([[step() for step in steps] for _ in range(REPEATS)])
    ours, theirs = np.median(seconds, axis=0)
    stored = sum(np.size(leaf) for leaf in jax.tree.leaves(tx.init(params)))
    return Cost(float(ours / theirs), round(stored / parameters, 3), parameters, machine)


def _stepper(
    tx: optax.GradientTransformation, params: PyTree, gradients: PyTree
) -> Callable[[], float]:
    @functools.partial(jax.jit, donate_argnums=1)
    def update(gradients: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        return tx.update(gradients, state, params)

    held = [tx.init(params)]

    def step() -> float:
        start = time.perf_counter()
        updates, held[0] = update(gradients, held[0])
        jax.block_until_ready(updates)
        return time.perf_counter() - start

    step()
    return step
