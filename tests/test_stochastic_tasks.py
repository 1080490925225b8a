"""Tasks whose data are drawn anew at each inner step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import helpers
from optdyn.errors import UserError
from optdyn.evaluation import EVALUATION_STREAM, ProblemSet, evaluate, evaluate_on
from optdyn.inner_loop import Objective, unroll
from optdyn.meta_training import UnrollOptions, meta_value_and_grad
from optdyn.optimizers._baselines import BASELINES
from optdyn.random_streams import keys_at, stream
from optdyn.search import Execution, SearchProtocol, random_search
from optdyn.tasks import Digits, Problem, describe_task
from optdyn.tasks._curvature import CURVATURE_STREAM, task_curvatures

POINTS = 12


@dataclasses.dataclass(frozen=True)
class NoisyRegression:
    """``½ mean (a·x − b)²`` over ``batch`` rows drawn anew at each step, of twelve."""

    batch: int = 3
    whole: bool = True

    def sample(self, key: jax.Array) -> Problem:
        rows, start, batches = jax.random.split(key, 3)
        A = jax.random.normal(rows, (POINTS, 2))
        return Problem(
            jax.random.normal(start, (2,)),
            self.batch_loss,
            (A, A @ jnp.array([1.0, -1.0]) + 0.3),
            key=batches,
            full_loss_fn=self.loss if self.whole else None,
        )

    def loss(self, x: jax.Array, A: jax.Array, b: jax.Array) -> jax.Array:
        return 0.5 * jnp.mean((A @ x - b) ** 2)

    def batch_loss(self, x: jax.Array, A: jax.Array, b: jax.Array, key: jax.Array) -> jax.Array:
        rows = jax.random.randint(key, (self.batch,), 0, POINTS)
        return self.loss(x, A[rows], b[rows])


def by_hand(problem: Problem, rate: float, steps: int) -> list[float]:
    """Stochastic gradient descent with the batches that the problem's key gives."""
    x, losses = problem.params, []
    found = jax.jit(jax.value_and_grad(problem.loss_fn))
    for k in range(steps):
        value, gradient = found(x, *problem.data, key=jax.random.fold_in(problem.key, k))
        losses.append(float(value))
        x = x - rate * gradient
    if problem.full_loss_fn is None:
        last = problem.loss_fn(x, *problem.data, key=jax.random.fold_in(problem.key, steps))
        return [*losses, float(last)]
    whole = [float(problem.full_loss_fn(at, *problem.data)) for at in (problem.params, x)]
    return [whole[0], *losses[1:], whole[1]]


@pytest.mark.parametrize("whole", [True, False])
def test_each_step_sees_its_own_batch_and_the_ends_all_data(whole: bool) -> None:
    problem = NoisyRegression(whole=whole).sample(jax.random.key(1))
    expected = by_hand(problem, 0.3, 6)
    for segment in (None, 4):
        found = unroll(optax.sgd(0.3), problem, 6, segment=segment)
        np.testing.assert_allclose(found.losses, expected, rtol=1e-5)
    assert len({round(float(problem.at_step(k).loss(problem.params)), 4) for k in range(6)}) > 3


@pytest.mark.parametrize("learned", helpers.small_part(["rate"], ["gru", "rate"]))
@pytest.mark.usefixtures("x64")
def test_meta_gradient_equals_central_differences_at_fixed_keys(learned: str) -> None:
    task, key, batch = NoisyRegression(), jax.random.key(3), 3
    steps = 6 if learned == "rate" else 3
    optimizer = (
        helpers.random_rnn("gru", units=3)
        if learned == "gru"
        else helpers.Rate(jnp.float64(-1.0), lambda: optax.trace(0.9))
    )
    theta, unravel = ravel_pytree(optimizer)
    objective = Objective(steps, "first")
    options = UnrollOptions(num_steps=steps, normalization="first")

    @jax.jit
    def found(vector: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, gradient, _ = meta_value_and_grad(
            unravel(vector), task, key, batch_size=batch, options=options
        )
        return value, ravel_pytree(gradient)[0]

    @jax.jit
    def mean(vector: jax.Array) -> jax.Array:
        tx = unravel(vector).as_optax()

        def one(key: jax.Array) -> jax.Array:
            return objective.meta_loss(unroll(tx, task.sample(key), steps).losses)

        return jnp.mean(jax.vmap(one)(keys_at(key, jnp.arange(batch))))

    value, gradient = found(theta)
    np.testing.assert_allclose(value, mean(theta), rtol=1e-12)
    unit = jnp.ones_like(theta) / np.sqrt(theta.size)
    difference = (mean(theta + 1e-5 * unit) - mean(theta - 1e-5 * unit)) / 2e-5
    np.testing.assert_allclose(gradient @ unit, difference, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_segments_chunks_and_hessian_products_see_the_same_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rate = helpers.Rate(jnp.float64(-1.0), lambda: optax.trace(0.9), True)

    def gradient(**options: int) -> tuple[float, float]:
        chosen = UnrollOptions(num_steps=5, **options)
        value, found, _ = helpers.compiled_gradient(
            rate, NoisyRegression(), jax.random.key(0), batch_size=4, options=chosen
        )
        return float(value), float(found.log_rate)

    plain = gradient()
    np.testing.assert_allclose(gradient(segment=2, chunk=2), plain, rtol=1e-10)
    monkeypatch.setattr("optdyn.meta_training._second_order.WORTH_IT", 0)
    np.testing.assert_allclose(gradient(), plain, rtol=1e-10)


def test_evaluations_are_reproducible_whatever_is_run_at_once() -> None:
    problems = ProblemSet(NoisyRegression(), 0, 5, Objective(6), EVALUATION_STREAM)
    together, apart = (evaluate_on(optax.sgd(0.3), problems, at_once=at_once) for at_once in (5, 1))
    np.testing.assert_allclose(together.losses, apart.losses, rtol=1e-5)
    key = jax.random.key_data(problems.problems.key)
    assert len({tuple(row) for row in np.asarray(key).tolist()}) == 5
    one = jax.tree.map(lambda leaf: leaf[3], problems.problems)
    np.testing.assert_allclose(together.losses[3], by_hand(one, 0.3, 6), rtol=1e-5)
    other = evaluate(optax.sgd(0.3), NoisyRegression(), seed=1, num_problems=5, num_steps=6)
    assert not np.allclose(other.losses, together.losses)


def test_tuning_takes_stochastic_tasks() -> None:
    protocol = SearchProtocol(
        Objective(10, "first"), num_samples=12, num_problems=3, rescore_top=2, rescore_problems=3,
        max_rounds=1,
    )  # fmt: skip
    tables = [
        random_search(BASELINES["gradient_descent"], NoisyRegression(), seed=0, protocol=protocol,
                      execution=Execution(at_once=at_once, runs_per_chunk=chunk))
        for at_once, chunk in ((4, 12), (36, 36))
    ]  # fmt: skip
    np.testing.assert_allclose(tables[0].scores, tables[1].scores, rtol=1e-5)
    assert np.nanmin(tables[0].scores) < 0.9


def test_digits_in_batches_are_judged_on_all_images() -> None:
    task = Digits(width=3, points=50, batch=8)
    problem = task.sample(jax.random.key(0))
    found = unroll(optax.sgd(0.1), problem, 4)
    full = Digits(width=3, points=50)
    np.testing.assert_allclose(found.losses[0], full.loss(problem.params), rtol=1e-6)
    np.testing.assert_allclose(found.losses[-1], full.loss(found.params), rtol=1e-6)
    draw = jax.jit(jax.vmap(lambda k: problem.at_step(k).loss(problem.params)))
    drawn = np.asarray(draw(jnp.arange(200)), float)
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert abs(np.mean(drawn) - float(full.loss(problem.params))) < 4 * error
    assert describe_task(task).options == {"width": 3, "points": 50, "batch": 8}
    assert "batch" not in describe_task(full).options
    with pytest.raises(UserError, match=r"digits.batch: 0"):
        Digits(batch=0)


def test_a_loss_without_all_data_has_no_value_by_itself() -> None:
    problem = NoisyRegression(whole=False).sample(jax.random.key(0))
    with pytest.raises(UserError, match="full_loss_fn"):
        problem.loss(problem.params)


@pytest.mark.usefixtures("x64")
def test_curvatures_are_those_of_all_data() -> None:
    (problem,) = (
        NoisyRegression().sample(key) for key in keys_at(stream(0, CURVATURE_STREAM), jnp.arange(1))
    )
    A = np.asarray(problem.data[0])
    found = task_curvatures(NoisyRegression(), num_problems=1)
    np.testing.assert_allclose(found, np.linalg.eigvalsh(A.T @ A / POINTS), rtol=1e-6)
    with pytest.raises(UserError, match="full_loss_fn"):
        task_curvatures(NoisyRegression(whole=False), num_problems=1)
