"""The derivative of one component's step, with proof that there is one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from optdyn.dynamics._released import released
from optdyn.dynamics._remembered import compiled
from optdyn.dynamics._step_map import StepMap
from optdyn.errors import UserError, first_line

# One-sided slopes are taken at these distances from the operating point, and have
# to come this near to the derivative, relative to the largest slope seen.
PROBE_DISTANCES = tuple(2.0**-k for k in range(8, 52, 4))
SLOPE_TOLERANCE = 1e-2
# So many numbers of moved copies of a training are held at once.
NUMBERS_AT_ONCE = 2**24

Inputs = Float[np.ndarray, " inputs"]
Outputs = Float[np.ndarray, " outputs"]
Jacobian = Float[np.ndarray, "outputs inputs"]


def value_and_jacobian(step: StepMap, z: Inputs) -> tuple[Outputs, Jacobian]:
    """``[h', Δx]`` and its Jacobian at z = [h, g, x].

    Raises `UserError` where the update cannot be differentiated, is not finite, or has no
    derivative: one-sided slopes have to approach it.
    """
    try:
        value, jacobian = (np.array(part) for part in _derivative(step, z))
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


def _derivative(step: StepMap, z: Inputs) -> tuple[Array, Array]:
    # Forward mode: a branch that is not taken leaves no NaN behind (a norm at zero), and a
    # derivative passes through a low precision in the same direction as the step does.
    try:
        return _forward(step, z)
    except TypeError as error:
        # What defines a reverse pass of its own has no other.
        if "custom_vjp" not in str(error):
            raise
        return _reverse(step, z)


def _outputs(step: StepMap, z: Float[Array, " inputs"]) -> Float[Array, " outputs"]:
    h_next, dx = step(z[:-2], z[-2], z[-1])
    return jnp.append(h_next, dx)


@compiled
def _forward(step: StepMap, z: Float[Array, " inputs"]) -> tuple[Array, Array]:
    moved = released(lambda at: _outputs(step, at))

    def column(direction: Float[Array, " inputs"]) -> Float[Array, " outputs"]:
        return jax.jvp(moved, (z,), (direction,))[1]

    columns = jax.lax.map(column, jnp.eye(len(z)), batch_size=copies_at_once(step, len(z)))
    return _outputs(step, z), columns.T


@compiled
def _reverse(step: StepMap, z: Float[Array, " inputs"]) -> tuple[Array, Array]:
    return _outputs(step, z), jax.jacrev(_outputs, argnums=1)(step, z)


@compiled
def _outputs_at(step: StepMap, points: Float[Array, "points inputs"]) -> Array:
    batch = copies_at_once(step, len(points))
    return jax.lax.map(lambda at: _outputs(step, at), points, batch_size=batch)


def copies_at_once(step: StepMap, most: int) -> int:
    """So many copies of the step's training, of ``most``, are made at once."""
    return int(np.clip(NUMBERS_AT_ONCE // step.size, 1, most))


def _slopes_disagree(
    step: StepMap, z: Inputs, value: Outputs, jacobian: Jacobian
) -> Bool[np.ndarray, "outputs inputs"]:
    """Where one-sided slopes do not approach the derivative.

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
    moves = [(sign * distance * size) for distance in PROBE_DISTANCES for sign in (1.0, -1.0)]
    points = np.concatenate([z[None, :] + np.diag(move) for move in moves])
    seen = np.asarray(_outputs_at(step, points)).reshape(len(moves), len(z), len(value))
    for k in range(len(PROBE_DISTANCES)):
        gap, noise = np.zeros(jacobian.shape), np.zeros(jacobian.shape)
        for j in (2 * k, 2 * k + 1):
            move, moved = moves[j], seen[j].T
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


def _not_finite(step: StepMap, z: Inputs, value: Outputs) -> str:
    output = [*step.names, "Δx"][int(np.argwhere(~np.isfinite(value))[-1, 0])]
    return (
        f"operating point: {output} is not finite {_where(step, z)} (allowed: finite "
        "hyperparameters, and a state and gradient that do not overflow)"
    )


def _undefined(step: StepMap, z: Inputs, wrong: np.ndarray) -> str:
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
