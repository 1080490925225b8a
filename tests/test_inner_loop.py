"""The inner loop and the meta-objective against independent answers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import helpers
from optdyn.errors import UserError
from optdyn.inner_loop._objective import meta_loss
from optdyn.inner_loop._unroll import RECORDABLE, unroll
from optdyn.tasks import LinearRegression, Problem, joint, sample_batch


@pytest.mark.usefixtures("x64")
def test_gradient_descent_on_a_quadratic_has_its_closed_form():
    curvature, rate, steps = jnp.array([1.0, 0.3]), 0.4, 12
    problem = Problem(
        params=jnp.array([2.0, -1.0]), loss_fn=lambda x: 0.5 * jnp.sum(curvature * x**2)
    )
    trajectory = unroll(optax.sgd(rate), problem, steps, record=RECORDABLE)
    k = np.arange(steps + 1)[:, None]
    path = np.array([2.0, -1.0])[None] * (1 - rate * np.asarray(curvature)[None]) ** k
    np.testing.assert_allclose(
        trajectory.losses, 0.5 * np.sum(np.asarray(curvature)[None] * path**2, axis=1), rtol=1e-12
    )
    np.testing.assert_allclose(trajectory.params, path[-1], rtol=1e-12)
    np.testing.assert_allclose(trajectory.record["params"], path[:-1], rtol=1e-12)
    np.testing.assert_allclose(trajectory.record["updates"], np.diff(path, axis=0), rtol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("segment", [1, 3, 5, 20])
def test_segments_change_nothing(segment):
    problem = LinearRegression().sample(jax.random.key(0))
    tx = optax.adam(0.1)
    whole = unroll(tx, problem, 10, record=("params",))
    cut = unroll(tx, problem, 10, record=("params",), segment=segment)
    np.testing.assert_array_equal(whole.losses, cut.losses)
    np.testing.assert_array_equal(whole.record["params"], cut.record["params"])


@pytest.mark.usefixtures("x64")
def test_a_joint_problem_is_its_problems_side_by_side():
    keys = jax.random.split(jax.random.key(0), 3)
    batch = sample_batch(helpers.small_task("two_moons"), keys)
    tx = helpers.random_rnn().as_optax()
    together = jax.jit(lambda batch: unroll(tx, joint(batch), 5).losses)(batch)
    alone = jax.jit(jax.vmap(lambda problem: unroll(tx, problem, 5).losses))(batch)
    np.testing.assert_allclose(together.T, alone, rtol=1e-12)


def test_meta_loss_averages_what_the_updates_reached():
    losses = jnp.array([[4.0, 10.0], [2.0, 5.0], [1.0, 1.0]])
    np.testing.assert_allclose(meta_loss(losses), [1.5, 3.0])
    np.testing.assert_allclose(meta_loss(losses, "first"), [0.375, 0.3])
    with pytest.raises(UserError, match="normalization"):
        meta_loss(losses, "last")


def test_unknown_records_and_step_counts_are_refused():
    problem = LinearRegression().sample(jax.random.key(0))
    with pytest.raises(UserError, match="record"):
        unroll(optax.sgd(0.1), problem, 2, record=("weather",))
    with pytest.raises(UserError, match="num_steps"):
        unroll(optax.sgd(0.1), problem, -1)
