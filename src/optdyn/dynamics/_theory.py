"""What is known in closed form, and the stability of an optimizer on a quadratic."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

import numpy as np

from optdyn.dynamics._eigenmodes import Eigenmodes, eigenmodes, require_linear, truncate
from optdyn.errors import UserError, require_number, require_positive_int

if TYPE_CHECKING:
    from jaxtyping import Float

    from optdyn.dynamics._linearization import Linearization

# Coarse enough for large states, fine enough not to step over an unstable window.
STEP_UP = 1.5
# The rounding of a spectral radius: on the unit circle is not inside it.
MARGIN = 1e-13
# What of a linear system has an entry for each state variable.
VECTORS = ("B", "C", "E", "residual", "state", "comoving")


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


def learning_rate(system: Linearization | Eigenmodes) -> float:
    """The size of the update that one unit of gradient leads to altogether; 1 if to none."""
    return _learning_rate(_in_the_loop(system))


def _learning_rate(lin: Linearization) -> float:
    rate = abs(lin.D)
    if lin.size:
        rate += np.abs(lin.C @ np.linalg.lstsq(np.eye(lin.size) - lin.A, lin.B)[0])
    return float(rate) if rate > 0 else 1.0


def _radii(lin: Linearization, curvatures: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
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


def _in_the_loop(system: Linearization | Eigenmodes) -> Linearization:
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
