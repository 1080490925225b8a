"""The meta-objective: one definition for training, tuning and evaluation."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from optdyn.errors import UserError, require_choice, require_positive_int

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

NORMALIZATIONS = ("none", "first")

EXPLODED_RATIO = 1e4
"""A problem has exploded when its loss exceeds this multiple of what is usual for it."""

SMALLEST_RATIO = 1e-6
"""A first loss below this part of the median one is too small to divide by."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """What an inner loop is judged by: its length and the average of its losses.

    Attributes:
        num_steps: inner steps for which an optimizer works on each problem
        normalization: none, or first: divide the losses of each problem by its first loss, which
            must be positive

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

    def exploded(self, losses: Float[Array, "steps batch"]) -> Bool[Array, " batch"]:
        """Which problems blew up: a loss not finite or above `EXPLODED_RATIO` × `usual_loss`."""
        limit = EXPLODED_RATIO * self.usual_loss(losses)
        return ~jnp.all(jnp.isfinite(losses) & (losses <= limit[None]), axis=0)

    def usual_loss(self, losses: Float[Array, "steps batch"]) -> Float[Array, " batch"]:
        """The magnitude of each problem's losses that is nothing unusual.

        That of the first one, which the objective may be measured in. Where it is not, 1 at
        the least, so that a loss may start at zero.
        """
        first = jnp.abs(losses[0])
        return jnp.maximum(first, 1.0) if self.normalization == "none" else first

    def require_first_losses(self, first: Float[np.ndarray, " problems"]) -> None:
        """Raise `UserError` where the losses ``first`` are to be divided by, and cannot be.

        A divisor that is negative reverses the order of optimizers; one that is zero, or
        tiny beside the others, makes one problem all that counts. Losses that are not finite
        are those of exploded problems.
        """
        if self.normalization == "none":
            return
        first = np.asarray(first, np.float64)
        finite = np.isfinite(first)
        least = SMALLEST_RATIO * np.median(first[finite]) if np.any(finite) else 0.0
        bad = finite & ((first <= 0.0) | (first < least))
        if np.any(bad):
            problem = int(np.argmax(bad))
            raise UserError(
                f"normalization: first is not allowed on this task (problem {problem} starts at "
                f"the loss {first[problem]:.3g}, and only clearly positive losses can be divided "
                'by; use "none", or add a constant to the loss)'
            )


def meta_loss(
    losses: Float[Array, "steps ..."], normalization: str = "none"
) -> Float[Array, "..."]:
    """The inner loss averaged over the unroll (appendix C.2), one value a problem.

    ``losses`` [T + 1, ...] is `Trajectory.losses`; the mean is over the T values
    after each update, so that it judges updates alone. ``normalization="first"``
    divides by the loss at the start (as the authors' released code can); NaN where that is
    not a positive number.

    Raises `UserError` for another normalization.
    """
    require_choice("normalization", normalization, list(NORMALIZATIONS))
    mean = jnp.mean(losses[1:], axis=0)
    if normalization == "none":
        return mean
    first = losses[0]
    usable = jnp.isfinite(first) & (first > 0)
    return jnp.where(usable, mean / jnp.where(usable, first, 1.0), jnp.nan)
