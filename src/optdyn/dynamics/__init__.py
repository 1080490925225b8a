"""Any optax optimizer as a dynamical system: step map, fixed points, linearisation, modes."""

from optdyn.dynamics._closed_loop import ClosedLoop, closed_loop
from optdyn.dynamics._dissection import Dissection, dissect, natural_linearization
from optdyn.dynamics._eigenmodes import (
    Eigenmodes,
    eigenmodes,
    impulse_mismatch,
    timescale,
    truncate,
)
from optdyn.dynamics._fixed_points import FixedPoints, Status, find_fixed_points
from optdyn.dynamics._groups import CoupledLeaves, Group, ParamGroups, param_groups
from optdyn.dynamics._identification import Fit, Identification, identify
from optdyn.dynamics._lens import Lens
from optdyn.dynamics._linearization import Linearization, linearize
from optdyn.dynamics._operating_point import OperatingPoint, operating_point, settle
from optdyn.dynamics._place import Place
from optdyn.dynamics._reduction import linear_optimizer, reduce, transients
from optdyn.dynamics._responses import Responses, responses, reversal_threshold
from optdyn.dynamics._separability import componentwise, require_componentwise
from optdyn.dynamics._step_map import StepMap, step_map
from optdyn.dynamics._theory import (
    StabilityMap,
    closed_loop_radius,
    is_stable,
    optimal_gradient_descent,
    optimal_momentum,
    stability_map,
    stable_range,
)

__all__ = [
    "ClosedLoop",
    "CoupledLeaves",
    "Dissection",
    "Eigenmodes",
    "Fit",
    "FixedPoints",
    "Group",
    "Identification",
    "Lens",
    "Linearization",
    "OperatingPoint",
    "ParamGroups",
    "Place",
    "Responses",
    "StabilityMap",
    "Status",
    "StepMap",
    "closed_loop",
    "closed_loop_radius",
    "componentwise",
    "dissect",
    "eigenmodes",
    "find_fixed_points",
    "identify",
    "impulse_mismatch",
    "is_stable",
    "linear_optimizer",
    "linearize",
    "natural_linearization",
    "operating_point",
    "optimal_gradient_descent",
    "optimal_momentum",
    "param_groups",
    "reduce",
    "require_componentwise",
    "responses",
    "reversal_threshold",
    "settle",
    "stability_map",
    "stable_range",
    "step_map",
    "timescale",
    "transients",
    "truncate",
]
