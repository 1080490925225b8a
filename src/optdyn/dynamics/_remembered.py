"""What was found about the optimizers looked at last."""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import jax

from optdyn.precision import double_precision

if TYPE_CHECKING:
    from optdyn.dynamics._step_map import StepMap

T = TypeVar("T")
MOST = 32
"""So many are remembered: a scan over thousands of optimizers takes no more memory than that."""


class Remembered(Generic[T]):
    """The results of the last calls by key, as `functools.lru_cache` keeps them.

    Unlike there, the arguments (states, parameters, whole trainings) are not held.
    """

    def __init__(self) -> None:
        self._found: collections.OrderedDict[Hashable, T] = collections.OrderedDict()

    def recall(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` gave for an equal ``key``, or gives now."""
        if key in self._found:
            self._found.move_to_end(key)
            return self._found[key]
        made = self._found[key] = make()
        while len(self._found) > MOST:
            self._found.popitem(last=False)
        return made


def compiled(function: Callable[..., T]) -> Callable[..., T]:
    """``function(step, *arrays, **static)`` compiled for one kind of `StepMap`, in float64.

    The programs for the kinds looked at last are kept. Arguments by name are no part of what is
    traced: each of their values has its own program.
    """
    programs: Remembered[Callable[..., T]] = Remembered()

    def call(step: StepMap, *arrays: Any, **static: Hashable) -> T:
        key = (step.kind, *static.items())
        # A function of its own: what is compiled is forgotten with it.
        run = programs.recall(key, lambda: jax.jit(lambda *args: function(*args, **static)))
        with double_precision():
            return run(step, *arrays)

    return call
