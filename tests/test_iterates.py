"""The choice among a training's iterates."""

from __future__ import annotations

import math

import numpy as np
import pytest

import helpers
from optdyn.errors import UserError
from optdyn.meta_training import best_iterate, running_means


def test_the_lowest_finite_meta_objective_is_chosen_and_all_are_told():
    scores = {0: math.nan, 5: 0.4, 10: 0.2, 15: -math.nan, 20: 0.2, 25: math.inf}
    best = best_iterate(((step, step) for step in scores), scores.__getitem__)
    assert (best.meta_step, best.optimizer, best.meta_objective) == (10, 10, 0.2)
    assert list(best.scores) == list(scores)


def test_no_finite_meta_objective_is_refused():
    with pytest.raises(UserError, match="none of 2 has a finite meta-objective"):
        best_iterate([(0, math.nan), (1, math.inf)], float)
    with pytest.raises(UserError, match="none of 0"):
        best_iterate([], float)


def test_running_means_average_the_last_iterates_leaf_by_leaf():
    iterates = [(step, helpers.random_rnn(seed=step)) for step in range(4)]
    means = dict(running_means(iterates, width=3))
    assert list(means) == [2, 3]
    expected = np.mean([helpers.as_vector(rnn) for _, rnn in iterates[1:]], axis=0)
    np.testing.assert_allclose(helpers.as_vector(means[3]), expected, rtol=1e-6, atol=1e-7)
    assert means[3].architecture == iterates[0][1].architecture
    with pytest.raises(UserError, match="width: 0"):
        next(running_means(iterates, width=0))


def test_a_mean_can_be_the_best_where_single_iterates_scatter():
    iterates = [(step, 1.0 if step % 2 else -1.0) for step in range(6)]
    assert best_iterate(iterates, abs).meta_objective == 1.0
    assert best_iterate(running_means(iterates, width=2), abs).meta_objective == 0.0
