"""What the cards of the optimizers that ship say: `python -m benchmarks.cards [NAME...]`.

Measures each stage of each optimizer (or of those named) and writes ``measured.json`` beside its
weights: the gradients that it meets on its task, what an update costs beside Adam's, and how it
does on its own task, for five times as many steps, and on the other tasks. Some minutes.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optdyn.inner_loop import Objective, ProblemSet, unroll
from optdyn.inner_loop._problem_set import EVALUATION_STREAM
from optdyn.optimizers import BASELINES, GradientRange
from optdyn.optimizers._gradient_range import largest_size
from optdyn.pretrained import PRETRAINED, load_pretrained, load_shipped, other_trainings
from optdyn.pretrained._card import MEASURED, Cost, Measured, Measurements, Tried
from optdyn.pretrained._shipped import FOLDER, shipped_card
from optdyn.random_streams import stream
from optdyn.runs._store import write_result
from optdyn.search import best
from optdyn.tasks import Digits, Problem, Task, make_task
from optdyn.tasks._description import task_from

PROBLEMS = 8
GRADIENT_PROBLEMS = 32
PARAMETERS = 100_000
STEPS = 200
LONGER = 5
REPEATS = 15
LARGEST_LEVEL = 1e30


def main(names: list[str]) -> None:
    """Measure the optimizers called ``names`` (default: all that ship)."""
    ships = {**PRETRAINED, **other_trainings()}
    for name in names or ships:
        found = {stage: measure(name, stage) for stage in ships[name]}
        sha = _sha256(name)
        result = Measurements(sha, f"python -m benchmarks.cards {name}", found)
        write_result(FOLDER / name / MEASURED, result)
        print(name, *found, flush=True)


def measure(name: str, stage: str) -> Measured:
    """Everything of one stage."""
    card = shipped_card(name)
    tx = pair(name, stage)
    own = task_from(card.task, **card.task_options)
    horizon = card.protocol.unroll_length
    return Measured(
        gradients_met(tx, own, horizon, GRADIENT_PROBLEMS),
        cost(tx, PARAMETERS, f"{os.cpu_count()} CPU cores ({platform.machine()})"),
        tuple(
            _tried(tx, task, described, steps)
            for task, described, steps in places(own, card.task, horizon)
        ),
    )


def places(own: Task, name: str, horizon: int) -> list[tuple[Task, str, int]]:
    """The tasks, their names and numbers of steps that an optimizer is tried on."""
    others: list[tuple[str, Task]] = [(n, make_task(n)) for n in PRETRAINED if n != name]
    batched = Digits(batch=64)
    return [
        (own, name, horizon),
        (own, name, LONGER * horizon),
        *((task, other, STEPS) for other, task in others),
        *([] if own == batched else [(batched, "digits", STEPS)]),
    ]


def pair(name: str, stage: str) -> optax.GradientTransformation:
    """The optax pair of a stage."""
    found = load_pretrained(name, stage)
    return found if isinstance(found, optax.GradientTransformation) else found.as_optax()


def _tried(tx: optax.GradientTransformation, task: Task, name: str, steps: int) -> Tried:
    tuned = best(load_shipped(name).tables["adam"]).hyperparameters
    adam = BASELINES["adam"].factory(**tuned)
    return tried(tx, adam, (name, getattr(task, "batch", None)), task, steps, PROBLEMS)


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


def _level(losses: np.ndarray) -> float:
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


def _stepper(tx: optax.GradientTransformation, params: Any, gradients: Any) -> Callable[[], float]:
    @functools.partial(jax.jit, donate_argnums=1)
    def update(gradients: Any, state: Any) -> tuple[Any, Any]:
        return tx.update(gradients, state, params)

    held = [tx.init(params)]

    def step() -> float:
        start = time.perf_counter()
        updates, held[0] = update(gradients, held[0])
        jax.block_until_ready(updates)
        return time.perf_counter() - start

    step()
    return step


def _sha256(name: str) -> str:
    return hashlib.sha256(Path(FOLDER / name / "final.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main(sys.argv[1:])
