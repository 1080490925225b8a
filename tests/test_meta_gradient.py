"""The meta-gradient against finite differences, and its containment rules."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import helpers
from optdyn.errors import UserError
from optdyn.inner_loop._objective import meta_loss
from optdyn.inner_loop._unroll import unroll
from optdyn.meta_training import UnrollOptions, meta_value_and_grad
from optdyn.meta_training._containment import Contained, contain_cotangents, hold_exploded
from optdyn.optimizers import CELLS
from optdyn.random_streams import keys_at
from optdyn.tasks import TASKS, Problem, sample_batch

BATCH = 2
STEPS = 6


def plain_meta_objective(rnn, task, key, batch, steps, normalization):
    """The definition, problem by problem: no joint problem, no containment."""
    problems = sample_batch(task, keys_at(key, jnp.arange(batch)))
    tx = rnn.as_optax()
    each = jax.vmap(lambda p: meta_loss(unroll(tx, p, steps).losses, normalization))(problems)
    return jnp.mean(each)


@pytest.mark.parametrize(
    ("cell", "task_name"),
    helpers.small_part(
        [("gru", "linear_regression"), *(("rnn", task) for task in TASKS)],
        itertools.product(CELLS, TASKS),
    ),
)
@pytest.mark.usefixtures("x64")
def test_meta_gradient_equals_central_differences(task_name, cell):
    task, key = helpers.small_task(task_name), jax.random.key(3)
    rnn = helpers.random_rnn(cell, units=3)
    options = UnrollOptions(num_steps=STEPS, normalization="first")
    value, gradient, diagnostics = jax.jit(
        lambda r: meta_value_and_grad(r, task, key, batch_size=BATCH, options=options)
    )(rnn)
    theta, unravel = ravel_pytree(rnn)

    @jax.jit
    def objective(vector):
        return plain_meta_objective(unravel(vector), task, key, BATCH, STEPS, "first")

    np.testing.assert_allclose(value, objective(theta), rtol=1e-12)
    assert int(diagnostics.exploded) == 0
    theta, slope = np.asarray(theta), np.concatenate(list(map(np.ravel, jax.tree.leaves(gradient))))
    direction = np.random.default_rng(9).normal(size=theta.shape)
    for vector in (direction, direction**3, np.abs(direction)):
        unit = vector / np.linalg.norm(vector)
        step = 1e-5
        difference = (objective(theta + step * unit) - objective(theta - step * unit)) / (2 * step)
        np.testing.assert_allclose(slope @ unit, difference, rtol=2e-6, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_segments_and_chunks_leave_the_gradient_unchanged():
    task, key, rnn = helpers.small_task("rosenbrock"), jax.random.key(1), helpers.random_rnn()

    def gradient(**options):
        chosen = UnrollOptions(num_steps=11, normalization="first", **options)
        _, grad, _ = helpers.compiled_gradient(rnn, task, key, batch_size=6, options=chosen)
        return helpers.as_vector(grad)

    exact = gradient()
    few = [{"segment": 4}, {"chunk": 3, "segment": 5}]
    for options in helpers.small_part(few, [*few, {"segment": 1}, {"chunk": 2}]):
        np.testing.assert_allclose(gradient(**options), exact, rtol=1e-10, atol=1e-14)


def test_bad_batch_size_is_refused():
    with pytest.raises(UserError, match="batch size: 5"):
        meta_value_and_grad(
            helpers.random_rnn(),
            helpers.small_task("rosenbrock"),
            jax.random.key(0),
            batch_size=5,
            options=UnrollOptions(num_steps=2, chunk=2),
        )


DEVICES_SCRIPT = """
import jax, numpy as np, sys
jax.config.update("jax_num_cpu_devices", 4)
sys.path.insert(0, "tests")
import helpers, optax, jax.numpy as jnp
from test_stochastic_tasks import NoisyRegression
from optdyn.meta_training import UnrollOptions, meta_value_and_grad
from optdyn.meta_training._components import make_mesh
task, rnn, key = helpers.small_task("linear_regression"), helpers.random_rnn(), jax.random.key(2)
def run(gradient, batch, devices, components=1):
    options = UnrollOptions(num_steps=20, normalization="first", gradient=gradient, es_sigma=0.1)
    mesh = make_mesh(jax.devices()[:devices], components) if devices > 1 else None
    value, grad, _ = jax.jit(lambda r: meta_value_and_grad(
        r, task, key, batch_size=batch, options=options, mesh=mesh))(rnn)
    return float(value), np.asarray(helpers.as_vector(grad))
few = [("combined", 5, [(4, 2)])]
more = [("exact", 8, [(2,), (4,)]), ("es", 5, [(4, 2)])]
for gradient, batch, others in helpers.small_part(few, few + more):
    value, grad = run(gradient, batch, 1)
    for devices in others:
        other_value, other = run(gradient, batch, *devices)
        np.testing.assert_allclose(other_value, value, rtol=1e-6)
        np.testing.assert_allclose(other, grad, rtol=1e-4, atol=1e-5 * np.abs(grad).max())
rate, batches = helpers.Rate(jnp.float32(-1.0), lambda: optax.trace(0.9)), NoisyRegression()
def of_batches(mesh):
    value, grad, _ = jax.jit(lambda r: meta_value_and_grad(
        r, batches, key, batch_size=4, options=UnrollOptions(num_steps=5), mesh=mesh))(rate)
    return float(value), float(grad.log_rate)
np.testing.assert_allclose(of_batches(make_mesh(jax.devices()[:2])), of_batches(None), rtol=1e-5)
print("equal")
"""


def test_gradients_of_whole_losses_and_of_batches_are_the_same_on_any_devices():
    done = subprocess.run(
        [sys.executable, "-c", DEVICES_SCRIPT], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "equal", done.stderr


@dataclasses.dataclass(frozen=True)
class SometimesExploding:
    """Some problems' losses are near float32's largest number, their curvatures beyond it."""

    def sample(self, key):
        exponent = jnp.where(jax.random.bernoulli(key), 100.0, 0.1)
        return Problem(
            params=jnp.full((2,), 0.93),
            loss_fn=lambda x, scale: jnp.sum(jnp.exp(scale * x**2)),
            data=(exponent,),
        )


@pytest.mark.parametrize("bound", [None, 1.0])
def test_an_exploding_problem_leaves_the_gradient_finite_and_is_counted(bound):
    rnn = helpers.random_rnn(scale=0.5)
    options = UnrollOptions(num_steps=20, normalization="first", max_cotangent_norm=bound)
    value, gradient, diagnostics = helpers.compiled_gradient(
        rnn, SometimesExploding(), jax.random.key(0), batch_size=8, options=options
    )
    assert jnp.isfinite(value)
    assert 0 < int(diagnostics.exploded) < 8
    assert bool(jnp.all(jnp.isfinite(helpers.as_vector(gradient))))
    assert float(jnp.abs(helpers.as_vector(gradient)).max()) > 0
    assert int(diagnostics.contained) > 0


def test_cotangents_are_bounded_problem_by_problem():
    carry = (jnp.ones((3, 2)), jnp.ones((6, 4)))
    probe = jnp.zeros(3)
    cotangent = (
        jnp.array([[3.0, 4.0], [0.1, 0.0], [jnp.nan, 1.0]]),
        jnp.zeros((6, 4)),
    )
    for bound, expected_first in ((1.0, [0.6, 0.8]), (None, [3.0, 4.0])):
        _, reverse = jax.vjp(lambda c, p, b=bound: contain_cotangents(c, p, b), carry, probe)
        (params, state), events = reverse(cotangent)
        np.testing.assert_allclose(params[0], expected_first, rtol=1e-6)
        np.testing.assert_allclose(params[1], [0.1, 0.0])
        np.testing.assert_allclose(params[2], [0.0, 1.0])
        assert not state.any()
        np.testing.assert_allclose(events, [bound is not None, 0, 1])


def test_a_problem_that_leaves_the_finite_world_stays_where_it_is_alone():
    sane = jnp.array([True, True])
    before = (jnp.zeros((2, 2)), Contained(sane, jnp.zeros((2, 2)), jnp.zeros((4, 3))))
    after = (
        jnp.array([[1.0, 2.0], [jnp.inf, 0.0]]),
        Contained(sane.at[0].set(False), jnp.zeros((2, 2)), jnp.ones((4, 3))),
    )
    params, state = hold_exploded(before, after)
    np.testing.assert_allclose(params, [[1.0, 2.0], [0.0, 0.0]])
    np.testing.assert_allclose(state.events, [[1, 0], [0, 1]])


@dataclasses.dataclass(frozen=True)
class Kinked:
    """Every second problem has a finite loss whose gradient at the start is not."""

    def sample(self, key):
        weight = jnp.where(jax.random.bernoulli(key), 1.0, 0.0)
        return Problem(
            params=jnp.zeros((2,)),
            loss_fn=lambda x, w: 1.0 + jnp.sum(w * jnp.sqrt(x**2) + (1 - w) * (x - 1) ** 2),
            data=(weight,),
        )


def test_gradients_that_are_not_finite_are_counted_though_losses_are():
    key, batch = jax.random.key(0), 8
    kinked = sum(Kinked().sample(k).data[0] > 0 for k in keys_at(key, jnp.arange(batch)))
    rnn = helpers.random_rnn(scale=0.5)
    options = UnrollOptions(num_steps=3)
    value, gradient, diagnostics = helpers.compiled_gradient(
        rnn, Kinked(), key, batch_size=batch, options=options
    )
    assert jnp.isfinite(value)
    assert bool(jnp.all(jnp.isfinite(helpers.as_vector(gradient))))
    assert 0 < int(kinked) < batch
    assert int(diagnostics.contained) >= int(kinked)


def test_held_problems_count_as_exploded_though_their_losses_stand_still():
    rnn = helpers.random_rnn()
    leaping = dataclasses.replace(rnn, w=jnp.full_like(rnn.w, 1e9), h0=jnp.ones_like(rnn.h0))
    options = UnrollOptions(num_steps=3, normalization="first")
    task = helpers.small_task("linear_regression")
    _, gradient, diagnostics = helpers.compiled_gradient(
        leaping, task, jax.random.key(0), batch_size=4, options=options
    )
    assert int(diagnostics.exploded) == 4
    assert not helpers.as_vector(gradient).any()


@dataclasses.dataclass(frozen=True)
class AtItsOptimum:
    """Starts where its loss is zero, by which it cannot be divided."""

    def sample(self, key):
        return Problem(params=jnp.zeros((2,)), loss_fn=lambda x: jnp.sum(x**2))


@pytest.mark.parametrize("bound", [None, 1.0])
def test_a_loss_that_cannot_be_normalised_poisons_nothing(bound):
    options = UnrollOptions(num_steps=3, normalization="first", max_cotangent_norm=bound)
    for rnn in (helpers.random_rnn(), helpers.random_rnn(scale=0.0)):
        value, gradient, diagnostics = helpers.compiled_gradient(
            rnn, AtItsOptimum(), jax.random.key(0), batch_size=2, options=options
        )
        assert value == jnp.inf
        assert int(diagnostics.exploded) == 2
        assert bool(jnp.all(jnp.isfinite(helpers.as_vector(gradient))))
