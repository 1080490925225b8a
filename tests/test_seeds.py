"""Headline numbers of a training, and their spread over seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

import helpers
from optdyn.errors import UserError
from optdyn.evaluation import evaluate_on
from optdyn.inner_loop import Objective, ProblemSet
from optdyn.meta_training import MetaTraining
from optdyn.optimizers import Architecture
from optdyn.optimizers._baselines import gradient_descent, momentum
from optdyn.pretrained._shipped import FOLDER
from optdyn.runs import HeldOut, read_result
from optdyn.study import recipe_for
from optdyn.study._ledger import at_least
from optdyn.study._measures import over_seeds
from optdyn.study._seeds import (
    SEEDS,
    SeedNumbers,
    SeedsResult,
    headline_numbers,
)

PROBLEMS = ProblemSet(helpers.small_task("linear_regression"), 0, 4, Objective(12), "unseen")
BASELINES = {"momentum": momentum(0.3, 0.5), "gradient_descent": gradient_descent(1e-3)}


@pytest.fixture(scope="module")
def headlines() -> dict[str, float]:
    return headline_numbers(helpers.random_rnn("gru", units=3), PROBLEMS, BASELINES)


def test_the_advantage_is_that_of_the_evaluations(headlines):
    learned = evaluate_on(helpers.random_rnn("gru", units=3).as_optax(), PROBLEMS)
    for name, tx in BASELINES.items():
        other = evaluate_on(tx, PROBLEMS)
        assert headlines[f"advantage_over_{name}"] == pytest.approx(1 - learned.mean / other.mean)
        each = other.meta_objectives - learned.meta_objectives
        below = np.mean(each) / (np.std(each, ddof=1) / math.sqrt(len(each)))
        assert headlines[f"standard_errors_below_{name}"] == pytest.approx(below)


def test_the_parts_of_the_advantage_add_up_and_so_does_the_schedule(headlines):
    parts = [headlines[n] for n in ("linear_dynamics", "initial_transient", "nonlinearity")]
    # No advantage over the best baseline: then there is nothing to split.
    assert math.isnan(sum(parts)) == (headlines["advantage_over_momentum"] <= 0)
    assert np.isnan(parts).all() or sum(parts) == pytest.approx(1.0, abs=1e-9)
    assert 0.0 < headlines["decay"] <= 1.0
    assert headlines["warm_up"] >= 1.0
    assert 0.0 < headlines["saturation"] <= 1.1


def test_a_claim_says_how_its_number_spreads_over_trainings():
    numbers = [
        {"warm_up": 1.0, "b": math.nan},
        {"warm_up": 2.0, "b": math.nan},
        {"warm_up": math.nan, "b": math.inf},
        {"b": 3.0},
    ]
    rows = [SeedNumbers(seed, row) for seed, row in enumerate(numbers)]
    measured = SeedsResult(Architecture(), MetaTraining(), HeldOut(0), rows)
    words = over_seeds("warm_up")(helpers.task_results(seeds=measured), "", at_least(1.5))
    assert words == (
        "Over 3 trainings: 1.5 ± 0.71 (1 to 2); 1 reach the bound, 1 have no such number."
    )
    words = over_seeds("b")(helpers.task_results(seeds=measured), "", at_least(1.5))
    assert words == "Over 4 trainings: 3 ± inf (3 to 3); 2 reach the bound, 3 have no such number."
    assert over_seeds("decay")(helpers.task_results(seeds=measured), "", at_least(1.5)) == ""
    assert over_seeds("warm_up")(helpers.task_results(), "", at_least(1.5)) == ""


def test_the_shipped_spread_is_of_the_recipes():
    for name in ("linear_regression", "rosenbrock"):
        found, recipe = read_result(FOLDER / name / SEEDS, SeedsResult), recipe_for(name, "laptop")
        assert (found.architecture, found.protocol) == (recipe.architecture, recipe.protocol)
        first = recipe.training_seed
        assert [row.seed for row in found.rows] == list(range(first, first + 5))


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="baselines"):
        headline_numbers(helpers.random_rnn("gru", units=3), PROBLEMS, {})
