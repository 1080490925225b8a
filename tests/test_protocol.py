"""The outer loop's protocol, number by number (appendix C.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import helpers
from optdyn.errors import UserError
from optdyn.meta_training import MetaTraining, make_meta_step, start_training
from optdyn.precision import to_float64


def test_defaults_are_the_papers():
    protocol = MetaTraining()
    assert protocol.num_meta_steps == 5000
    assert protocol.unroll_length == 200
    assert protocol.batch_size == 32
    assert protocol.decay == 0.8
    assert protocol.decay_every == 500
    assert protocol.clip == 5.0
    assert protocol.l2 == 1e-5
    assert protocol.normalization == "none"
    assert protocol.max_cotangent_norm is None


@pytest.mark.usefixtures("x64")
def test_the_learning_rate_falls_by_a_fifth_every_500_steps():
    schedule = MetaTraining(learning_rate=0.5).schedule()
    for step, rate in ((0, 0.5), (499, 0.5), (500, 0.4), (999, 0.4), (1000, 0.32)):
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_the_clip_acts_on_each_parameter_by_itself():
    protocol = MetaTraining(learning_rate=0.1, l2=0.0)
    theta = {"a": jnp.zeros(3), "b": jnp.zeros(())}
    gradient = {"a": jnp.array([100.0, 0.3, -7.0]), "b": jnp.asarray(-1e9)}
    clipped = {"a": jnp.array([5.0, 0.3, -5.0]), "b": jnp.asarray(-5.0)}
    tx, adam = protocol.meta_optimizer(), optax.adam(0.1)
    ours, reference = tx.init(theta), adam.init(theta)
    for _ in range(3):
        updates, ours = tx.update(gradient, ours, theta)
        expected, reference = adam.update(clipped, reference, theta)
        for got, wanted in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_the_penalty_is_the_squared_norm_times_its_strength():
    theta = jnp.array([2.0, -0.5])
    tx = MetaTraining(l2=0.25).meta_optimizer()
    updates, _ = tx.update(jnp.zeros(2), tx.init(theta), theta)
    gradient = jax.grad(lambda t: 0.25 * jnp.sum(t**2))(theta)
    adam = optax.adam(MetaTraining().learning_rate)
    expected, _ = adam.update(gradient, adam.init(theta), theta)
    np.testing.assert_allclose(updates, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("learning_rate", float("nan")),
        ("learning_rate", 0.0),
        ("batch_size", 0),
        ("num_meta_steps", -1),
        ("clip", float("inf")),
        ("l2", -1.0),
        ("normalization", "last"),
        ("max_cotangent_norm", 0.0),
    ],
)
def test_bad_settings_are_named(setting, value):
    with pytest.raises(UserError, match=setting):
        MetaTraining(**{setting: value})


@pytest.mark.usefixtures("x64")
def test_the_running_average_is_the_mean_at_first_and_forgets_later():
    protocol = MetaTraining(unroll_length=3, batch_size=2, learning_rate=0.1, average_over=3)
    rnn = to_float64(helpers.random_rnn(units=2))
    meta_step = make_meta_step(helpers.small_task("linear_regression"), protocol, seed=0)
    state, seen = start_training(rnn, protocol), []
    for _ in range(5):
        state, _ = meta_step(state)
        seen.append(helpers.as_vector(state.optimizer))
    mean = np.mean(seen[:3], axis=0)
    for theta in seen[3:]:
        mean = mean + (theta - mean) / 3
    np.testing.assert_allclose(helpers.as_vector(state.averaged), mean, rtol=1e-9, atol=1e-12)


def test_without_an_average_training_gives_the_meta_parameters():
    state = start_training(helpers.random_rnn(units=2), MetaTraining())
    assert state.average is None
    assert state.averaged is state.optimizer
