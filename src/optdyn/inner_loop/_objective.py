"""The meta-objective: one function for training, tuning and evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from optdyn.errors import require_choice

if TYPE_CHECKING:
    from jaxtyping import Array, Float

NORMALIZATIONS = ("none", "first")


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
