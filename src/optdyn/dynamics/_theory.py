"""What is known in closed form, and the stability of an optimizer on quadratics."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Unpack

import numpy as np
from jaxtyping import Float

from optdyn.dynamics import _words as words
from optdyn.dynamics._eigenmodes import Eigenmodes, eigenmodes, require_linear, truncate
from optdyn.dynamics._linearization import Linearization, linearize
from optdyn.dynamics._place import Place
from optdyn.dynamics._step_map import Optimizer, StepMap
from optdyn.errors import UserError, require_number, require_positive_int
from optdyn.in_words import InWords

# Coarse enough for large states, fine enough not to step over an unstable window.
STEP_UP = 1.5
# The rounding of a spectral radius: on the unit circle is not inside it.
MARGIN = 1e-13
# What of a linear system has an entry for each state variable.
VECTORS = ("B", "C", "E", "residual", "state", "comoving")
DECADES_BELOW_EDGE, DECADES_ABOVE_EDGE = 5.0, 0.5

Linear = Linearization | Eigenmodes
Curvatures = Float[np.ndarray, " K"]


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


def _linear(system: Linear | Optimizer | StepMap, place: Place) -> Linear:
    if isinstance(system, Linearization | Eigenmodes):
        if place:
            raise UserError(
                f"{min(place)}: not allowed with a linear system, which has its place already "
                "(allowed: with an optimizer)"
            )
        return system
    if not (hasattr(system, "update") or hasattr(system, "as_optax")):
        require_linear(system)
    return linearize(system, **place)


def _grid(system: Linear, edge: float, spectrum: np.ndarray, points: int) -> Curvatures:
    # Without an edge to go by: about the curvature that one step cancels.
    centre = edge if 0.0 < edge < np.inf else 2.0 / learning_rate(system)
    low, high = centre * 10.0**-DECADES_BELOW_EDGE, centre * 10.0**DECADES_ABOVE_EDGE
    return np.geomspace(
        min(low, np.min(spectrum, initial=low)), max(high, np.max(spectrum, initial=high)), points
    )


def _best_range(
    curvature: Curvatures, radius: Curvatures, condition_number: float
) -> tuple[float, float]:
    """The range of grid curvatures, of that condition number, whose largest radius is smallest."""
    step = np.log(curvature[1] / curvature[0])
    width = min(round(np.log(condition_number) / step), len(curvature) - 1)
    worst = np.lib.stride_tricks.sliding_window_view(radius, width + 1).max(axis=1)
    low = float(curvature[np.argmin(worst)])
    return low, low * condition_number


def optimal_momentum(m: float, L: float) -> tuple[float, float]:
    """(α, β) of heavy ball with the fastest worst-case rate for curvatures in [m, L].

    ``α = 4/(√L+√m)²``, ``β = ((√L−√m)/(√L+√m))²`` (Polyak 1964); the rate is √β.
    Raises `UserError` unless 0 < m ≤ L.
    """
    _require_spectrum(m, L)
    total, difference = np.sqrt(L) + np.sqrt(m), np.sqrt(L) - np.sqrt(m)
    return float(4.0 / total**2), float((difference / total) ** 2)


def optimal_gradient_descent(m: float, L: float) -> tuple[float, float]:
    """(α, rate) of the fastest gradient descent: ``α = 2/(L+m)``, ``rate = (L−m)/(L+m)``.

    Raises `UserError` unless 0 < m ≤ L.
    """
    _require_spectrum(m, L)
    return 2.0 / (L + m), (L - m) / (L + m)


def closed_loop_radius(
    system: Linearization | Eigenmodes, curvatures: Float[np.ndarray, " K"]
) -> Float[np.ndarray, " K"]:
    """Spectral radius of the ``system`` on a quadratic of curvature λ, for each of ``curvatures``.

    With g = λx the joint state [h, x] has the matrix
    ``[[A, Bλ + E], [C, 1 + Dλ + weight_decay]]``. Below 1: x converges, by that factor
    a step. State variables that x does not drive, or that do not drive x (Adam's
    second moment at a stationary state), are outside the loop and left out.
    For a set of modes, give it ``truncate(modes, keep)``.
    """
    return _radii(_in_the_loop(system), curvatures)


def stable_range(system: Linearization | Eigenmodes, *, relative: float = 1e-9) -> float:
    """The curvature at which the optimizer turns unstable: stable on (0, λ).

    Found by stepping up from where the optimizer is slow and by bisection to
    ``relative``. 2/α for gradient descent, 2(1+β)/α for heavy ball; 0 for an optimizer
    that is unstable at small curvature (it climbs, or has a growing mode), inf for
    one that never turns unstable. Raises `UserError` unless ``relative`` is above 0.
    """
    require_number("relative", relative)
    lin = _in_the_loop(system)

    def stable(curvature: float) -> bool:
        return bool(_radii(lin, np.array([curvature]))[0] < 1.0 - MARGIN)

    rate = _learning_rate(lin)
    low = 1e-4 / rate
    if not stable(low):
        return 0.0
    high = low * STEP_UP
    while stable(high):
        low, high = high, high * STEP_UP
        if high * rate > 1e12:
            return float("inf")
    while high - low > relative * high:
        middle = (low + high) / 2
        low, high = (middle, high) if stable(middle) else (low, middle)
    return low


def is_stable(
    system: Linearization | Eigenmodes, low: float, high: float, *, points: int = 50
) -> bool:
    """Whether the closed loop is stable for curvatures in [low, high] (on a log grid).

    For a set of modes, give it ``truncate(modes, keep)``. Raises `UserError` unless
    0 < low ≤ high.
    """
    _require_spectrum(low, high)
    require_positive_int("points", points, minimum=2)
    return bool(np.all(closed_loop_radius(system, np.geomspace(low, high, points)) < 1.0 - MARGIN))


def learning_rate(system: Linear) -> float:
    """The size of the update that one unit of gradient leads to altogether; 1 if to none."""
    return _learning_rate(_in_the_loop(system))


def steady_rate(system: Linear) -> float:
    """How far one unit of gradient moves a parameter downhill altogether; negative: uphill.

    −(D + C(1 − A)⁻¹B). It is uphill where a larger gradient makes for smaller steps, as by
    Adam's second moment at a gradient that is not zero.
    """
    lin = _in_the_loop(system)
    return float(-(lin.D + lin.C @ np.linalg.lstsq(np.eye(lin.size) - lin.A, lin.B)[0]))


def _learning_rate(lin: Linearization) -> float:
    rate = abs(lin.D)
    if lin.size:
        rate += np.abs(lin.C @ np.linalg.lstsq(np.eye(lin.size) - lin.A, lin.B)[0])
    return float(rate) if rate > 0 else 1.0


def _radii(lin: Linearization, curvatures: Curvatures) -> Curvatures:
    radii = []
    for curvature in np.asarray(curvatures, np.float64):
        loop = np.eye(lin.size + 1)
        for one in lin.cycle or (lin,):
            loop = _loop(one, curvature) @ loop
        radii.append(np.max(np.abs(np.linalg.eigvals(loop))) ** (1.0 / lin.period))
    return np.array(radii)


def _loop(lin: Linearization, curvature: float) -> Float[np.ndarray, "N+1 N+1"]:
    """One step of [h, x] with the gradient λx."""
    n = lin.size
    loop = np.zeros((n + 1, n + 1))
    loop[:n, :n], loop[n, :n] = lin.A, lin.C
    loop[:n, n] = lin.B * curvature + lin.E
    loop[n, n] = 1.0 + lin.D * curvature + lin.weight_decay
    return loop


def _require_spectrum(m: float, L: float) -> None:
    require_number("smallest curvature", m)
    require_number("largest curvature", L)
    if m > L:
        raise UserError(f"curvatures: {m:g} to {L:g} is not allowed (smallest <= largest)")


def _in_the_loop(system: Linear) -> Linearization:
    """The part of the system that x drives and that drives x.

    Left out are state variables by what reads what, then modes by what they do.
    """
    lin = system.linearization if isinstance(system, Eigenmodes) else system
    require_linear(lin)
    inside = _variables_in_the_loop(lin)
    lin = dataclasses.replace(
        _part(lin, inside), cycle=tuple(_part(one, inside) for one in lin.cycle)
    )
    if lin.cycle:  # modes of the whole cycle are not those of its steps
        return lin
    modes = eigenmodes(lin)
    if modes.degenerate or np.all(modes.used):
        return lin
    return truncate(modes, np.flatnonzero(modes.used).tolist())


def _part(lin: Linearization, inside: np.ndarray) -> Linearization:
    """The system of some of its variables alone."""
    return dataclasses.replace(
        lin,
        A=lin.A[np.ix_(inside, inside)],
        names=tuple(itertools.compress(lin.names, inside)),
        **{name: getattr(lin, name)[inside] for name in VECTORS},
    )


def _variables_in_the_loop(lin: Linearization) -> np.ndarray:
    """[N]: the state variables that x drives, directly or not, and that drive x."""
    steps = lin.cycle or (lin,)
    # [i, j]: variable i reads variable j, at some step of the cycle
    reads = np.any([one.A != 0.0 for one in steps], axis=0)
    driven = np.any([(one.B != 0.0) | (one.E != 0.0) for one in steps], axis=0)
    driving = np.any([one.C != 0.0 for one in steps], axis=0)
    for _ in range(lin.size):
        wider = driven | np.any(reads & driven[None, :], axis=1)
        wider_back = driving | np.any(reads & driving[:, None], axis=0)
        if np.array_equal(wider, driven) and np.array_equal(wider_back, driving):
            break
        driven, driving = wider, wider_back
    return driven & driving
