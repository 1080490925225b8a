"""The comparison with momentum, on optimizers whose answer is known."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest

import helpers
from optdyn.inner_loop import Objective, ProblemSet, mean_curve
from optdyn.inner_loop._problem_set import VALIDATION_STREAM
from optdyn.mechanisms._momentum_stage import MomentumComparison
from optdyn.optimizers._aggregated_momentum import aggregated_momentum
from optdyn.tasks import LinearRegression


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TwoVelocities:
    """A meta-optimizer that is aggregated momentum."""

    alpha: jax.Array
    beta: jax.Array

    def as_optax(self) -> optax.GradientTransformation:
        return aggregated_momentum(self.alpha, self.beta)


@pytest.fixture(scope="module")
def comparison() -> MomentumComparison:
    validation = ProblemSet(LinearRegression(n=3), 0, 4, Objective(30, "first"), VALIDATION_STREAM)
    return MomentumComparison(validation, alpha=0.5, beta=0.75)


def row_of(comparison: MomentumComparison, alpha: list[float], beta: list[float]):
    optimizer = TwoVelocities(np.asarray(alpha), np.asarray(beta))
    point = comparison.operating_point(optimizer)
    losses = comparison.learned_curves(optimizer), comparison.one_mode_curves(point)
    return comparison.row(7, point, *losses)


def test_momentum_with_a_silent_second_mode_is_recognised(comparison):
    row = row_of(comparison, [0.5, 0.0], [0.75, 0.25])
    assert row.meta_step == 7
    assert row.alpha == pytest.approx(0.5, abs=1e-12)
    assert row.beta == pytest.approx(0.75, abs=1e-12)
    assert row.momentum_ratio == pytest.approx(1.0, rel=1e-6)
    assert row.deviation == pytest.approx(0.0, abs=1e-5)
    assert row.meta_objective == pytest.approx(comparison.tuned.meta_objective, rel=1e-5)
    assert row.gain_gap == math.inf
    assert not row.oscillating


def test_a_second_mode_is_measured_as_a_departure(comparison):
    row = row_of(comparison, [0.5, 0.2], [0.75, 0.5])
    # Gains: 0.5/(1 − 0.75) = 2 and 0.2/(1 − 0.5) = 0.4.
    assert row.gain_gap == pytest.approx(5.0, rel=1e-9)
    assert row.rate_ratio == pytest.approx(2.5, rel=1e-9)
    assert row.momentum_ratio == pytest.approx(1.0, rel=1e-6)
    assert row.deviation > 0.01


def test_the_search_ends_in_the_learned_optimizers_own_fixed_point(comparison):
    rnn = helpers.random_rnn("gru", units=4)
    fresh = MomentumComparison(comparison.validation, alpha=0.5, beta=0.75)
    point = fresh.operating_point(rnn)
    assert point.fixed_points.error_estimate[0] < 1e-9
    assert len(point.candidates.status) > 8
    assert len(point.modes.beta) == 4


def test_mean_curves_are_normalised_as_the_objective_is():
    losses = np.array([[4.0, 2.0], [1.0, 1.0]])
    found = mean_curve(losses, Objective(1, "first"))
    np.testing.assert_allclose(found.mean, [1.0, 0.75])
    error = [0.0, np.std([0.5, 1.0], ddof=1) / np.sqrt(2)]
    np.testing.assert_allclose(found.standard_error, error)
    np.testing.assert_allclose(mean_curve(losses).mean, [2.5, 1.5])
