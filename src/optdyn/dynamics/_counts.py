"""The step counts at which a schedule is looked at."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from optdyn.precision import double_precision

if TYPE_CHECKING:
    from jaxtyping import Int

    from optdyn.dynamics._step_map import StepMap

LAST = 10**7
"""Schedules that change after so many steps are not seen to the end."""
EVERY = 33
"""All counts below this are looked at."""
FEWEST, MOST = 128, 2048
"""So many counts are looked at: the most where the training is small, fewer where it is large."""
NUMBERS = 2**24
# So many constants of the update, and sums of two of them, are taken for ends of phases.
CONSTANTS, IN_AN_ARRAY = 24, 64


def sampled_counts(step: StepMap) -> Int[np.ndarray, " K"]:
    """Counts up to 10⁷: all small ones, then evenly on a logarithmic axis.

    From 33 on, 2015 counts that are 0.63 % apart; for a large training fewer, at least 95, 14 %
    apart. And each whole number that the update itself names, sums of two of them, and their
    neighbours: there one phase of a schedule ends, however short it is.
    """
    trees = (step.state, step.around.params)
    size = sum(np.size(leaf) for tree in trees for leaf in jax.tree.leaves(tree))
    number = int(np.clip(NUMBERS // max(size, 1), FEWEST, MOST))
    far = np.geomspace(EVERY, LAST, number - EVERY).astype(np.int64)
    named = _named(step)
    near = [named + off for off in (-1, 0, 1)]
    counts = np.unique(np.concatenate([np.arange(EVERY), far, *near]))
    return counts[(counts >= 0) & (counts <= LAST)]


def _named(step: StepMap) -> Int[np.ndarray, " C"]:
    around = step.around
    with double_precision():
        try:
            traced = jax.make_jaxpr(step.update_all)(step.state, around.gradients, around.params)
        except Exception:  # the user's own code may raise anything; that is seen elsewhere
            return np.zeros(0, np.int64)
    found = {n for value in _constants(traced) for n in _whole_numbers(value)}
    few = sorted(found)[:CONSTANTS]
    sums = [a + b for a, b in itertools.combinations_with_replacement(few, 2)]
    return np.array([*few, *sums], np.int64)


def _constants(jaxpr: Any) -> Iterator[Any]:
    """The constants in a program and in the programs within it."""
    if isinstance(jaxpr, ClosedJaxpr):
        yield from jaxpr.consts
        jaxpr = jaxpr.jaxpr
    for equation in jaxpr.eqns:
        yield from (var.val for var in equation.invars if isinstance(var, Literal))
        for param in equation.params.values():
            for part in param if isinstance(param, tuple | list) else (param,):
                if isinstance(part, ClosedJaxpr | Jaxpr):
                    yield from _constants(part)


def _whole_numbers(value: Any) -> list[int]:
    if np.size(value) > IN_AN_ARRAY or not np.issubdtype(np.result_type(value), np.number):
        return []
    numbers = np.ravel(np.asarray(value))
    if np.iscomplexobj(numbers):
        return []
    numbers = numbers[np.isfinite(numbers)]
    return [int(n) for n in numbers if EVERY <= n <= LAST and n == int(n)]
