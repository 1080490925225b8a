"""Hand-designed optimizers against their textbook recursions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optdyn.errors import UserError
from optdyn.inner_loop._unroll import unroll
from optdyn.optimizers._baselines import AGGMO_BETAS, BASELINES, get_baseline
from optdyn.tasks import Problem, make_task

ALL = sorted(BASELINES)

SENSIBLE = {
    "quadratic": {
        "gradient_descent": {"alpha": 1.0},
        "momentum": {"alpha": 1.0, "beta": 0.5},
        "nesterov": {"alpha": 0.5, "beta": 0.5},
        "aggmo": {"alpha": 0.3},
        "rmsprop": {"alpha": 0.05, "gamma": 0.9},
        "adam": {"alpha": 0.1, "beta1": 0.8, "beta2": 0.99},
    },
    "rosenbrock": {
        "gradient_descent": {"alpha": 3e-4},
        "momentum": {"alpha": 2e-4, "beta": 0.5},
        "nesterov": {"alpha": 2e-4, "beta": 0.5},
        "aggmo": {"alpha": 3e-4},
        "rmsprop": {"alpha": 0.02, "gamma": 0.99},
        "adam": {"alpha": 0.1, "beta1": 0.8, "beta2": 0.99},
    },
}


def problem_called(name: str) -> Problem:
    if name == "rosenbrock":
        return make_task("rosenbrock").sample(jax.random.key(0))
    curvature = jnp.array([1.0, 0.3, 0.1])
    return Problem(params=jnp.ones(3), loss_fn=lambda x: 0.5 * jnp.sum(curvature * x**2))


@pytest.mark.parametrize("task", sorted(SENSIBLE))
@pytest.mark.parametrize("name", ALL)
def test_the_loss_falls(name: str, task: str) -> None:
    tx = BASELINES[name].factory(**SENSIBLE[task][name])
    losses = jax.jit(lambda: unroll(tx, problem_called(task), 100).losses)()
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("name", ALL)
def test_hyperparameters_may_be_traced(name: str) -> None:
    """Settings vectorised in one call give what each gives by itself."""
    baseline = BASELINES[name]
    assert set(SENSIBLE["quadratic"][name]) == {axis.name for axis in baseline.grid}
    hyperparameters = SENSIBLE["quadratic"][name]
    columns = {key: np.array([value, 0.9 * value]) for key, value in hyperparameters.items()}
    problem = problem_called("quadratic")

    def losses(combination: dict) -> jax.Array:
        return unroll(baseline.factory(**combination), problem, 10).losses

    together = jax.jit(jax.vmap(losses))(columns)
    alone = jax.jit(lambda: losses({key: float(column[1]) for key, column in columns.items()}))()
    np.testing.assert_allclose(together[1], alone, rtol=1e-5)
    assert not np.allclose(together[0], together[1])


def textbook(name: str, g: np.ndarray, **p: float) -> np.ndarray:
    """The updates for a sequence of gradients of one parameter, straight from the papers."""
    updates = []
    v, s = 0.0, 0.0
    velocities = np.zeros(len(AGGMO_BETAS))
    for k, gradient in enumerate(g, start=1):
        if name == "gradient_descent":
            updates.append(-p["alpha"] * gradient)
        elif name in ("momentum", "nesterov"):
            v = p["beta"] * v + gradient
            look_ahead = p["beta"] * v + gradient
            updates.append(-p["alpha"] * (look_ahead if name == "nesterov" else v))
        elif name == "aggmo":
            velocities = np.array(AGGMO_BETAS) * velocities + gradient
            updates.append(-p["alpha"] * velocities.mean())
        elif name == "rmsprop":
            s = p["gamma"] * s + (1 - p["gamma"]) * gradient**2
            updates.append(-p["alpha"] * gradient / np.sqrt(s + 1e-8))
        else:
            v = p["beta1"] * v + (1 - p["beta1"]) * gradient
            s = p["beta2"] * s + (1 - p["beta2"]) * gradient**2
            v_hat, s_hat = v / (1 - p["beta1"] ** k), s / (1 - p["beta2"] ** k)
            updates.append(-p["alpha"] * v_hat / (np.sqrt(s_hat) + 1e-8))
    return np.array(updates)


@pytest.mark.parametrize("name", ALL)
def test_updates_are_the_textbook_ones(name: str, x64: None) -> None:
    gradients = np.random.default_rng(0).normal(size=12)
    hyperparameters = SENSIBLE["quadratic"][name]
    tx = BASELINES[name].factory(**hyperparameters)
    state = tx.init(jnp.zeros(()))
    updates = []
    for gradient in gradients:
        update, state = tx.update(jnp.asarray(gradient), state, jnp.zeros(()))
        updates.append(float(update))
    expected = textbook(name, gradients, **hyperparameters)
    np.testing.assert_allclose(updates, expected, rtol=1e-10)


def test_an_unknown_baseline_is_named() -> None:
    with pytest.raises(UserError, match=r"optimizer: unknown value 'sgdm' \(allowed: .*momentum"):
        get_baseline("sgdm")
