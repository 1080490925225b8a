"""The linear system that one component of an optimizer is near an operating point."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from optdyn.dynamics._step_map import Optimizer, StepMap, state_vector, step_map
from optdyn.dynamics._units import state_units
from optdyn.errors import UserError, finite_number, first_line, whole_number
from optdyn.precision import double_precision

if TYPE_CHECKING:
    from jaxtyping import Float, PyTree

# One-sided slopes are taken at these distances from the operating point, and have
# to come this near to the derivative, relative to the largest slope seen.
PROBE_DISTANCES = tuple(2.0**-k for k in range(8, 52, 4))
SLOPE_TOLERANCE = 1e-2


@dataclasses.dataclass(frozen=True)
class Linearization:
    """``h' = h* + A(h−h*) + B(g−g*) + E(x−x*) + residual``,
    ``Δx = drift + C(h−h*) + D(g−g*) + weight_decay·(x−x*)``.

    h is the state BEFORE the step, as in ``update(g, h)``. ``A`` [N, N], ``B`` [N],
    ``C`` [N], ``E`` [N]; scalars ``D``, ``weight_decay`` = ∂Δx/∂x (−η·wd for decoupled
    weight decay), ``drift`` = Δx at the operating point. ``residual`` [N] is
    ``F(h*, g*) − h*``, zero at a fixed point. The operating point: ``state`` ``h*`` [N],
    ``gradient`` ``g*``, ``param`` ``x*``. ``names`` [N] says which leaf each entry of h is.

    ``comoving`` [N]: some optimizers keep positions in their state (schedule-free
    keeps an iterate z) and depend on x only through distances from them. Where such a
    p exists that h − p·x makes the system independent of x, the state here is
    h − p·x, and E and weight_decay are zero. Otherwise p = 0 and the state is h.
    """

    A: Float[np.ndarray, "N N"]
    B: Float[np.ndarray, " N"]
    C: Float[np.ndarray, " N"]
    D: float
    E: Float[np.ndarray, " N"]
    weight_decay: float
    drift: float
    residual: Float[np.ndarray, " N"]
    state: Float[np.ndarray, " N"]
    gradient: float
    param: float
    names: tuple[str, ...]
    comoving: Float[np.ndarray, " N"]

    @property
    def size(self) -> int:
        """The number N of state variables."""
        return len(self.B)

    @property
    def residual_norm(self) -> float:
        """``‖F(h*, g*) − h*‖``."""
        return float(np.linalg.norm(self.residual))

    def impulse_response(self, steps: int) -> Float[np.ndarray, " steps"]:
        """Δx_k of a unit gradient at k = 0, less the drift: D, CB, CAB, CA²B, ….

        At fixed x; where ``comoving`` is not zero, with x moved by these updates.
        """
        steps = whole_number("steps", steps)
        response = np.empty(steps)
        response[0] = self.D
        h = self.B
        for k in range(1, steps):
            response[k] = self.C @ h
            h = self.A @ h
        return response


def linearize(
    tx: Optimizer | StepMap,
    *,
    state: PyTree | None = None,
    h: Float[np.ndarray, " N"] | None = None,
    gradient: float = 0.0,
    param: float = 0.0,
    count: int | None = None,
) -> Linearization:
    """Linearise one component of an optimizer at an operating point.

    The operating point is ``gradient``, ``param`` and a state: ``state``, a state of
    ``tx`` for a parameter of shape (1,) (by default ``tx.init``'s; `settle` makes
    stationary ones; ``optax.tree_utils.tree_set(state, nu=...)`` sets one leaf), then
    ``h`` [N], which replaces its per-component vector (see `StepMap`; a fixed point
    found by `find_fixed_points`), then ``count``, which sets every counter. Counters
    and hyperparameters are frozen: of a schedule, its value at ``count`` counts.

    >>> import optax
    >>> lin = linearize(optax.sgd(0.5, momentum=0.75))
    >>> lin.A.tolist(), lin.B.tolist(), lin.C.tolist(), lin.D
    ([[0.75]], [1.0], [-0.375], -0.5)

    Raises `UserError` for what `step_map` refuses, a state that does not fit, an update
    that JAX cannot differentiate, and an operating point where it has no derivative
    (Adam at zero second moment; a sign or clip at its threshold) or is not finite.
    """
    gradient, param = finite_number("gradient", gradient), finite_number("param", param)
    step = step_map(tx, state=state, count=count)
    h_star = step.h if h is None else state_vector(step, h)
    z = np.concatenate([h_star, [gradient, param]])
    value, jacobian = _value_and_jacobian(step, z)
    n = len(h_star)
    full = Linearization(
        A=jacobian[:n, :n],
        B=jacobian[:n, n],
        C=jacobian[n, :n],
        D=float(jacobian[n, n]),
        E=jacobian[:n, n + 1],
        weight_decay=float(jacobian[n, n + 1]),
        drift=float(value[n]),
        residual=value[:n] - h_star,
        state=h_star,
        gradient=gradient,
        param=param,
        names=step.names,
        comoving=np.zeros(n),
    )
    return _in_comoving_state(full)


def _in_comoving_state(lin: Linearization) -> Linearization:
    """Change to the state h − p·x where that removes every dependence on x.

    Substitution gives the conditions C p = −∂Δx/∂x and (I − A) p = E.
    """
    units = state_units(lin.A, lin.B, lin.C)
    condition = np.vstack([lin.C[None], (np.eye(lin.size) - lin.A) / units[:, None]]) * units
    target = np.concatenate([[-lin.weight_decay], lin.E / units])
    scale = np.max(np.abs(target))
    if scale == 0.0 or lin.size == 0:
        return lin
    p = np.linalg.lstsq(condition, target)[0]
    if np.max(np.abs(condition @ p - target)) > 1e-10 * scale:
        return lin
    p *= units
    return dataclasses.replace(
        lin,
        A=lin.A - np.outer(p, lin.C),
        B=lin.B - p * lin.D,
        E=np.zeros(lin.size),
        weight_decay=0.0,
        residual=lin.residual - p * lin.drift,
        state=lin.state - p * lin.param,
        comoving=p,
    )


def _value_and_jacobian(
    step: StepMap, z: Float[np.ndarray, " inputs"]
) -> tuple[Float[np.ndarray, " outputs"], Float[np.ndarray, "outputs inputs"]]:
    """``[h', Δx]`` and its Jacobian at z = [h, g, x]. Raises `UserError` where there is none."""
    with double_precision():
        try:
            value, jacobian = (np.array(part) for part in _outputs_and_jacobian(step, z))
        except Exception as error:  # the user's own code may raise anything
            raise UserError(
                f"optimizer: JAX cannot differentiate its update: {first_line(error)} "
                "(allowed: updates written in JAX)"
            ) from error
        if not np.all(np.isfinite(value)):
            raise UserError(_not_finite(step, z, value))
        wrong = ~np.isfinite(jacobian)
        if not np.any(wrong):
            wrong = _slopes_disagree(step, z, value, jacobian)
    if np.any(wrong):
        raise UserError(_undefined(step, z, wrong))
    return value, jacobian


def _outputs(step: StepMap, z: Float[jax.Array, " inputs"]) -> Float[jax.Array, " outputs"]:
    h_next, dx = step(z[:-2], z[-2], z[-1])
    return jnp.append(h_next, dx)


@jax.jit
def _outputs_and_jacobian(
    step: StepMap, z: Float[jax.Array, " inputs"]
) -> tuple[Float[jax.Array, " outputs"], Float[jax.Array, "outputs inputs"]]:
    # Reverse mode: learned optimizers define their own reverse pass.
    return _outputs(step, z), jax.jacrev(_outputs, argnums=1)(step, z)


_outputs_at_each = jax.jit(jax.vmap(_outputs, in_axes=(None, 0)))


def _slopes_disagree(
    step: StepMap,
    z: Float[np.ndarray, " inputs"],
    value: Float[np.ndarray, " outputs"],
    jacobian: Float[np.ndarray, "outputs inputs"],
) -> np.ndarray:
    """[outputs, inputs]: where one-sided slopes do not approach the derivative.

    The gap between them shrinks in proportion to the distance on a smooth function;
    at a kink it stays, at a jump it grows. Judged are entries with at least three
    distances at which rounding is too small to hide the gap.
    """
    size = np.where(z == 0.0, 1.0, np.abs(z))
    # What the terms of each output sum up to before they cancel bounds its rounding.
    terms = np.abs(value) + np.abs(jacobian) @ np.abs(z)
    largest_slope = np.abs(jacobian)
    approached = np.zeros(jacobian.shape, bool)
    informative = np.zeros(jacobian.shape, int)
    for distance in PROBE_DISTANCES:
        gap, noise = np.zeros(jacobian.shape), np.zeros(jacobian.shape)
        for move in (distance * size, -distance * size):
            moved = np.asarray(_outputs_at_each(step, z[None, :] + np.diag(move))).T
            slope = (moved - value[:, None]) / move[None, :]
            gap = np.maximum(gap, np.abs(slope - jacobian))
            magnitude = np.maximum(np.abs(moved), terms[:, None])
            noise = np.maximum(noise, 10 * step.precision * magnitude / np.abs(move)[None, :])
            largest_slope = np.fmax(largest_slope, np.abs(slope))
        allowed = SLOPE_TOLERANCE * largest_slope
        telling = noise <= allowed
        approached |= telling & (gap <= allowed + noise)
        informative += telling
    return (informative >= 3) & ~approached


def _not_finite(step: StepMap, z: np.ndarray, value: np.ndarray) -> str:
    output = [*step.names, "Δx"][int(np.argwhere(~np.isfinite(value))[-1, 0])]
    return (
        f"operating point: {output} is not finite {_where(step, z)} (allowed: finite "
        "hyperparameters, and a state and gradient that do not overflow)"
    )


def _undefined(step: StepMap, z: Float[np.ndarray, " inputs"], wrong: np.ndarray) -> str:
    inputs, outputs = [*step.names, "gradient", "param"], [*step.names, "Δx"]
    row, column = np.argwhere(wrong)[-1]
    remedy = (
        "another param="
        if inputs[column] == "param"
        else "state=settle(tx, gradient_scale) where a second moment is zero, a non-zero "
        "gradient= at a sign, another one at a clip"
    )
    return (
        f"operating point: ∂{outputs[row]}/∂{inputs[column]} does not exist {_where(step, z)} "
        f"(allowed: a smooth point: {remedy})"
    )


def _where(step: StepMap, z: np.ndarray) -> str:
    zeros = [name for name, entry in zip(step.names, z[:-2], strict=True) if entry == 0.0]
    return f"at gradient {z[-2]:g}, param {z[-1]:g}" + (
        f" and zero state {', '.join(zeros[:4])}{', …' * (len(zeros) > 4)}" if zeros else ""
    )
