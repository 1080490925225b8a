"""The objective keeps its meaning: what is divided by, and what has exploded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import helpers
from optdyn.errors import UserError
from optdyn.evaluation import evaluate
from optdyn.inner_loop import Objective, ProblemSet, mean_curve, meta_loss
from optdyn.meta_training import MetaTraining, make_meta_step, start_training
from optdyn.optimizers._baselines import BASELINES
from optdyn.search import SearchProtocol, random_search
from optdyn.tasks import Problem


@dataclasses.dataclass(frozen=True)
class Shifted:
    """``scale · (½ x² + offset)`` from x ~ N(0, 1), or from ``start``."""

    offset: float = 0.0
    scale: float = 1.0
    start: float | None = None

    def sample(self, key: jax.Array) -> Problem:
        x = jax.random.normal(key) if self.start is None else jnp.float32(self.start)
        return Problem(x, self.loss)

    def loss(self, x: jax.Array) -> jax.Array:
        return self.scale * (0.5 * x**2 + self.offset)


@dataclasses.dataclass(frozen=True)
class SomeTiny:
    """Every fourth problem or so starts at its optimum, but for rounding."""

    def sample(self, key: jax.Array) -> Problem:
        tiny = jax.random.bernoulli(key, 0.25)
        return Problem(jnp.where(tiny, 1e-8, 1.0), lambda x: 0.5 * x**2)


FIRST = Objective(5, "first")
BAD = {
    "negative": Shifted(offset=-10.0),
    "zero": Shifted(start=0.0),
    "changing sign": Shifted(offset=-0.3),
    "tiny beside the others": SomeTiny(),
}


def evaluated(task: object) -> None:
    evaluate(optax.sgd(0.1), task, seed=0, num_problems=16, objective=FIRST)


def tuned(task: object) -> None:
    protocol = SearchProtocol(FIRST, num_samples=3, num_problems=16)
    random_search(BASELINES["gradient_descent"], task, seed=0, protocol=protocol)


def trained(task: object) -> None:
    protocol = MetaTraining(unroll_length=5, normalization="first", batch_size=16)
    make_meta_step(task, protocol, seed=0)


@pytest.mark.parametrize("use", [evaluated, tuned, trained])
@pytest.mark.parametrize("name", BAD)
def test_first_losses_that_cannot_be_divided_by_are_refused(
    name: str, use: Callable[[object], None]
) -> None:
    with pytest.raises(UserError, match=r"normalization: first .*starts at the loss.*\"none\""):
        use(BAD[name])


def test_small_losses_that_are_alike_can_be_divided_by() -> None:
    """Every loss 1e-20 of another's: the same ratios."""
    small, usual = (
        evaluate(optax.sgd(rate), Shifted(offset=1.0, scale=scale), seed=0, num_problems=8,
                 objective=FIRST)
        for scale, rate in ((1e-20, 1e19), (1.0, 0.1))
    )  # fmt: skip
    np.testing.assert_allclose(small.meta_objectives, usual.meta_objectives, rtol=1e-5)


def test_a_curve_that_cannot_be_divided_has_no_meta_loss() -> None:
    losses = jnp.array([[2.0, 0.0, -1.0, jnp.inf, jnp.nan], [1.0, 1.0, 1.0, 1.0, 1.0]])
    np.testing.assert_array_equal(meta_loss(losses, "first"), [0.5] + [np.nan] * 4)
    np.testing.assert_array_equal(meta_loss(losses), np.ones(5))
    with pytest.raises(UserError, match="problem 1 starts at the loss 0"):
        mean_curve(np.asarray(losses.T), FIRST)


def test_descent_scores_below_ascent_on_losses_of_any_sign() -> None:
    descent, ascent = (
        evaluate(optax.sgd(rate), Shifted(offset=-10.0), seed=0, num_problems=4, num_steps=20)
        for rate in (0.1, -0.01)
    )
    assert descent.mean < ascent.mean < 0


@pytest.mark.parametrize(
    ("losses", "exploded"),
    [
        ([0.0, 1e-3, 5e-4], False),
        ([-5.0, 20.0, -3.0], False),
        ([1e-9, 10.0, 1.0], False),
        ([0.0, 1e5, 1.0], True),
        ([1.0, 9e3, 1.0], False),
        ([1.0, 2e4, 1.0], True),
        ([-100.0, 2e6, 1.0], True),
        ([1.0, np.inf, 1.0], True),
        ([1.0, np.nan, 1.0], True),
        ([1.0, -np.inf, 1.0], True),
    ],
)
def test_what_has_exploded(losses: list[float], exploded: bool) -> None:
    assert bool(Objective().exploded(jnp.array(losses)[:, None])[0]) is exploded


def test_divided_losses_explode_in_their_own_measure() -> None:
    losses = jnp.array([[1e-3, 1e-3], [1.0, 20.0]])
    np.testing.assert_array_equal(FIRST.exploded(losses), [False, True])
    np.testing.assert_array_equal(Objective().exploded(losses), [False, False])


def test_training_leaves_out_and_counts_a_problem_that_cannot_be_divided() -> None:
    """A task whose bad problems are rare gets past the first look."""

    @dataclasses.dataclass(frozen=True)
    class Rare:
        def sample(self, key: jax.Array) -> Problem:
            return Problem(jnp.abs(jax.random.normal(key)) + 1.0, lambda x: x - 1.2)

    protocol = MetaTraining(unroll_length=2, normalization="first", batch_size=2, l2=0.0)
    seed = next(s for s in range(50) if not _refused(Rare(), protocol, s))
    rate = helpers.Rate(jnp.float32(-3.0))
    step = make_meta_step(Rare(), protocol, seed)
    state, counts = start_training(rate, protocol), []
    for _ in range(8):
        state, metrics = step(state)
        counts.append(int(metrics.exploded))
        assert np.isfinite(float(state.optimizer.log_rate))
    assert counts[0] == 0 < max(counts)


def _refused(task: object, protocol: MetaTraining, seed: int) -> bool:
    try:
        make_meta_step(task, protocol, seed)
    except UserError:
        return True
    return False


def test_an_objective_is_given_once() -> None:
    with pytest.raises(UserError, match="objective: give it alone"):
        evaluate(optax.sgd(0.1), Shifted(), seed=0, num_steps=3, objective=FIRST)
    with pytest.raises(UserError, match="num_problems: 0"):
        ProblemSet(Shifted(), 0, 0, Objective(), "any")
