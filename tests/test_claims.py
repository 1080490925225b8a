"""The ledger's verdicts follow from its numbers."""

from __future__ import annotations

import math

import pytest

from optdyn.errors import UserError
from optdyn.evaluation import MeanAndError
from optdyn.runs._results import EvaluationSummary, Score
from optdyn.study._claims import at_least, at_most, comparison_claims, interior_claims
from optdyn.study._recipes import SCALES, recipe_for

WORDS = {"id": "x", "task": "t", "statement": "s", "source": "p"}


@pytest.mark.parametrize(
    ("claim", "passed"),
    [
        (at_most(1.0, 1.0, **WORDS), True),
        (at_most(1.0, 1.01, **WORDS), False),
        (at_most(1.0, math.nan, **WORDS), False),
        (at_most(1.0, None, **WORDS), False),
        (at_least(1.0, 1.0, **WORDS), True),
        (at_least(1.0, math.inf, **WORDS), True),
        (at_least(1.0, math.nan, **WORDS), False),
        (at_least(1.0, None, **WORDS), False),
    ],
)
def test_a_claim_passes_only_on_a_number_that_meets_it(claim, passed):
    assert claim.passed is passed


def test_a_win_must_exceed_two_standard_errors():
    diverged = MeanAndError(math.inf, math.inf)
    scores = {"learned": 0.5, "momentum": 1.0, "adam": 0.6}
    evaluation = EvaluationSummary(
        {
            **{name: Score(mean, 0.1, exploded=0) for name, mean in scores.items()},
            "rmsprop": Score(**vars(diverged), exploded=3),
        },
        {
            "momentum": MeanAndError(-0.5, 0.1),
            "adam": MeanAndError(-0.1, 0.08),
            "rmsprop": diverged,
        },
    )
    claims = {c.id: c for c in comparison_claims("t", evaluation, {"momentum": 0.25})}
    assert claims["t.learned_beats_momentum"].measured == pytest.approx(5.0)
    assert claims["t.learned_beats_momentum"].passed
    assert not claims["t.learned_beats_adam"].passed
    assert claims["t.learned_beats_rmsprop"].passed
    assert claims["t.advantage_over_momentum"].measured == pytest.approx(0.5)


def test_an_edge_fails_its_claim_by_name():
    inside, edge = interior_claims("t", {"adam": [], "momentum": ["alpha"]})
    assert inside.passed
    assert not edge.passed
    assert "alpha" in edge.note


def test_recipes_keep_the_papers_protocol_at_every_scale():
    for scale in SCALES:
        assert recipe_for("linear_regression", scale).protocol.decay_every == 500
    assert recipe_for("linear_regression", "paper").architecture.units == 256
    assert recipe_for("linear_regression", "laptop").protocol.num_meta_steps == 5000
    with pytest.raises(UserError, match="--scale"):
        recipe_for("linear_regression", "galaxy")
