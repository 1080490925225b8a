"""Every registered task, and what each is declared to be."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from optdyn.errors import UserError
from optdyn.inner_loop._unroll import losses_and_gradients
from optdyn.precision import to_float64
from optdyn.tasks import (
    TASKS,
    Digits,
    LinearRegression,
    Problem,
    Task,
    joint,
    make_task,
    sample_batch,
)
from optdyn.tasks._linear_regression import random_orthogonal

if TYPE_CHECKING:
    from jaxtyping import PyTree

ALL = sorted(TASKS)

SMALL = {
    "two_moons": {"points": 64, "width": 8, "depth": 2},
    "digits": {"points": 50, "width": 6},
}
"""Options that make a task cheap to test."""


@functools.cache
def problems(name: str) -> Problem:
    """A batch of three problems of the (small) task, the first two from the same key."""
    keys = jnp.stack([jax.random.key(seed) for seed in (1, 1, 2)])
    return draw(make_task(name, **SMALL.get(name, {})), keys)


def draw(task: Task, keys: jax.Array) -> Problem:
    return jax.jit(lambda keys: sample_batch(task, keys))(keys)


def row(batch: Problem, index: int) -> Problem:
    return jax.tree.map(lambda leaf: leaf[index], batch)


@jax.jit
def loss_and_gradient(problem: Problem) -> tuple[jax.Array, jax.Array]:
    """The loss (or losses) at the start, and the gradient as [n] or [batch, n]."""
    losses, gradient = losses_and_gradients(problem, problem.params)
    flat = gradient if isinstance(gradient, jax.Array) else ravel_pytree(gradient)[0]
    return losses, flat


@pytest.mark.parametrize("name", ALL)
def test_a_key_determines_the_problem(name: str) -> None:
    one, same, other = (row(problems(name), index) for index in range(3))
    start, again, elsewhere = (ravel_pytree((p.params, p.data))[0] for p in (one, same, other))
    np.testing.assert_array_equal(start, again)
    assert not np.array_equal(start, elsewhere)
    loss, _ = loss_and_gradient(one)
    assert loss.shape == ()
    assert np.isfinite(loss)
    assert loss_and_gradient(same)[0] == loss


@pytest.mark.parametrize("name", ALL)
def test_gradients_equal_finite_differences(name: str, x64: None) -> None:
    problem = to_float64(row(problems(name), 2))
    flat, unravel = ravel_pytree(problem.params)
    assert flat.dtype == np.float64
    loss = jax.jit(lambda x: problem.loss(unravel(x)))
    direction = np.random.default_rng(1).normal(size=flat.shape)
    direction /= np.linalg.norm(direction)
    step = 1e-5
    numeric = (loss(flat + step * direction) - loss(flat - step * direction)) / (2 * step)
    slope = loss_and_gradient(problem)[1] @ direction
    np.testing.assert_allclose(slope, numeric, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_a_joint_problem_is_its_problems_side_by_side(name: str) -> None:
    losses, gradients = loss_and_gradient(joint(problems(name)))
    for index in range(3):
        loss, gradient = loss_and_gradient(row(problems(name), index))
        np.testing.assert_allclose(losses[index], loss, rtol=1e-5)
        np.testing.assert_allclose(gradients[index], gradient, rtol=1e-4, atol=1e-6)


def singular_values(task: LinearRegression) -> np.ndarray:
    A, _ = draw(task, jax.random.split(jax.random.key(0), 400)).data
    return np.linalg.svd(np.asarray(A, np.float64), compute_uv=False)


def test_linear_regression_has_the_declared_spectrum() -> None:
    exponents = 2 * np.log10(singular_values(LinearRegression()))
    assert exponents.min() >= -3 - 1e-4
    assert exponents.max() <= 1e-4
    # 2000 uniform draws: the mean's standard error is 0.019, the spread's about 0.007.
    assert abs(exponents.mean() + 1.5) < 0.1
    assert abs(exponents.std() - 3 / np.sqrt(12)) < 0.04


def test_linear_regression_can_be_gaussian() -> None:
    curvatures = singular_values(LinearRegression(n=8, spectrum="gaussian")) ** 2
    assert abs(curvatures.mean() - 1) < 0.03  # AᵀA has ones on its diagonal on average


def test_linear_regression_has_a_zero_at_its_solution(x64: None) -> None:
    problem = to_float64(row(problems("linear_regression"), 0))
    A, b = problem.data
    solution = np.linalg.solve(A, b)
    loss, gradient = loss_and_gradient(dataclasses.replace(problem, params=jnp.asarray(solution)))
    assert loss < 1e-20
    np.testing.assert_allclose(gradient, np.zeros(5), atol=1e-10)
    hessian = jax.jit(jax.hessian(problem.loss))(problem.params)
    np.testing.assert_allclose(hessian, A.T @ A, atol=1e-12)


def test_rosenbrock_is_zero_at_one_one_and_starts_in_its_box() -> None:
    batch = draw(make_task("rosenbrock"), jax.random.split(jax.random.key(0), 500))
    assert batch.loss(jnp.ones(2)) == 0
    np.testing.assert_allclose(batch.params.min(axis=0), [-2, -1], atol=0.05)
    np.testing.assert_allclose(batch.params.max(axis=0), [2, 3], atol=0.05)
    assert np.all((batch.params >= jnp.array([[-2.0, -1.0]])) & (batch.params <= 3.0))


def test_two_moons_is_the_paper_s_network_and_data() -> None:
    from optdyn.tasks._two_moons import moons

    task = make_task("two_moons")
    features, labels = moons(task.points, task.noise)
    assert features.shape == (1024, 2)
    assert sorted(np.unique(labels, return_counts=True)[1]) == [512, 512]
    silent = zero_weights(task)
    assert ravel_pytree(silent)[0].size == 8577
    np.testing.assert_allclose(jax.jit(task.loss)(silent), np.log(2), rtol=1e-6)


def test_two_moons_has_a_penalty_on_request() -> None:
    plain, penalised = (
        make_task("two_moons", width=3, depth=1, points=16, **options)
        for options in ({}, {"penalty": 0.1})
    )
    layers = draw(plain, jax.random.split(jax.random.key(0), 1)).params
    layers = jax.tree.map(lambda leaf: leaf[0], layers)
    added = jax.jit(lambda layers: penalised.loss(layers) - plain.loss(layers))(layers)
    np.testing.assert_allclose(added, 0.1 * np.linalg.norm(ravel_pytree(layers)[0]), rtol=1e-5)


def zero_weights(task: Task) -> PyTree:
    shapes = jax.eval_shape(task.sample, jax.random.key(0)).params
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def test_digits_is_a_64_32_10_network_on_all_digits() -> None:
    task = make_task("digits")
    silent = zero_weights(task)
    assert [layer["weight"].shape for layer in silent] == [(64, 32), (32, 10)]
    loss = jax.jit(task.loss)
    np.testing.assert_allclose(loss(silent), np.log(10), rtol=1e-6)
    # A network that always answers 3 by a wide margin loses the margin on all other digits.
    margin = 1e3
    silent[-1]["bias"] = np.float32(margin) * (np.arange(10) == 3)
    np.testing.assert_allclose(loss(silent), margin * (1797 - 183) / 1797, rtol=1e-5)


def test_digits_draw_architectures_that_are_the_smaller_networks() -> None:
    from optdyn.tasks._digits import images

    task = Digits(width=8, points=50, max_depth=2)
    batch = draw(task, jax.random.split(jax.random.key(0), 30))
    evaluate = jax.jit(jax.vmap(jax.value_and_grad(task.loss)))
    losses, gradients = jax.tree.map(np.asarray, evaluate(batch.params, *batch.data))
    layouts, params = jax.tree.map(np.asarray, (batch.data[0], batch.params))
    features, labels = images(50)
    found = set()
    for i in range(30):
        units, depth = int(layouts.units[i].sum()), int(layouts.layers[i].sum())
        found.add((units, depth))
        hidden = features
        for layer in params[:depth]:
            weight, bias = layer["weight"][i, : hidden.shape[1], :units], layer["bias"][i, :units]
            hidden = np.tanh(hidden @ weight + bias)
        outputs = hidden @ params[-1]["weight"][i, :units] + params[-1]["bias"][i]
        wrong = np.log(np.exp(outputs).sum(axis=1)) - outputs[np.arange(50), labels]
        np.testing.assert_allclose(losses[i], wrong.mean(), rtol=1e-5)
        assert not np.any(gradients[0]["weight"][i, :, units:])
        assert np.any(gradients[1]["weight"][i]) == (depth == 2)
        # Glorot's variance for the units that are there: four standard errors of 128 weights.
        spread = np.std(params[0]["weight"][i, :, :units])
        np.testing.assert_allclose(spread, np.sqrt(2 / (64 + units)), rtol=0.25)
    assert found == {(units, depth) for units in (2, 4, 8) for depth in (1, 2)}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnist", {}, "task: unknown value 'mnist'"),
        ("linear_regression", {"n": 0}, r"linear_regression\.n: 0 is not allowed"),
        ("linear_regression", {"low": 1.0}, r"linear_regression\.low, high"),
        ("linear_regression", {"spectrum": "flat"}, r"spectrum: unknown value 'flat'"),
        ("two_moons", {"width": -1}, r"two_moons\.width: -1 is not allowed"),
        ("two_moons", {"noise": float("nan")}, r"two_moons\.noise: nan is not allowed"),
        ("digits", {"points": 1798}, r"digits\.points: 1798 is not allowed \(at most 1797\)"),
        ("digits", {"max_depth": 0}, r"digits\.max_depth: 0 is not allowed"),
        ("rosenbrock", {"a": 1}, r"task rosenbrock: unknown option 'a' \(allowed: it has none\)"),
    ],
)
def test_bad_options_are_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_task(name, **options)


@pytest.mark.usefixtures("x64")
def test_random_bases_are_orthogonal_and_uniform():
    keys = jax.random.split(jax.random.key(0), 4000)
    Q = np.asarray(jax.vmap(lambda key: random_orthogonal(key, 3))(keys))
    np.testing.assert_allclose(
        Q @ np.swapaxes(Q, 1, 2), np.broadcast_to(np.eye(3), Q.shape), atol=1e-12
    )
    # Uniform: entries have mean 0, variance 1/n and no preferred determinant or position.
    np.testing.assert_allclose(Q.mean(axis=0), 0.0, atol=0.05)
    np.testing.assert_allclose((Q**2).mean(axis=0), 1 / 3, atol=0.03)
    np.testing.assert_allclose((Q**4).mean(axis=0), 3 / (3 * 5), atol=0.03)
    assert abs(np.linalg.det(Q).mean()) < 0.06
