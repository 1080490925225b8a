"""One optimizer taken apart: operating point, modes, stability, nearest relative."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from optdyn.dynamics._eigenmodes import Eigenmodes, eigenmodes, impulse_mismatch
from optdyn.dynamics._identification import Identification, identify
from optdyn.dynamics._linearization import Linearization, linearize
from optdyn.dynamics._operating_point import operating_point
from optdyn.dynamics._settling import settle
from optdyn.dynamics._stability import StabilityMap, stability_map
from optdyn.dynamics._step_map import StepMap, step_map
from optdyn.errors import UserError, finite_number, require_number

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree

    from optdyn.dynamics._step_map import Optimizer

# A state that a long history of zero-mean gradients leaves this near to where it was is at rest.
AT_REST = 1e-6
LONG = 20_000
"""So many steps a history is long."""


@dataclasses.dataclass(frozen=True)
class Dissection:
    """What was found about an optimizer.

    ``where`` says in words which operating point ``modes`` are of. ``mismatch``: how far
    the summed modes are from the linear system's impulse response, relatively.
    ``identification`` is from the fixed point where gradient histories led to one, else from
    the initial state.
    """

    where: str
    modes: Eigenmodes
    mismatch: float
    stability: StabilityMap
    identification: Identification

    @property
    def linearization(self) -> Linearization:
        """The linear system at the operating point."""
        return self.modes.linearization

    @property
    def responds(self) -> bool:
        """Whether a small change of the gradient changes any update (a sign's does not)."""
        return self.linearization.D != 0.0 or bool(np.any(self.modes.gain > 0.0))

    def summary(self) -> dict[str, Any]:
        """The numbers, without the curves, in a form that JSON can hold."""
        lin, modes, found = self.linearization, self.modes, self.identification
        columns = (modes.beta, modes.alpha, modes.delayed, modes.lag, modes.timescale, modes.gain)
        curves = ("curvature", "radius", "spectrum")
        return {
            "operating_point": self.where,
            "state": list(lin.names),
            "modes": [
                {
                    "beta": [beta.real, beta.imag],
                    "alpha": [alpha.real, alpha.imag],
                    "delayed": [delayed.real, delayed.imag],
                    "lag": int(lag),
                    "timescale": timescale,
                    "gain": gain,
                }
                for beta, alpha, delayed, lag, timescale, gain in zip(*columns, strict=True)
            ],
            "feedthrough": modes.feedthrough,
            "weight_decay": -lin.weight_decay,
            "drift": lin.drift,
            "residual": lin.residual_norm,
            "condition_number": modes.condition_number,
            "degenerate": modes.degenerate,
            "impulse_mismatch": self.mismatch,
            "stability": {k: v for k, v in vars(self.stability).items() if k not in curves},
            "identification": {
                "nearest": found.nearest.name,
                "exact": found.exact,
                "fits": [
                    {
                        "name": fit.name,
                        "residual": fit.residual,
                        "hyperparameters": fit.hyperparameters,
                    }
                    for fit in found.fits
                ],
            },
        }


def dissect(
    optimizer: Optimizer | StepMap,
    *,
    gradient_scale: float = 1.0,
    count: int | None = None,
    gradients: Float[np.ndarray, "components steps"] | None = None,
    spectrum: Float[np.ndarray, " S"] | None = None,
) -> Dissection:
    """Linearise an optimizer where that makes sense, and say what it is.

    ``gradient_scale``: the size of the gradients it meets. ``count``: freeze every
    counter (schedules, bias corrections) there. ``gradients``: histories from a task; then
    the operating point is the fixed point at zero gradient that they lead towards, as at
    convergence. ``spectrum``: the task's curvatures. See `natural_linearization`, `identify`
    and `stability_map`.

    Raises `UserError` for an optimizer that is not component-wise, or has a derivative at
    none of the operating points tried.
    """
    gradient_scale = finite_number("gradient_scale", gradient_scale)
    require_number("gradient_scale", gradient_scale)
    step = step_map(optimizer)
    lin, where = natural_linearization(
        step, gradient_scale=gradient_scale, count=count, gradients=gradients
    )
    modes = eigenmodes(lin)
    converged = gradients is not None and _at_rest(lin)
    return Dissection(
        where=where,
        modes=modes,
        mismatch=impulse_mismatch(lin, modes),
        stability=stability_map(lin, spectrum=spectrum),
        identification=identify(
            step, gradient_scale=gradient_scale, h=lin.state if converged else None
        ),
    )


def _at_rest(lin: Linearization) -> bool:
    size = 1.0 + float(np.linalg.norm(lin.state))
    return lin.gradient == 0.0 and lin.residual_norm <= AT_REST * size


def natural_linearization(
    step: StepMap,
    *,
    gradient_scale: float,
    count: int | None = None,
    gradients: Float[np.ndarray, "components steps"] | None = None,
) -> tuple[Linearization, str]:
    """Linearise at the first of these that applies and is smooth; and its name in words.

    1. with ``gradients``: the fixed point at zero gradient;
    2. the initial state, when a long history of gradients ±s leads back to it; counters
       are at 0 unless ``count`` says otherwise;
    3. the stationary state of gradients ±s (`settle`), where second moments are s²;
    4. the same under the constant gradient s, at that gradient (for signs).

    The words say where counters stand that are neither asked for nor at their start.
    Raises `UserError` when none is smooth, with what is wrong at the last.
    """
    s, at_count = gradient_scale, "" if count is None else f", counters at {count}"
    counted = bool(step.clock.counters) and count is None
    long_after = f", counters at {LONG}" if counted else at_count
    if gradients is not None:
        with contextlib.suppress(UserError):  # a kink at zero gradient, or no fixed point
            return _at_convergence(step, gradients)
    noisy = settle(step, s, steps=LONG)
    settled = step_map(step, state=noisy)
    if not np.all(np.isfinite(settled.h)):  # it grows without bound
        return linearize(step, count=count), "the initial state, at zero gradient" + at_count
    if np.all(np.abs(settled.h - step.h) <= AT_REST * s):
        start: dict[str, Any] = {"count": count}
        if not step.clock.countdowns:
            # Flags such as "is this the first step" have settled; all else starts anew.
            start = {"state": _with_flags_of(noisy, step.state), "count": count or 0}
        text = "the initial state, at zero gradient" + at_count
        choices: list[tuple[dict[str, Any], str]] = [(start, text)]
    else:
        text = f"the stationary state of gradients ±{s:.4g}, at zero gradient"
        choices = [({"state": noisy, "count": count}, text + long_after)]
    pushed = settle(step, s, alternating=False, steps=LONG)
    text = f"the stationary state of a constant gradient {s:.4g}, at it" + long_after
    choices.append(({"state": pushed, "gradient": s, "count": count}, text))
    for point, where in choices[:-1]:
        with contextlib.suppress(UserError):
            return linearize(step, **point), where
    point, where = choices[-1]
    return linearize(step, **point), where


def _with_flags_of(settled: PyTree, start: PyTree) -> PyTree:
    """``start``, but with the flags of ``settled``."""

    def chosen(old: Array, new: Array) -> Array:
        return new if old.dtype == np.bool_ else old

    return jax.tree.map(chosen, start, settled)


def _at_convergence(
    step: StepMap, gradients: Float[np.ndarray, "components steps"]
) -> tuple[Linearization, str]:
    lin = operating_point(step, gradients).modes.linearization
    return lin, "the fixed point at zero gradient that the task's gradients lead to"
