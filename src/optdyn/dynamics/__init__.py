"""Any optax optimizer as a dynamical system: step map, fixed points, linearisation, modes."""

from optdyn.dynamics.eigenmodes import Eigenmodes, eigenmodes, impulse_mismatch, truncate
from optdyn.dynamics.fixed_points import FixedPoints, Status, find_fixed_points
from optdyn.dynamics.identification import Fit, Identification, identify
from optdyn.dynamics.linearization import Linearization, linearize
from optdyn.dynamics.reduction import linear_optimizer, reduce, transients
from optdyn.dynamics.responses import Responses, responses, reversal_threshold
from optdyn.dynamics.separability import componentwise, require_componentwise
from optdyn.dynamics.stability import StabilityMap, stability_map
from optdyn.dynamics.step_map import StepMap, settle, step_map
from optdyn.dynamics.theory import (
    closed_loop_radius,
    is_stable,
    optimal_gradient_descent,
    optimal_momentum,
    stable_range,
)

__all__ = [
    "Eigenmodes",
    "Fit",
    "FixedPoints",
    "Identification",
    "Linearization",
    "Responses",
    "StabilityMap",
    "Status",
    "StepMap",
    "closed_loop_radius",
    "componentwise",
    "eigenmodes",
    "find_fixed_points",
    "identify",
    "impulse_mismatch",
    "is_stable",
    "linear_optimizer",
    "linearize",
    "optimal_gradient_descent",
    "optimal_momentum",
    "reduce",
    "require_componentwise",
    "responses",
    "reversal_threshold",
    "settle",
    "stability_map",
    "stable_range",
    "step_map",
    "transients",
    "truncate",
]
