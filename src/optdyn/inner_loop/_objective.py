"""The meta-objective: one definition for training, tuning and evaluation."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax.numpy as jnp

from optdyn.errors import require_choice, require_positive_int

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

NORMALIZATIONS = ("none", "first")

EXPLODED_RATIO = 1e4
"""A problem has exploded when its loss exceeds this multiple of its first value."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """What an inner loop is judged by: its length and the average of its losses.

    ``num_steps``: T, the inner steps. ``normalization``: ``"none"``, or ``"first"`` to
    divide each problem's losses by its first one.

    Raises `UserError` for a bad step count or an unknown normalization.
    """

    num_steps: int = 200
    normalization: str = "none"

    def __post_init__(self) -> None:
        require_positive_int("num_steps", self.num_steps)
        require_choice("normalization", self.normalization, list(NORMALIZATIONS))

    def meta_loss(self, losses: Float[Array, "steps ..."]) -> Float[Array, "..."]:
        """`meta_loss` with this normalization."""
        return meta_loss(losses, self.normalization)


def meta_loss(
    losses: Float[Array, "steps ..."], normalization: str = "none"
) -> Float[Array, "..."]:
    """The inner loss averaged over the unroll (appendix C.2), one value a problem.

    ``losses`` [T + 1, ...] is `Trajectory.losses`; the mean is over the T values
    after each update, so that it judges updates alone. ``normalization="first"``
    divides by the loss at the start (as the authors' released code can).

    Raises `UserError` for another normalization.
    """
    require_choice("normalization", normalization, list(NORMALIZATIONS))
    mean = jnp.mean(losses[1:], axis=0)
    return mean / losses[0] if normalization == "first" else mean


def exploded(losses: Float[Array, "steps batch"]) -> Bool[Array, " batch"]:
    """Which problems blew up: a loss not finite or above `EXPLODED_RATIO` × its first value."""
    limit = EXPLODED_RATIO * jnp.abs(losses[0])
    return ~jnp.all(jnp.isfinite(losses) & (losses <= limit[None]), axis=0)
