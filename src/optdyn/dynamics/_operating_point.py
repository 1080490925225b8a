"""Where an optimizer's state settles, and what it does there."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import numpy as np

from optdyn.dynamics._eigenmodes import Eigenmodes, eigenmodes
from optdyn.dynamics._fixed_points import FixedPoints, find_fixed_points
from optdyn.dynamics._linearization import linearize
from optdyn.dynamics._step_map import StepMap
from optdyn.errors import UserError
from optdyn.precision import double_precision

if TYPE_CHECKING:
    from jaxtyping import Float

NUM_STARTS = 16


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """The fixed point at convergence and the eigenmodes there.

    ``h0`` [N]: the initial state. ``candidates``: every candidate of the search;
    ``fixed_points``: the distinct ones that converged, the most often reached
    first, which is the one linearised.
    """

    h0: Float[np.ndarray, " N"]
    candidates: FixedPoints
    fixed_points: FixedPoints
    modes: Eigenmodes


def operating_point(
    step: StepMap, gradients: Float[np.ndarray, "components steps"]
) -> OperatingPoint:
    """Find where an optimizer settles after the gradient histories of some components.

    The search starts from states along those histories (early, halfway and
    last), follows the zero-gradient dynamics and polishes by Newton's method
    (eqs. 3–5).

    Raises `UserError` when no candidate converges, with the best residual.
    """
    starts = _visited(step, gradients)
    candidates = find_fixed_points(step, starts)
    distinct = candidates.unique()
    if len(distinct.status) == 0:
        raise UserError(
            "fixed points: no candidate converged (smallest residual "
            f"{np.nanmin(candidates.residual):.2g}; more iterations or other starts are needed)"
        )
    lin = linearize(step, h=distinct.h[0])
    return OperatingPoint(
        h0=step.h, candidates=candidates, fixed_points=distinct, modes=eigenmodes(lin)
    )


def _visited(
    step: StepMap, gradients: Float[np.ndarray, "components steps"]
) -> Float[np.ndarray, "M N"]:
    """States visited along the gradient histories: after a quarter, half and all of the steps."""
    with double_precision():
        paths = np.asarray(_paths(step, step.h, np.asarray(gradients, np.float64)))
    last = paths.shape[1] - 1
    states = paths[:, [last // 4, last // 2, last]].reshape(-1, paths.shape[2])
    states = states[np.all(np.isfinite(states), axis=1)]
    return np.concatenate([step.h[None], states])[:NUM_STARTS]


@jax.jit
def _paths(
    step: StepMap,
    h0: Float[jax.Array, " N"],
    gradients: Float[jax.Array, "components steps"],
) -> Float[jax.Array, "components steps N"]:
    def advance(
        h: Float[jax.Array, " N"], g: Float[jax.Array, ""]
    ) -> tuple[Float[jax.Array, " N"], Float[jax.Array, " N"]]:
        after = step(h, g)[0]
        return after, after

    return jax.vmap(lambda history: jax.lax.scan(advance, h0, history)[1])(gradients)
