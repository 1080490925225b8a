"""The hand-designed optimizers that `optdyn.dynamics.identify` compares with."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg
from jaxtyping import Array, Float

from optdyn.dynamics._responses import Responses, reversal_threshold
from optdyn.dynamics._step_map import StepMap
from optdyn.optimizers._aggregated_momentum import aggregated_momentum
from optdyn.optimizers._baselines import gradient_descent, momentum, nesterov

Starts = Callable[[StepMap, Responses], list[tuple[float, ...]]]


@dataclasses.dataclass(frozen=True)
class Transform:
    """From the whole real line to a hyperparameter's range, and back."""

    forward: Callable[[Any], Any]
    inverse: Callable[[float], float]


POSITIVE = Transform(jnp.exp, np.log)
WITHIN_ONE = Transform(jnp.tanh, np.arctanh)
FRACTION = Transform(jax.nn.sigmoid, lambda p: np.log(p / (1.0 - p)))

# Between the amplitudes of the probes, which are decades apart.
CLIPS = tuple(10.0 ** np.arange(-2.5, 3.0))
SMALL = 1e-8
ROUNDING = 1e-13
NEARLY_ONE = 1.0 - 1e-9
DISTINCT = 1e-4
USUAL_MOMENTA = (0.0, 0.5, 0.9, 0.99)
USUAL_LION: list[tuple[float, ...]] = [(0.9, 0.99)]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A family of optimizers to fit.

    ``factory(**hyperparameters)`` gives the optax pair. ``rates``: the
    hyperparameters in which its updates are linear. ``shape``: the others, each with
    its range. ``starts(step, seen)``: values of ``shape`` to start a fit from, which may
    look at the optimizer to be identified and at its responses. ``smooth``: whether the
    updates depend smoothly on ``shape``; otherwise the starts are all that is tried.
    ``allowed(hyperparameters, gradient_scale)``: whether a fit is still of this kind.
    """

    name: str
    factory: Callable[..., optax.GradientTransformation]
    rates: tuple[str, ...]
    shape: dict[str, Transform]
    starts: Starts
    smooth: bool = True
    allowed: Callable[[dict[str, float], float], bool] = lambda values, gradient_scale: True

    @property
    def size(self) -> int:
        """The number of hyperparameters."""
        return len(self.rates) + len(self.shape)


def _grid(*values: tuple[float, ...]) -> Starts:
    return lambda step, seen: list(itertools.product(*values))


def _aggmo(**hyperparameters: Float[Array, ""]) -> optax.GradientTransformation:
    alpha = jnp.stack([hyperparameters[f"alpha{j}"] for j in (1, 2, 3)])
    beta = jnp.stack([hyperparameters[f"beta{j}"] for j in (1, 2, 3)])
    return aggregated_momentum(alpha, beta)


def _rmsprop(alpha: Any, gamma: Any, eps: Any) -> optax.GradientTransformation:
    return optax.rmsprop(alpha, decay=gamma, eps=eps)


def _adam(alpha: Any, beta1: Any, beta2: Any, eps: Any) -> optax.GradientTransformation:
    return optax.adam(alpha, b1=beta1, b2=beta2, eps=eps)


def _sign(alpha: Any) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_sign(), optax.scale(-alpha))


def _lion(alpha: Any, beta1: Any, beta2: Any) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_lion(beta1, beta2), optax.scale(-alpha))


def _clipped(alpha: Any, beta: Any, clip: Any) -> optax.GradientTransformation:
    return optax.chain(optax.clip(clip), momentum(alpha, beta))


def _adapts_by(power: int) -> Callable[[dict[str, float], float], bool]:
    """With an ε above the gradients' size an adaptive optimizer is a linear one."""
    return lambda values, scale: values["eps"] <= scale**power


def _one_timescale(step: StepMap, seen: Responses) -> list[tuple[float, ...]]:
    told = _decay_rates(seen.of_kind("impulse")[0], 2)
    return [(beta,) for beta in (*told, *USUAL_MOMENTA)]


def _three_timescales(step: StepMap, seen: Responses) -> list[tuple[float, ...]]:
    spread = list(itertools.combinations((0.995, 0.97, 0.9, 0.7, 0.3, -0.3), 3))
    told = _decay_rates(seen.of_kind("impulse")[0], 3)
    return [(*told, 0.995, 0.7, -0.3)[:3], *spread]


def _decay_rates(response: Float[np.ndarray, " T"], count: int) -> list[float]:
    """At most ``count`` β_j, within ±1, with the response near Σ α_j β_j^k (Ho & Kalman 1966).

    Of those that are no two timescales, such as the two zeros of a delay, one is told.
    """
    half = len(response) // 2
    now = scipy.linalg.hankel(response[:half], response[half - 1 : -1])
    later = scipy.linalg.hankel(response[1 : half + 1], response[half:])
    U, sizes, V = np.linalg.svd(now)
    rank = min(count, int(np.sum(sizes > ROUNDING * sizes[0])))
    roots = 1.0 / np.sqrt(sizes[:rank])
    rates = np.linalg.eigvals(roots[:, None] * (U[:, :rank].T @ later @ V[:rank].T) * roots)
    rates = np.sort(np.clip(rates.real, -NEARLY_ONE, NEARLY_ONE))
    return rates[np.diff(rates, prepend=-np.inf) > DISTINCT].tolist()


def _adam_starts(step: StepMap, seen: Responses) -> list[tuple[float, ...]]:
    return list(itertools.product((0.0, 0.9), (0.9, 0.999), (SMALL, 0.1 * seen.gradient_scale)))


def _rmsprop_starts(step: StepMap, seen: Responses) -> list[tuple[float, ...]]:
    return list(itertools.product((0.5, 0.9, 0.99), (SMALL, (0.1 * seen.gradient_scale) ** 2)))


def _clipped_starts(step: StepMap, seen: Responses) -> list[tuple[float, ...]]:
    return [(beta, seen.gradient_scale * clip) for beta in USUAL_MOMENTA for clip in CLIPS]


def _lion_starts(step: StepMap, seen: Responses) -> list[tuple[float, ...]]:
    """The values that the reversal thresholds tell; where they tell none, the usual ones.

    They tell something of an optimizer whose updates are all of one size.

    At lag 0 the threshold is b₁(1−b₂)/(1−b₁), and b₂ times that at lag 1.
    """
    sizes = np.abs(seen.updates)
    largest = np.max(sizes)
    if not np.all((sizes < SMALL * largest) | (sizes > (1.0 - SMALL) * largest)):
        return USUAL_LION
    first, second = (
        reversal_threshold(step, gradient_scale=seen.gradient_scale, lag=k) for k in (0, 1)
    )
    if not 0.0 < second < first < np.inf:
        return USUAL_LION
    beta2 = second / first
    return [(first / (first + 1.0 - beta2), beta2)]


CANDIDATES: dict[str, Candidate] = {
    candidate.name: candidate
    for candidate in (
        Candidate("gradient_descent", gradient_descent, ("alpha",), {}, _grid()),
        Candidate("sign", _sign, ("alpha",), {}, _grid()),
        Candidate("momentum", momentum, ("alpha",), {"beta": WITHIN_ONE}, _one_timescale),
        Candidate("nesterov", nesterov, ("alpha",), {"beta": WITHIN_ONE}, _one_timescale),
        Candidate(
            "clipped_momentum",
            _clipped,
            ("alpha",),
            {"beta": WITHIN_ONE, "clip": POSITIVE},
            _clipped_starts,
        ),
        Candidate(
            "rmsprop",
            _rmsprop,
            ("alpha",),
            {"gamma": FRACTION, "eps": POSITIVE},
            _rmsprop_starts,
            allowed=_adapts_by(2),
        ),
        Candidate(
            "lion",
            _lion,
            ("alpha",),
            {"beta1": FRACTION, "beta2": FRACTION},
            _lion_starts,
            smooth=False,
        ),
        Candidate(
            "adam",
            _adam,
            ("alpha",),
            {"beta1": WITHIN_ONE, "beta2": FRACTION, "eps": POSITIVE},
            _adam_starts,
            allowed=_adapts_by(1),
        ),
        Candidate(
            "aggmo",
            _aggmo,
            ("alpha1", "alpha2", "alpha3"),
            {"beta1": WITHIN_ONE, "beta2": WITHIN_ONE, "beta3": WITHIN_ONE},
            _three_timescales,
        ),
    )
}
