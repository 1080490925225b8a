"""Whether a learned optimizer meets gradients of the sizes that it was trained on."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from optdyn.errors import require_number

SLACK = 3.0
"""Sizes this factor outside the range are still taken for familiar."""


class GradientRangeWarning(UserWarning):
    """The gradients are larger or smaller than those that the optimizer was trained on."""


@dataclasses.dataclass(frozen=True)
class GradientRange:
    """The sizes max|g| (over all parameters, at one step) that an optimizer was trained on.

    ``smallest`` and ``largest``: of max|g| over problems and steps. Only the first step of a
    training is compared with ``smallest``, since gradients that shrink later are no fault.

    Raises `UserError` for bounds that are not positive and finite.
    """

    smallest: float
    largest: float

    def __post_init__(self) -> None:
        for name in ("smallest", "largest"):
            require_number(name, getattr(self, name))

    def outside(self, size: Float[Array, ""], first: Bool[Array, ""] | bool) -> Bool[Array, ""]:
        """Whether ``size`` = max|g| leaves the range; ``first``: at a training's first step."""
        too_small = first & (size > 0.0) & (size < self.smallest / SLACK)
        return ~(size <= self.largest * SLACK) | too_small

    def warn(self, size: Any) -> None:
        """Issue a `GradientRangeWarning` about ``size`` = max|g|."""
        finite = math.isfinite(size)
        found = f"reach {float(size):.2g}" if finite else "are not finite"
        advice = "scale the loss by a constant" if finite else "the training has diverged"
        warnings.warn(
            f"gradients {found}; the largest one of a step was {self.smallest:.2g} to "
            f"{self.largest:.2g} where this optimizer was trained ({advice}; see its card)",
            GradientRangeWarning,
            stacklevel=4,
        )

    def watch(self) -> optax.GradientTransformation:
        """An optax pair that passes gradients on, and warns once, also under ``jax.jit``.

        The warning comes from `jax.debug.callback`, which runs where the gradients leave the
        range and not otherwise. (A compiled step with such a callback is compiled anew in each
        process: JAX does not store it.)

        >>> tx = optax.chain(GradientRange(1e-3, 10.0).watch(), optax.sgd(0.1))
        """

        def init(params: PyTree) -> Watched:
            del params
            return Watched(first=jnp.asarray(True), warned=jnp.asarray(False))

        def update(
            gradients: PyTree, state: Watched, params: PyTree | None = None
        ) -> tuple[PyTree, Watched]:
            del params
            size = largest_size(gradients)
            now = self.outside(size, state.first) & ~state.warned
            jax.lax.cond(now, lambda: jax.debug.callback(self.warn, size), lambda: None)
            return gradients, Watched(jnp.asarray(False), state.warned | now)

        return optax.GradientTransformation(init, update)


class Watched(NamedTuple):
    """Whether no step was made yet, and whether the warning was given."""

    first: Array
    warned: Array


@dataclasses.dataclass
class OneWarning:
    """Compares concrete gradients with a range, and warns at most once.

    Gradients that are being traced have no values: under ``jax.jit`` nothing is compared.
    """

    range: GradientRange
    first: bool = True
    warned: bool = False

    def __call__(self, leaves: Sequence[Any]) -> None:
        """Look at the gradients of one step."""
        if self.warned or any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return
        size = largest_size(leaves)
        if isinstance(size, jax.core.Tracer):  # constants inside a function that is being traced
            return
        if self.range.outside(size, self.first):
            self.warned = True
            self.range.warn(size)
        self.first = False


def largest_size(gradients: PyTree) -> Float[Array, ""]:
    """The largest |g| of all components; 0 where there are none."""
    leaves = [jnp.max(jnp.abs(g)) for g in jax.tree.leaves(gradients) if jnp.size(g)]
    return jnp.max(jnp.stack([leaf.astype(jnp.float32) for leaf in leaves] or [jnp.zeros(())]))
