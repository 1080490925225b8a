"""Evaluation on held-out problems against closed forms."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from optdyn.errors import UserError
from optdyn.evaluation import (
    EVALUATION_STREAM,
    ProblemSet,
    evaluate,
    evaluate_on,
    paired_difference,
)
from optdyn.inner_loop import Objective
from optdyn.inner_loop._batching import map_runs, runs_at_once
from optdyn.inner_loop._unroll import unroll
from optdyn.optimizers._componentwise_rnn import Architecture, ComponentwiseRNN
from optdyn.random_streams import keys_at, stream
from optdyn.tasks import Problem, make_task, sample_batch


@dataclasses.dataclass(frozen=True)
class Parabola:
    """``½ c x²`` from x = 1, with c ~ U(0.5, 1)."""

    def sample(self, key: jax.Array) -> Problem:
        curvature = jax.random.uniform(key, minval=0.5)
        return Problem(jnp.ones(()), lambda x, c: 0.5 * c * x**2, (curvature,))


def test_gradient_descent_on_a_parabola_in_closed_form(x64: None) -> None:
    alpha, steps, problems = 0.3, 20, 10
    result = evaluate(optax.sgd(alpha), Parabola(), seed=5, num_problems=problems, num_steps=steps)
    keys = keys_at(stream(5, EVALUATION_STREAM), jnp.arange(problems))
    (c,) = (np.asarray(column) for column in sample_batch(Parabola(), keys).data)
    k = np.arange(steps + 1)
    expected = 0.5 * c[:, None] * (1 - alpha * c[:, None]) ** (2 * k[None])
    np.testing.assert_allclose(result.losses, expected, rtol=1e-12)
    each = expected[:, 1:].mean(axis=1)
    np.testing.assert_allclose(result.meta_objectives, each, rtol=1e-12)
    np.testing.assert_allclose(result.mean, each.mean(), rtol=1e-12)
    np.testing.assert_allclose(result.standard_error, each.std(ddof=1) / np.sqrt(10), rtol=1e-12)
    assert result.exploded == 0


def test_exploded_problems_are_counted_and_in_the_mean_as_they_are(x64: None) -> None:
    """½ c (1 − 3.5 c)²ᵏ: for some c far beyond 1e4 after 20 steps, and a finite number."""
    result = evaluate(optax.sgd(3.5), Parabola(), seed=0, num_problems=40, num_steps=20)
    (c,) = sample_batch(Parabola(), keys_at(stream(0, EVALUATION_STREAM), jnp.arange(40))).data
    k, c = np.arange(21), np.asarray(c)[:, None]
    losses = 0.5 * c * (1 - 3.5 * c) ** (2 * k)
    assert 0 < result.exploded < 40
    assert result.exploded == np.sum(losses.max(axis=1) > 1e4)
    np.testing.assert_allclose(result.mean, losses[:, 1:].mean(), rtol=1e-6)


def test_a_loss_that_is_not_finite_makes_the_mean_infinite() -> None:
    # x grows by |1 - 3.5 c| a step: for some c out of float32's range, for others it shrinks.
    result = evaluate(optax.sgd(3.5), Parabola(), seed=0, num_problems=40, num_steps=2000)
    (c,) = sample_batch(Parabola(), keys_at(stream(0, EVALUATION_STREAM), jnp.arange(40))).data
    growth = 2 * 2000 * np.log(np.abs(1 - 3.5 * np.asarray(c, np.float64)))
    unstable = int(np.sum(growth > np.log(1e4)))
    assert 0 < unstable < 40
    assert result.exploded == unstable
    assert result.mean == np.inf
    assert result.standard_error == np.inf


def test_paired_difference_is_over_the_same_problems() -> None:
    a, b = (
        evaluate(optax.sgd(lr), Parabola(), seed=1, num_problems=16, num_steps=5)
        for lr in (0.5, 0.4)
    )
    difference = paired_difference(a, b)
    each = a.meta_objectives - b.meta_objectives
    assert difference.mean < 0
    np.testing.assert_allclose(difference.mean, a.mean - b.mean, rtol=1e-9)
    np.testing.assert_allclose(difference.standard_error, each.std(ddof=1) / 4, rtol=1e-9)
    elsewhere = evaluate(optax.sgd(0.4), Parabola(), seed=2, num_problems=16, num_steps=5)
    with pytest.raises(UserError, match="different problems"):
        paired_difference(a, elsewhere)


def test_a_learned_optimizer_is_evaluated_like_any_other_in_any_portions() -> None:
    rnn = ComponentwiseRNN.init(jax.random.key(0), Architecture(units=4))
    rnn = dataclasses.replace(rnn, w=jax.random.normal(jax.random.key(1), (4,)))
    task = make_task("rosenbrock")
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    results = [
        evaluate_on(
            rnn.as_optax(), ProblemSet(task, 0, 5, Objective(7), EVALUATION_STREAM), **portions
        )
        for portions in ({}, {"at_once": 2}, {"at_once": 1, "mesh": mesh})
    ]
    problem = task.sample(keys_at(stream(0, EVALUATION_STREAM), jnp.arange(5))[3])
    alone = unroll(rnn.as_optax(), problem, 7).losses
    for result in results:
        np.testing.assert_allclose(result.losses, results[0].losses, rtol=1e-5)
        np.testing.assert_allclose(result.losses[3], alone, rtol=1e-5)


def test_an_interrupted_evaluation_goes_on_to_the_same_bits() -> None:
    parts: list[np.ndarray] = []
    problems = ProblemSet(Parabola(), 0, 19, Objective(5), EVALUATION_STREAM)
    run = functools.partial(evaluate_on, optax.sgd(0.3), problems, at_once=1)
    whole = run(on_chunk=parts.append)
    assert [len(part) for part in parts] == [8, 16, 19]
    for part in parts:
        again = run(done=part)
        assert again.losses.tobytes() == whole.losses.tobytes()
        assert again.meta_objectives.tobytes() == whole.meta_objectives.tobytes()
        assert (again.mean, again.exploded) == (whole.mean, whole.exploded)


def test_map_runs_keeps_the_rows_in_order() -> None:
    rows = (jnp.arange(7.0), {"a": jnp.arange(14.0).reshape(7, 2)})
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    for at_once in (1, 3, 100):
        for where in (None, mesh):
            mapped = map_runs(lambda x, y: x + jnp.sum(y["a"]), rows, at_once, where)
            np.testing.assert_array_equal(mapped, 5.0 * np.arange(7) + 1)


def test_large_problems_run_one_at_a_time_and_small_ones_together() -> None:
    learned = ComponentwiseRNN.init(jax.random.key(0), Architecture(units=64)).as_optax()
    keys = jax.random.split(jax.random.key(0), 2)
    large, small = (
        jax.eval_shape(functools.partial(sample_batch, make_task(name)), keys)
        for name in ("two_moons", "rosenbrock")
    )
    assert runs_at_once(optax.sgd(0.1), large) == runs_at_once(learned, large) == 1
    assert runs_at_once(optax.sgd(0.1), small) > 10 * runs_at_once(learned, small) > 1000


def test_bad_counts_are_named() -> None:
    with pytest.raises(UserError, match="num_problems: 0 is not allowed"):
        evaluate(optax.sgd(0.1), Parabola(), seed=0, num_problems=0)
    with pytest.raises(UserError, match="normalization: unknown value 'last'"):
        evaluate(optax.sgd(0.1), Parabola(), seed=0, normalization="last")


def test_an_evaluation_prints_in_a_few_lines() -> None:
    task = make_task("rosenbrock")
    found = evaluate(optax.sgd(1e-3), task, seed=0, num_problems=2, num_steps=2)
    lines = str(found).splitlines()
    assert len(lines) == 4
    assert f"{found.mean:.4g} ±" in lines[0]
    assert lines[3] == f"exploded problems: {found.exploded or 'none'}"
    assert found._repr_html_() == f"<pre>{found}</pre>"
