"""Which iterate of a training to take: the best by validation, or a mean of several.

Training on networks walks up to the edge of stability and over it, so that the last iterate
need not be the best, and single ones scatter about the mean of their neighbours.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import jax

from optdyn.errors import UserError, require_positive_int

Optimizer = TypeVar("Optimizer")


@dataclasses.dataclass(frozen=True)
class BestIterate(Generic[Optimizer]):
    """The iterate of the lowest meta-objective, after ``meta_step`` meta-steps.

    ``scores``: each meta-step judged, and its meta-objective.
    """

    meta_step: int
    optimizer: Optimizer
    meta_objective: float
    scores: dict[int, float]


def best_iterate(
    iterates: Iterable[tuple[int, Optimizer]], judge: Callable[[Optimizer], float]
) -> BestIterate[Optimizer]:
    """The best of a training's ``iterates``, each (meta-steps done, optimizer).

    ``judge`` gives an optimizer's meta-objective on problems that are neither those trained on
    nor those of the final test, as of `make_validator`; what it chooses is better on them
    than on fresh ones. The first of equals is taken, and a score that is not a number is never
    the lowest. One iterate is held at a time beside the best.

    >>> best_iterate([(10, 3.0), (20, -1.0), (30, 2.0)], judge=abs).meta_step
    20

    Raises `UserError` where there is none whose meta-objective is finite.
    """
    best, scores = None, {}
    for meta_step, optimizer in iterates:
        scores[meta_step] = score = float(judge(optimizer))
        lowest = float("inf") if best is None else best.meta_objective
        if score < lowest:
            best = BestIterate(meta_step, optimizer, score, scores)
    if best is None:
        raise UserError(
            f"iterates: none of {len(scores)} has a finite meta-objective (give an earlier one)"
        )
    return best


def running_means(
    iterates: Iterable[tuple[int, Optimizer]], width: int
) -> Iterator[tuple[int, Optimizer]]:
    """At each iterate from the ``width``-th on, the mean meta-parameters of the last ``width``.

    The mean takes the meta-step of its last member. Pytrees are averaged leaf by leaf.

    >>> list(running_means([(1, 2.0), (2, 4.0), (3, 9.0)], width=2))
    [(2, 3.0), (3, 6.5)]

    Raises `UserError` for a bad width.
    """
    require_positive_int("width", width)
    window: deque[Optimizer] = deque(maxlen=width)
    for meta_step, optimizer in iterates:
        window.append(optimizer)
        if len(window) == width:
            yield meta_step, jax.tree.map(lambda *leaves: sum(leaves) / width, *window)
