"""The parts that a readable optimizer is put together from, each a pytree of few numbers.

Their leaves are the numbers, free of bounds so that gradient descent can fit them; ``as_optax()``
is the optax pair that a part is. All state
belongs to single components (a clock is a factor that decays), so that parts can be meta-trained
and analysed as learned optimizers are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from optdyn.errors import UserError, finite_number
from optdyn.optimizers._aggregated_momentum import aggregated_momentum

SMALLEST_SQUARE = 1e-30
"""Keeps powers of |g| differentiable at g = 0."""
Entries = Float[Array, "..."]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdaptiveScaling:
    """``s ← γ s + (1 − γ) g²``, ``g ← g / (s/w + ε)^(p/2)``, γ and p in (0, 1).

    ``w ← γ w + (1 − γ)`` corrects the bias of starting at s = 0, as in Adam. p = 1 is
    RMSProp and Adam's division, p = 0 none; γ near 1 gives the mean of all g² so far.
    """

    gamma_logit: Float[Array, ""]
    power_logit: Float[Array, ""]
    log_epsilon: Float[Array, ""]

    @classmethod
    def of(cls, gamma: float, power: float, epsilon: float) -> AdaptiveScaling:
        """The part with these values. Raises `UserError` for values outside their bounds."""
        _require_inside("gamma", gamma)
        _require_inside("power", power)
        _require_positive("epsilon", epsilon)
        return cls(*_arrays(_logit(gamma), _logit(power), np.log(epsilon)))

    def values(self) -> dict[str, float]:
        """``gamma``, ``power`` and ``epsilon``."""
        return {
            "gamma": _sigmoid(self.gamma_logit),
            "power": _sigmoid(self.power_logit),
            "epsilon": _exp(self.log_epsilon),
        }

    def as_optax(self) -> optax.GradientTransformation:
        gamma, rest = jax.nn.sigmoid(self.gamma_logit), jax.nn.sigmoid(-self.gamma_logit)
        power, epsilon = jax.nn.sigmoid(self.power_logit), jnp.exp(self.log_epsilon)

        def update(g: Entries, state: _Scaling) -> tuple[Entries, _Scaling]:
            second = gamma * state.second + rest * jnp.square(g)
            weight = gamma * state.weight + rest
            scaled = g / (second / weight + epsilon) ** (power / 2)
            return scaled, _Scaling(second, weight)

        return _elementwise(lambda p: _Scaling(jnp.zeros_like(p), jnp.zeros_like(p)), update)


class _Scaling(NamedTuple):
    """Second moment s, and the weight w of the gradients in it."""

    second: Entries
    weight: Entries


@dataclasses.dataclass(frozen=True)
class _SoftThreshold:
    """A threshold c and a power p in (0, 1), as parameters without bounds."""

    log_threshold: Float[Array, ""]
    power_logit: Float[Array, ""]

    @classmethod
    def of(cls, threshold: float, power: float) -> Self:
        """The part with these values. Raises `UserError` for values outside their bounds."""
        _require_positive("threshold", threshold)
        _require_inside("power", power)
        return cls(*_arrays(np.log(threshold), _logit(power)))

    def values(self) -> dict[str, float]:
        """``threshold`` c and ``power`` p."""
        return {"threshold": _exp(self.log_threshold), "power": _sigmoid(self.power_logit)}

    def excess(self, g: Entries) -> Entries:
        """``|g/c|^p``."""
        threshold, power = jnp.exp(self.log_threshold), jax.nn.sigmoid(self.power_logit)
        return _power_of_size(g / threshold, power)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Saturation(_SoftThreshold):
    """``g ← g / (1 + |g/c|^p)``: linear below the threshold c, ``|g|^(1−p)`` above; p in (0, 1)."""

    def as_optax(self) -> optax.GradientTransformation:
        def saturate(g: Entries) -> Entries:
            return g / (1.0 + self.excess(g))

        return optax.stateless(lambda g, _: jax.tree.map(saturate, g))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Momenta:
    """K momenta at once: ``v_j ← β_j v_j + α_j g``, ``Δx = −Σ_j v_j``; β_j in (0, 1).

    α_j is held as a common rate times a share, so that steps in either are relative.
    """

    log_rate: Float[Array, ""]
    share: Float[Array, " K"]
    beta_logit: Float[Array, " K"]

    @classmethod
    def of(cls, alpha: Sequence[float], beta: Sequence[float]) -> Momenta:
        """The part with these values. Raises `UserError` for values outside their bounds."""
        _require_alike("alpha", alpha, "beta", beta)
        rate = float(np.max(np.abs(alpha), initial=0.0))
        _require_positive("alpha", rate)
        logits = np.array([_logit(value) for value in beta])
        return cls(*_arrays(np.log(rate), np.asarray(alpha) / rate, logits))

    @property
    def alpha(self) -> Float[Array, " K"]:
        """Learning rates α_j."""
        return jnp.exp(self.log_rate) * self.share

    @property
    def beta(self) -> Float[Array, " K"]:
        """Momentum coefficients β_j."""
        return jax.nn.sigmoid(self.beta_logit)

    def values(self) -> dict[str, list[float]]:
        """``alpha`` and ``beta``."""
        alpha = _exp(self.log_rate) * np.asarray(self.share, np.float64)
        return {"alpha": alpha.tolist(), "beta": _sigmoid(self.beta_logit)}

    def as_optax(self) -> optax.GradientTransformation:
        return aggregated_momentum(self.alpha, self.beta)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Forgetting(_SoftThreshold):
    """Large gradients cut memory: ``β_j`` becomes ``β_j/(1 + |g/c|^p)``; p in (0, 1).

    ``g`` is the gradient itself, before scaling and saturation. It is a part of
    `Momenta` and no optimizer by itself: `forgetful` joins the two.
    """


def forgetful(
    before: optax.GradientTransformation, momenta: Momenta, forgetting: Forgetting
) -> optax.GradientTransformation:
    """``before``, then ``momenta`` whose coefficients the gradient that came in cuts."""
    alpha, beta = momenta.alpha, momenta.beta

    def init(params: PyTree) -> tuple[PyTree, PyTree]:
        return before.init(params), aggregated_momentum(alpha, beta).init(params)

    def update(
        gradients: PyTree, state: tuple[PyTree, PyTree], params: PyTree | None = None
    ) -> tuple[PyTree, tuple[PyTree, PyTree]]:
        passed, first = before.update(gradients, state[0], params)

        def advance(g: Entries, u: Entries, v: Entries) -> Entries:
            kept = 1.0 / (1.0 + forgetting.excess(g))
            rates, coefficients = (jnp.broadcast_to(a, v.shape) for a in (alpha, beta))
            return kept[..., None] * coefficients * v + rates * u[..., None]

        velocities = jax.tree.map(advance, gradients, passed, state[1].velocities)
        updates = jax.tree.map(lambda v: -jnp.sum(v, axis=-1), velocities)
        return updates, (first, state[1]._replace(velocities=velocities))

    return optax.GradientTransformation(init, update)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Schedule:
    """Step k's update times ``exp(Σ_i a_i ρ_i^k)``: its logarithm relaxes to 0.

    a_i < 0 is a warm-up, a_i > 0 a decay; ρ_i in (0, 1).
    """

    amplitude: Float[Array, " I"]
    decay_logit: Float[Array, " I"]

    @classmethod
    def of(cls, amplitude: Sequence[float], decay: Sequence[float]) -> Schedule:
        """The part with these values. Raises `UserError` for values outside their bounds."""
        _require_alike("amplitude", amplitude, "decay", decay)
        return cls(*_arrays(np.asarray(amplitude), np.array([_logit(d) for d in decay])))

    def values(self) -> dict[str, list[float]]:
        """``amplitude`` and ``decay``."""
        amplitude = np.asarray(self.amplitude, np.float64)
        return {"amplitude": amplitude.tolist(), "decay": _sigmoid(self.decay_logit)}

    def as_optax(self) -> optax.GradientTransformation:
        decay = jax.nn.sigmoid(self.decay_logit)

        def init(p: Entries) -> Entries:
            return jnp.ones((*p.shape, *decay.shape), p.dtype)

        def update(g: Entries, left: Entries) -> tuple[Entries, Entries]:
            shape = left.shape
            exponent = jnp.sum(jnp.broadcast_to(self.amplitude, shape) * left, axis=-1)
            return g * jnp.exp(exponent), left * jnp.broadcast_to(decay, shape)

        return _elementwise(init, update)


def _elementwise(
    init: Callable[[Any], Any], update: Callable[[Any, Any], tuple[Any, Any]]
) -> optax.GradientTransformation:
    """The optax pair of ``init(p)`` and ``update(g, state)`` of one array."""

    def init_all(params: PyTree) -> PyTree:
        return jax.tree.map(init, params)

    def update_all(
        gradients: PyTree, state: PyTree, params: PyTree | None = None
    ) -> tuple[PyTree, PyTree]:
        del params
        leaves = jax.tree.leaves(gradients)
        treedef: Any = jax.tree.structure(gradients)
        pairs = [update(g, s) for g, s in zip(leaves, treedef.flatten_up_to(state), strict=True)]
        return treedef.unflatten([g for g, _ in pairs]), treedef.unflatten([s for _, s in pairs])

    return optax.GradientTransformation(init_all, update_all)


def _power_of_size(a: Entries, power: Float[Array, ""]) -> Entries:
    return (jnp.square(a) + SMALLEST_SQUARE) ** (power / 2)


def _arrays(*values: float | np.ndarray) -> list[Array]:
    return [jnp.asarray(value, jnp.float32) for value in values]


def _exp(value: Array) -> Any:
    return np.exp(np.asarray(value, np.float64)).tolist()


def _sigmoid(value: Array) -> Any:
    return (1.0 / (1.0 + np.exp(-np.asarray(value, np.float64)))).tolist()


def _logit(value: float) -> float:
    return float(np.log(value) - np.log1p(-value))


def _require_alike(
    name: str, values: Sequence[float], other: str, coefficients: Sequence[float]
) -> None:
    """Finite ``values`` and as many ``coefficients``, each in (0, 1)."""
    if len(values) != len(coefficients) or not len(values):
        raise UserError(
            f"{name}, {other}: {len(values)} and {len(coefficients)} numbers are not allowed "
            "(as many of each, at least one)"
        )
    for value in values:
        finite_number(name, value)
    for value in coefficients:
        _require_inside(other, value)


def _require_inside(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise UserError(f"{name}: {value!r} is not allowed (above 0, below 1)")


def _require_positive(name: str, value: float) -> None:
    if not 0.0 < value < float("inf"):
        raise UserError(f"{name}: {value!r} is not allowed (a finite number > 0)")
