"""The closed loop of an optimizer and a quadratic, over all curvatures."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from optdyn.dynamics import _words as words
from optdyn.dynamics._eigenmodes import Eigenmodes, require_linear
from optdyn.dynamics._linearization import Linearization, linearize
from optdyn.dynamics._theory import (
    closed_loop_radius,
    learning_rate,
    optimal_gradient_descent,
    optimal_momentum,
    stable_range,
)
from optdyn.errors import UserError, require_number, require_positive_int
from optdyn.in_words import InWords

if TYPE_CHECKING:
    from typing import Unpack

    from jaxtyping import Float

    from optdyn.dynamics._place import Place
    from optdyn.dynamics._step_map import Optimizer, StepMap

DECADES_BELOW_EDGE = 5.0
DECADES_ABOVE_EDGE = 0.5


@dataclasses.dataclass(frozen=True)
class StabilityMap(InWords):
    """Spectral radius ρ of optimizer + quadratic against the curvature λ.

    ``curvature`` [K], rising, evenly on a logarithmic axis; ``radius`` [K]: ρ(λ), the
    factor by which the slowest part of the error shrinks a step; ``edge``: stable on
    (0, edge), 0 for never, inf for always. ``fastest_curvature`` and ``fastest_radius``:
    where on the grid the radius is smallest.

    ``low``, ``high``: a range of curvatures, and ``rate``, the largest radius on it, beside
    what theory says is best there: ``momentum_rate`` (√κ−1)/(√κ+1) with κ = high/low,
    which no linear optimizer, whatever its memory, goes below (Nesterov 2004, section 2.1),
    and ``descent_rate`` (κ−1)/(κ+1), gradient descent's own limit. ``range_given``:
    the range is that of the spectrum asked for; otherwise the one of the given
    condition number on which this optimizer does best. ``spectrum``: the given
    curvatures, or none.
    """

    curvature: Float[np.ndarray, " K"]
    radius: Float[np.ndarray, " K"]
    edge: float
    fastest_curvature: float
    fastest_radius: float
    low: float
    high: float
    rate: float
    momentum_rate: float
    descent_rate: float
    range_given: bool
    spectrum: Float[np.ndarray, " S"]

    def verdict(self) -> list[str]:
        """Where it is stable, and how fast."""
        return words.stability_in_words(self)


def stability_map(
    system: Linearization | Eigenmodes | Optimizer | StepMap,
    *,
    spectrum: Float[np.ndarray, " S"] | None = None,
    condition_number: float = 100.0,
    points: int = 400,
    **place: Unpack[Place],
) -> StabilityMap:
    """Where the linear ``system`` is stable, and how fast, beside the theoretical optimum.

    Of an optimizer: what `linearize` makes of it, at the `Place` given.

    ``spectrum``: the curvatures of a task (eigenvalues of Hessians), above 0; the
    optimizer is judged on the range they span. Without one it is judged on the range
    [λ, condition_number·λ] where its largest radius is smallest. The grid of ``points``
    curvatures spans the spectrum and reaches from five decades below the stability
    edge to half a decade above it.

    ``place``: which component of which training, see `Place`.

    >>> import optax
    >>> from optdyn.dynamics import linearize
    >>> round(stability_map(linearize(optax.sgd(0.1))).edge, 5)
    20.0

    Raises `UserError` for a spectrum that is empty or not positive, a condition number
    below 1 and fewer than 16 points.
    """
    require_positive_int("points", points, minimum=16)
    system = _linear(system, place)
    require_number("condition_number", condition_number, minimum=1.0, inclusive=True)
    try:
        given = np.zeros(0) if spectrum is None else np.asarray(spectrum, np.float64)
    except (TypeError, ValueError):
        given = np.zeros(0)
    if spectrum is not None and not (given.size and np.all((given > 0) & np.isfinite(given))):
        raise UserError("spectrum: not allowed (curvatures above 0, at least one)")
    edge = stable_range(system)
    curvature = _grid(system, edge, given, points)
    radius = closed_loop_radius(system, curvature)
    if given.size:
        low, high = float(given.min()), float(given.max())
    else:
        low, high = _best_range(curvature, radius, condition_number)
    inside = np.concatenate([[low, high], curvature[(curvature > low) & (curvature < high)]])
    best = int(np.argmin(radius))
    return StabilityMap(
        curvature=curvature,
        radius=radius,
        edge=edge,
        fastest_curvature=float(curvature[best]),
        fastest_radius=float(radius[best]),
        low=low,
        high=high,
        rate=float(np.max(closed_loop_radius(system, inside))),
        momentum_rate=float(np.sqrt(optimal_momentum(low, high)[1])),
        descent_rate=optimal_gradient_descent(low, high)[1],
        range_given=spectrum is not None,
        spectrum=given,
    )


def _linear(
    system: Linearization | Eigenmodes | Optimizer | StepMap, place: Place
) -> Linearization | Eigenmodes:
    if isinstance(system, Linearization | Eigenmodes):
        if place:
            raise UserError(
                f"{min(place)}: not allowed beside a linear system, which is of one place "
                "(allowed: beside an optimizer)"
            )
        return system
    if not (hasattr(system, "update") or hasattr(system, "as_optax")):
        require_linear(system)
    return linearize(system, **place)


def _grid(
    system: Linearization | Eigenmodes, edge: float, spectrum: np.ndarray, points: int
) -> Float[np.ndarray, " K"]:
    # Without an edge to go by: about the curvature that one step cancels.
    centre = edge if 0.0 < edge < np.inf else 2.0 / learning_rate(system)
    low, high = centre * 10.0**-DECADES_BELOW_EDGE, centre * 10.0**DECADES_ABOVE_EDGE
    return np.geomspace(
        min(low, np.min(spectrum, initial=low)), max(high, np.max(spectrum, initial=high)), points
    )


def _best_range(
    curvature: np.ndarray, radius: np.ndarray, condition_number: float
) -> tuple[float, float]:
    """The range of grid curvatures, of that condition number, whose largest radius is smallest."""
    step = np.log(curvature[1] / curvature[0])
    width = min(round(np.log(condition_number) / step), len(curvature) - 1)
    worst = np.lib.stride_tricks.sliding_window_view(radius, width + 1).max(axis=1)
    low = float(curvature[np.argmin(worst)])
    return low, low * condition_number
