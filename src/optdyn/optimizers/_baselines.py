"""The hand-designed optimizers that learned ones are compared with (appendix C.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from optdyn.errors import require_choice
from optdyn.optimizers._aggregated_momentum import aggregated_momentum
from optdyn.optimizers._search_space import Axis

Hyperparameter = float | Float[Array, ""]

AGGMO_BETAS = (0.0, 0.9, 0.99)
"""The decay rates that Lucas et al. (2018) recommend for three velocities."""


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A hand-designed optimizer and the values searched for its hyperparameters.

    ``factory(**hyperparameters)`` gives the optax pair; hyperparameters may be
    traced arrays, so that thousands of settings are vectorised. ``grid`` has
    one `Axis` a hyperparameter.
    """

    name: str
    factory: Callable[..., optax.GradientTransformation]
    grid: tuple[Axis, ...]


def gradient_descent(alpha: Hyperparameter) -> optax.GradientTransformation:
    """``x ← x − α g``."""
    return optax.sgd(alpha)


def momentum(alpha: Hyperparameter, beta: Hyperparameter) -> optax.GradientTransformation:
    """``v ← β v + g``, ``x ← x − α v`` (Polyak 1964)."""
    return optax.sgd(alpha, momentum=beta)


def nesterov(alpha: Hyperparameter, beta: Hyperparameter) -> optax.GradientTransformation:
    """``v ← β v + g``, ``x ← x − α (β v + g)`` (Nesterov 1983, as optax writes it)."""
    return optax.sgd(alpha, momentum=beta, nesterov=True)


def aggmo(alpha: Hyperparameter) -> optax.GradientTransformation:
    """``v_j ← β_j v_j + g``, ``x ← x − (α/K) Σ_j v_j``, β = `AGGMO_BETAS` (Lucas et al. 2018)."""
    count = len(AGGMO_BETAS)
    return aggregated_momentum(alpha=alpha / count * jnp.ones(count), beta=AGGMO_BETAS)


def rmsprop(alpha: Hyperparameter, gamma: Hyperparameter) -> optax.GradientTransformation:
    """``s ← γ s + (1 − γ) g²``, ``x ← x − α g/√(s + ε)`` (Tieleman and Hinton 2012)."""
    return optax.rmsprop(alpha, decay=gamma)


def adam(
    alpha: Hyperparameter, beta1: Hyperparameter, beta2: Hyperparameter
) -> optax.GradientTransformation:
    """Adam with bias correction (Kingma and Ba 2015); ε = 1e-8."""
    return optax.adam(alpha, b1=beta1, b2=beta2)


BETA = Axis("beta", "one_minus_log", 0.0, 0.999, 61)
STEEPEST = Axis("alpha", "log", 1e-6, 10.0, 85)
"""Learning rates of optimizers whose steps grow with the gradient."""
NORMALIZED = Axis("alpha", "log", 1e-5, 10.0, 73)
"""Learning rates of optimizers whose steps do not."""

BASELINES: dict[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        Baseline("momentum", momentum, (STEEPEST, BETA)),
        Baseline(
            "rmsprop", rmsprop, (NORMALIZED, Axis("gamma", "one_minus_log", 0.0, 0.99999, 76))
        ),
        Baseline(
            "adam",
            adam,
            (
                NORMALIZED,
                Axis("beta1", "one_minus_log", 0.0, 0.999, 31),
                Axis("beta2", "one_minus_log", 0.0, 0.99999, 51),
            ),
        ),
        Baseline("gradient_descent", gradient_descent, (STEEPEST,)),
        Baseline("nesterov", nesterov, (STEEPEST, BETA)),
        Baseline("aggmo", aggmo, (STEEPEST,)),
    )
}


def get_baseline(name: str) -> Baseline:
    """The baseline called ``name``. Raises `UserError` for an unknown one."""
    require_choice("optimizer", name, list(BASELINES))
    return BASELINES[name]
