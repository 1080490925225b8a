"""Linear and reduced optimizers against each other and against what they come from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics_helpers import adam_state, learned, learned_at_fixed_point
from helpers import small_part
from optdyn.dynamics import eigenmodes, linear_optimizer, linearize, reduce, settle, step_map
from optdyn.errors import UserError
from optdyn.inner_loop._unroll import unroll
from optdyn.optimizers._aggregated_momentum import aggregated_momentum
from optdyn.precision import double_precision
from optdyn.tasks import LinearRegression, Problem

pytestmark = pytest.mark.usefixtures("x64")
STEPS = 60


@pytest.fixture(scope="module")
def problem() -> Problem:
    with double_precision():
        return jax.jit(LinearRegression(n=3).sample)(jax.random.key(0))


def losses(tx: optax.GradientTransformation, problem: Problem) -> np.ndarray:
    return np.asarray(jax.jit(lambda p: unroll(tx, p, STEPS).losses)(problem))


def delayed_descent(rate: float) -> optax.GradientTransformation:
    """Δx_k = −rate·g_{k−1}."""

    def update(gradients, state, params=None):
        return jax.tree.map(lambda s: -rate * s, state), gradients

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


LINEAR = {
    "momentum": optax.sgd(0.3, momentum=0.9),
    "nesterov": optax.sgd(0.3, momentum=0.9, nesterov=True),
    "aggmo": aggregated_momentum([0.1, 0.02, 0.03], [0.9, 0.99, 0.0]),
    "descent": optax.sgd(0.3),
    "delay": delayed_descent(0.3),
    "decoupled_decay": optax.chain(
        optax.trace(0.9), optax.add_decayed_weights(0.1), optax.scale(-0.1)
    ),
    "coupled_decay": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)),
}


FEW = ("nesterov", "aggmo", "delay", "decoupled_decay", "coupled_decay")


@pytest.mark.parametrize("name", small_part(FEW, LINEAR))
def test_linear_optimizers_are_their_linearisation(name: str, problem: Problem) -> None:
    tx = LINEAR[name]
    lin = linearize(tx, gradient=0.7, param=-0.4)
    expected = losses(tx, problem)
    np.testing.assert_allclose(losses(linear_optimizer(lin), problem), expected, rtol=1e-9)
    np.testing.assert_allclose(losses(reduce(lin), problem), expected, rtol=1e-8)


def test_reduction_equals_linear_optimizer_for_a_learned_one(problem: Problem) -> None:
    rnn, step = learned("gru")
    # At the fixed point, and where a residual remains.
    for lin in (learned_at_fixed_point("gru"), linearize(step, h=step.h + 0.1)):
        modes = eigenmodes(lin)
        assert np.any(modes.beta.imag != 0)
        expected = losses(linear_optimizer(lin, h0=rnn.h0), problem)
        actual = losses(reduce(modes, "all", h0=rnn.h0), problem)
        np.testing.assert_allclose(actual, expected, rtol=1e-8)


def test_initial_transient_matters(problem: Problem) -> None:
    rnn, _ = learned("gru")
    lin = learned_at_fixed_point("gru")
    with_transient, without = (losses(reduce(lin, h0=h0), problem) for h0 in (rnn.h0, None))
    assert np.max(np.abs(without / with_transient - 1)) > 1e-3


def test_linear_optimizer_is_the_first_order_part() -> None:
    _, step = learned("gru")
    lin = learned_at_fixed_point("gru")
    tx = linear_optimizer(lin)
    state, h = tx.init(jnp.zeros(1)), lin.state
    step, update = jax.jit(step), jax.jit(tx.update)
    for g in 1e-4 * np.cos(np.arange(20.0)):
        h, dx = step(h, g)
        updates, state = update(np.array([g]), state)
        assert float(updates[0]) == pytest.approx(float(dx), abs=1e-7)


def test_kept_modes_are_aggregated_momentum(problem: Problem) -> None:
    lin = linearize(aggregated_momentum([0.1, 0.02, 0.03], [0.9, 0.99, 0.5]))
    modes = eigenmodes(lin)
    slow = int(np.argmin(np.abs(modes.beta - 0.99)))
    expected = losses(optax.sgd(0.02, momentum=0.99), problem)
    np.testing.assert_allclose(losses(reduce(modes, [slow]), problem), expected, rtol=1e-8)
    others = np.setdiff1d(np.arange(3), [slow])
    expected = losses(aggregated_momentum([0.1, 0.03], [0.9, 0.5]), problem)
    np.testing.assert_allclose(losses(reduce(modes, others), problem), expected, rtol=1e-8)


def test_feedthrough_is_kept_with_no_mode(problem: Problem) -> None:
    lin = linearize(optax.sgd(0.3, momentum=0.9, nesterov=True))
    expected = losses(optax.sgd(0.3), problem)
    np.testing.assert_allclose(losses(reduce(lin, []), problem), expected, rtol=1e-9)


def test_summed_parts_are_the_whole() -> None:
    """Without drift or feed-through, the updates of single modes add up."""
    rnn, _ = learned("gru")
    lin = learned_at_fixed_point("gru")
    modes = eigenmodes(lin)
    units = [j for j in range(8) if modes.beta[j].imag >= 0]
    gradients = np.random.default_rng(0).normal(size=(10, 2))

    def run(tx: optax.GradientTransformation) -> np.ndarray:
        state, history = tx.init(jnp.zeros(2)), []
        for g in gradients:
            updates, state = tx.update(jnp.asarray(g), state)
            history.append(np.asarray(updates) - lin.drift)
        return np.array(history)

    parts = sum(run(reduce(modes, [j], h0=rnn.h0)) for j in units)
    np.testing.assert_allclose(parts, run(linear_optimizer(lin, h0=rnn.h0)), atol=1e-11)


def test_frozen_adam_is_its_linearisation_at_a_constant_second_moment(problem: Problem) -> None:
    tx = optax.adam(0.1)
    lin = linearize(tx, state=adam_state(tx, 2.0), count=10**9)
    rate = 0.1 * 0.1 / (2.0 * np.sqrt(0.999) + 1e-8)
    expected = losses(optax.sgd(rate, momentum=0.9), problem)
    np.testing.assert_allclose(losses(reduce(lin, [0]), problem), expected, rtol=1e-9)


def test_schedule_free_at_a_frozen_count(problem: Problem) -> None:
    """With z − x as its state, the linear optimizer follows the real one step by step."""
    tx = optax.contrib.schedule_free(optax.sgd(0.1), learning_rate=0.1, b1=0.9)
    step = step_map(tx, state=settle(tx, steps=50))
    lin = linearize(step)
    optimizer = linear_optimizer(lin, h0=np.zeros(1))
    x, h = 1.7, np.array([1.7])
    state = optimizer.init(jnp.array([x]))
    step, update = jax.jit(step), jax.jit(optimizer.update)
    for k in range(20):
        g = np.cos(k) + x
        h, dx = step(h, g, x)
        updates, state = update(np.array([g]), state)
        assert float(updates[0]) == pytest.approx(float(dx), abs=1e-10)
        x += float(dx)


def test_batch_of_problems(problem: Problem) -> None:
    tx = reduce(learned_at_fixed_point("gru"), [0])
    batch = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), problem)
    curves = jax.jit(jax.vmap(lambda p: unroll(tx, p, STEPS).losses))(batch)
    np.testing.assert_allclose(curves[0], losses(tx, problem), rtol=1e-12)


def test_bad_input() -> None:
    lin = linearize(LINEAR["decoupled_decay"])
    with pytest.raises(UserError, match="h0"):
        linear_optimizer(lin, h0=np.zeros(2))
    with pytest.raises(UserError, match="h0"):
        reduce(lin, h0=np.zeros(2))
    with pytest.raises(UserError, match="keep"):
        reduce(lin, [1])
    tx = linear_optimizer(lin)
    with pytest.raises(UserError, match="params"):
        tx.update(jnp.ones(1), tx.init(jnp.ones(1)))


def test_aggregated_momentum_with_one_velocity_is_momentum(problem: Problem) -> None:
    expected = losses(optax.sgd(0.2, momentum=0.9), problem)
    np.testing.assert_allclose(losses(aggregated_momentum([0.2], [0.9]), problem), expected)
    traced = jax.jit(lambda a, b: unroll(aggregated_momentum(a, b), problem, STEPS).losses)(
        jnp.array([0.2]), jnp.array([0.9])
    )
    np.testing.assert_allclose(traced, expected)
    with pytest.raises(UserError, match="alpha, beta"):
        aggregated_momentum([0.1], [0.9, 0.99])
