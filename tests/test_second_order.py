"""Hessian-vector products in the meta-gradient: the same numbers, and when they are not used."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import helpers
from optdyn.meta_training import UnrollOptions
from optdyn.meta_training import _second_order as second_order
from optdyn.meta_training._second_order import with_hessian_products
from optdyn.tasks import TASKS
from optdyn.tasks._base import Problem, joint
from optdyn.tasks._gate import sample_batch


def problems(task, batch=3):
    return joint(sample_batch(task, jax.random.split(jax.random.key(0), batch)))


@pytest.mark.parametrize("task", helpers.small_part(["linear_regression", "two_moons"], TASKS))
@pytest.mark.usefixtures("x64")
def test_the_meta_gradient_is_that_of_automatic_differentiation(monkeypatch, task):
    rnn = helpers.random_rnn(units=4, scale=0.3)
    options = UnrollOptions(num_steps=4)
    results = []
    for worth_it in (0, 2**40):
        monkeypatch.setattr(second_order, "WORTH_IT", worth_it)
        results.append(
            helpers.compiled_gradient(
                rnn, helpers.small_task(task), jax.random.key(0), batch_size=2, options=options
            )[:2]
        )
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_small_problems_are_left_as_they_are():
    problem = problems(helpers.small_task("rosenbrock"))
    assert with_hessian_products(problem) is problem


@dataclasses.dataclass(frozen=True)
class Straight:
    """A loss whose gradient is not the derivative of anything: rounding passes gradients on."""

    def sample(self, key):
        def loss(x):
            return jnp.sum((x + jax.lax.stop_gradient(jnp.round(x) - x)) ** 2 * x)

        return Problem(params=jax.random.normal(key, (30_000,)), loss_fn=loss)


def test_losses_with_one_way_parts_are_left_to_automatic_differentiation():
    problem = problems(Straight())
    assert second_order._kept(problem) >= second_order.WORTH_IT
    assert with_hessian_products(problem) is problem


@pytest.mark.usefixtures("x64")
def test_hessian_products_keep_the_parameters_alone(monkeypatch):
    monkeypatch.setattr(second_order, "WORTH_IT", 0)
    problem = problems(helpers.small_task("two_moons"))
    assert second_order._kept(with_hessian_products(problem)) <= 4 * problem.params.nbytes
    assert second_order._kept(problem) > 4 * problem.params.nbytes
