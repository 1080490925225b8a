"""What an optimizer does beyond its linear modes: saturation, schedule, adaptation.

Each function takes one component of any optax optimizer. The effective learning rate of a state
h is ``−∂Δx/∂g`` at (h, g = 0), so that what it tells is due to the state alone and not to the
saturation of the update in g.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from optdyn.dynamics._fixed_points import find_fixed_points
from optdyn.dynamics._remembered import compiled
from optdyn.dynamics._step_map import Optimizer, StepMap, step_map
from optdyn.errors import UserError, require_positive_int

HALF = 0.5
"""The threshold is read where the update is this part of what it would be without saturation."""


@dataclasses.dataclass(frozen=True)
class UpdateFunction:
    """``response`` [G] = (Δx(−g) − Δx(g))/2 at the sizes ``gradient`` [G] > 0, ascending.

    The odd part of the update at one state: the drift and what does not change
    with the gradient's sign are not in it. Linear optimizers have ``α·g``.
    """

    gradient: Float[np.ndarray, " G"]
    response: Float[np.ndarray, " G"]

    @property
    def rate(self) -> float:
        """The slope α at the smallest gradients."""
        return float(self.response[0] / self.gradient[0])

    @property
    def linear_part(self) -> Float[np.ndarray, " G"]:
        """[G] The response over the linear one, ``response/(rate·gradient)``: 1 for small g."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.response / (self.rate * self.gradient)

    @property
    def threshold(self) -> float:
        """The clip threshold: half the |g| at which the response is half the linear one.

        Exactly c for an update that is linear up to |g| = c and constant beyond it.
        Between the gradients 1/``linear_part`` is interpolated linearly in g, as it is
        linear for such an update. inf for one that does not come down to half.
        """
        inverse = 1.0 / np.maximum(self.linear_part, 1e-12)
        above = np.flatnonzero(inverse >= 1.0 / HALF)
        if len(above) == 0 or above[0] == 0:
            return float("inf")
        i = above[0]
        half = np.interp(1.0 / HALF, inverse[i - 1 : i + 1], self.gradient[i - 1 : i + 1])
        return float(HALF * half)

    def linear_part_at(self, sizes: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
        """`linear_part` at other |g| (interpolated in log g; constant beyond the ends)."""
        return np.interp(np.log(sizes), np.log(self.gradient), self.linear_part)


def update_function(
    tx: Optimizer | StepMap,
    gradients: Float[np.ndarray, " G"],
    *,
    h: Float[np.ndarray, " N"] | None = None,
    state: PyTree | None = None,
    count: int | None = None,
) -> UpdateFunction:
    """The update as a function of the gradient's size, at a state.

    ``gradients`` [G]: ascending sizes; the first should be small enough for the
    update to be linear. The state is ``h``, by default that of ``state`` (as in
    `optdyn.dynamics.linearize`), by default the initial one.

    Raises `UserError` for sizes that do not ascend from above 0, and for an
    optimizer that is not component-wise.
    """
    sizes = _ascending(gradients)
    step = step_map(tx, state=state, count=count)
    at = np.asarray(step.h if h is None else h, np.float64)
    rising, falling = np.split(updates_at(step, at[None], np.concatenate([sizes, -sizes]))[0], 2)
    return UpdateFunction(gradient=sizes, response=(falling - rising) / 2)


def updates_at(
    tx: Optimizer | StepMap, states: Float[np.ndarray, "M N"], gradients: Float[np.ndarray, " G"]
) -> Float[np.ndarray, "M G"]:
    """Δx of each state h (a row of ``states``) at each gradient, counters as in ``tx``."""
    states, gradients = np.asarray(states, np.float64), np.asarray(gradients, np.float64)
    return np.asarray(_updates_at(step_map(tx), states, gradients))


def autonomous_schedule(
    tx: Optimizer | StepMap, steps: int, *, state: PyTree | None = None
) -> Float[np.ndarray, " steps"]:
    """The effective learning rate at steps 0 … steps−1 while every gradient is zero.

    From ``state`` (default: the initial one) the whole state moves on, counters
    too, so that a schedule shows. NaN where the update has no derivative (Adam
    with no gradient seen).

    >>> import optax
    >>> autonomous_schedule(optax.sgd(optax.linear_schedule(1.0, 0.5, 2)), 3).tolist()
    [1.0, 0.75, 0.5]

    Raises `UserError` for an optimizer that is not component-wise.
    """
    require_positive_int("steps", steps)
    step = step_map(tx, state=state)
    return np.asarray(_schedule(step, steps=steps))


def effective_rates(
    tx: Optimizer | StepMap,
    states: Float[np.ndarray, "M N"],
    gradients: Float[np.ndarray, " M"] | None = None,
) -> Float[np.ndarray, " M"]:
    """The effective learning rate of each state h (a row of ``states``), counters as in ``tx``.

    ``gradients``: take the slope ``−∂Δx/∂g`` at these instead of at 0.
    """
    at = np.zeros(len(states)) if gradients is None else np.asarray(gradients, np.float64)
    return np.asarray(_rates(step_map(tx), np.asarray(states, np.float64), at))


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """Where constant gradients lead: fixed points ``h*(g)``, and the effective learning rate there.

    ``gradient`` [G]; ``h`` [G, N]; ``rate`` [G] of the state ``h*(g)`` alone; ``slope`` [G]:
    ``−∂Δx/∂g`` at ``(h*(g), g)`` itself, in which the update's saturation has a part.
    NaN where no fixed point was found (``converged`` [G] tells) or the update has no
    derivative.
    """

    gradient: Float[np.ndarray, " G"]
    h: Float[np.ndarray, "G N"]
    rate: Float[np.ndarray, " G"]
    slope: Float[np.ndarray, " G"]
    converged: np.ndarray


def adaptation(
    tx: Optimizer | StepMap,
    gradients: Float[np.ndarray, " G"],
    *,
    state: PyTree | None = None,
    count: int | None = None,
    iterations: int = 500,
) -> Adaptation:
    """The fixed points ``h*(g)`` that constant gradients lead to, and the learning rates there.

    ``gradients`` [G] of any sign, in an order in which neighbours are near: each
    search starts where the last one ended. ``state`` and ``count`` as in
    `optdyn.dynamics.linearize`.

    Raises `UserError` for an optimizer that is not component-wise, and without gradients.
    """
    step = step_map(tx, state=state, count=count)
    start, points, converged = step.h, [], []
    if not np.size(gradients):
        raise UserError("gradients: none given (at least one)")
    gradients = np.asarray(gradients, np.float64)
    for gradient in gradients:
        found = find_fixed_points(step, start[None], float(gradient), iterations=iterations)
        converged.append(bool(found.converged[0]))
        points.append(found.h[0])
        start = found.h[0] if converged[-1] else step.h
    reached = np.array(points).reshape(len(points), -1)
    rates = effective_rates(step, reached)
    slopes = effective_rates(step, reached, gradients)
    return Adaptation(
        gradient=gradients,
        h=reached,
        rate=np.where(converged, rates, np.nan),
        slope=np.where(converged, slopes, np.nan),
        converged=np.array(converged),
    )


def rmsprop_adaptation(
    gradients: Float[np.ndarray, " G"], alpha: float, gamma: float, epsilon: float = 1e-8
) -> Float[np.ndarray, " G"]:
    """`adaptation`'s rate of ``optax.rmsprop`` in closed form: ``α/√(γ g² + ε)``."""
    return alpha / np.sqrt(gamma * np.square(gradients) + epsilon)


def adam_adaptation(
    gradients: Float[np.ndarray, " G"],
    alpha: float,
    beta1: float,
    beta2: float,
    epsilon: float = 1e-8,
) -> Float[np.ndarray, " G"]:
    """`adaptation`'s rate of ``optax.adam`` after many steps: ``α(1−β₁)/(√β₂·|g| + ε)``."""
    return alpha * (1.0 - beta1) / (np.sqrt(beta2) * np.abs(gradients) + epsilon)


@dataclasses.dataclass(frozen=True)
class Portrait:
    """States in their leading principal components.

    ``mean`` [N], ``axes`` [P, N] (orthonormal rows), ``explained`` [P]: the parts of
    the variance along them, falling.
    """

    mean: Float[np.ndarray, " N"]
    axes: Float[np.ndarray, "P N"]
    explained: Float[np.ndarray, " P"]

    def project(self, states: Float[np.ndarray, "... N"]) -> Float[np.ndarray, "... P"]:
        """The states' coordinates along the axes."""
        return (states - self.mean) @ self.axes.T


def portrait(states: Float[np.ndarray, "M N"], components: int = 3) -> Portrait:
    """The principal components of the rows of ``states``.

    Raises `UserError` when there are fewer than two states or one is not finite.
    """
    require_positive_int("components", components)
    if len(states) < 2 or not np.all(np.isfinite(states)):
        raise UserError("states: at least two, all finite, are needed")
    mean = np.mean(states, axis=0)
    _, size, axes = np.linalg.svd(states - mean, full_matrices=False)
    # An axis has no direction of its own: the largest entry is made positive.
    axes = axes * np.sign(axes[np.arange(len(axes)), np.argmax(np.abs(axes), axis=1)])[:, None]
    total = np.sum(size**2)
    explained = size**2 / total if total > 0 else np.zeros_like(size)
    return Portrait(mean, axes[:components], explained[:components])


@compiled
def _updates_at(
    step: StepMap, states: Float[Array, "M N"], gradients: Float[Array, " G"]
) -> Float[Array, "M G"]:
    return jax.lax.map(lambda h: jax.vmap(lambda g: step(h, g)[1])(gradients), states)


@compiled
def _rates(
    step: StepMap, states: Float[Array, "M N"], gradients: Float[Array, " M"]
) -> Float[Array, " M"]:
    def rate(row: tuple[Float[Array, " N"], Float[Array, ""]]) -> Float[Array, ""]:
        h, gradient = row
        return -_slope(lambda g: step(h, g)[1], gradient)

    return jax.lax.map(rate, (states, gradients), batch_size=256)


@compiled
def _schedule(step: StepMap, *, steps: int) -> Float[Array, " steps"]:
    x = step.around.of(step.around.params)

    def advance(state: PyTree, _: None) -> tuple[PyTree, Float[Array, ""]]:
        rate = -_slope(lambda g: step.advance(state, g, x)[1], jnp.zeros((), jnp.float64))
        return step.advance(state, 0.0, x)[0], rate

    start = jax.tree.map(jnp.asarray, step.state)
    return jax.lax.scan(advance, start, None, length=steps)[1]


def _slope(
    function: Callable[[Float[Array, ""]], Float[Array, ""]], at: Float[Array, ""]
) -> Float[Array, ""]:
    # Forward mode: a branch that is not taken leaves no NaN behind (a norm at zero).
    slope: Float[Array, ""] = jax.jvp(function, (at,), (jnp.ones_like(at),))[1]
    return slope


def _ascending(gradients: Float[np.ndarray, " G"]) -> Float[np.ndarray, " G"]:
    sizes = np.asarray(gradients, np.float64)
    if sizes.ndim != 1 or len(sizes) < 2 or sizes[0] <= 0 or np.any(np.diff(sizes) <= 0):
        raise UserError("gradients: at least two sizes, ascending from above 0, are needed")
    return sizes
