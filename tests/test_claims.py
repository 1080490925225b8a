"""The ledger's verdicts follow from its numbers."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import task_results
from optdyn.distillation import Kept
from optdyn.errors import UserError
from optdyn.evaluation import MeanAndError
from optdyn.runs import DistillationResult, MechanismsResult, read_task_result
from optdyn.runs._distillation_run import Judged, JudgedMechanism
from optdyn.runs._evaluation_run import EvaluationSummary, Score
from optdyn.runs._store import write_json
from optdyn.study import SCALES, Claim, Verdict, read_ledger, recipe_for
from optdyn.study._claims import ROWS
from optdyn.study._ledger import Bound, Measured, Row, at_least, at_most, judge
from optdyn.study._results import TaskResults
from optdyn.study._stories import STORIES


def row(found: Measured, bound: Bound = at_most(1.0), **fields: Any) -> Row:
    """A row of the table that measures ``found`` wherever there is a training log."""
    words = dict.fromkeys(("label", "statement", "source", "figure"), "words")
    return Row(id="x", needs="training", measure=lambda *_: found, bound=bound, **words, **fields)


def verdict(table_row: Row, **fields: Any) -> Verdict:
    (claim,) = judge([table_row], task_results(training=[], **fields))
    assert claim.passed == (claim.verdict == Verdict.HOLDS)
    assert claim.passed or claim.why
    return claim.verdict


@pytest.mark.parametrize(
    ("bound", "value", "holds"),
    [
        (at_most(1.0), 1.0, True),
        (at_most(1.0), 1.01, False),
        (at_most(1.0), math.nan, False),
        (at_least(1.0), 1.0, True),
        (at_least(1.0), math.inf, True),
        (at_least(1.0), -math.inf, False),
        (at_least(1.0), math.nan, False),
        (at_least(1.0, rosenbrock=2.0), 1.5, False),
    ],
)
def test_a_claim_holds_only_on_a_number_that_meets_its_bound(
    bound: Bound, value: float, holds: bool
) -> None:
    assert (verdict(row(Measured(value), bound)) == Verdict.HOLDS) is holds


def test_a_claim_that_is_missed_says_what_that_means() -> None:
    missed = row(Measured(2.0))
    assert verdict(missed) == Verdict.DISAGREES
    assert verdict(missed, meta_steps=4999) == Verdict.UNDERTRAINED
    assert verdict(row(Measured(2.0, standard_error=0.5))) == Verdict.ROUNDING
    assert verdict(row(Measured(2.0, standard_error=0.4))) == Verdict.DISAGREES
    assert verdict(row(Measured(2.0), decided_by="rounding")) == Verdict.ROUNDING
    assert verdict(row(Measured(2.0), stated_for=("linear_regression",))) == Verdict.BEYOND
    assert verdict(row(Measured(2.0), stated_for=("rosenbrock",))) == Verdict.DISAGREES
    assert verdict(row(Measured(2.0), stated_for=())) == Verdict.BEYOND
    assert verdict(row(Measured(math.nan))) == Verdict.UNMEASURED


def test_a_row_is_asked_of_its_tasks_where_there_are_results() -> None:
    assert judge([row(Measured(0.0))], task_results()) == []
    elsewhere = row(Measured(0.0), asked_of=("linear_regression",))
    assert judge([elsewhere], task_results(training=[])) == []


def test_the_table_of_claims_names_figures_and_parts_that_there_are() -> None:
    assert len({each.id for each in ROWS}) == len(ROWS)
    assert {each.figure for each in ROWS} <= {story.key for story in STORIES}
    parts = {field.name for field in dataclasses.fields(TaskResults)}
    assert {each.needs for each in ROWS} <= parts
    assert {part for story in STORIES for part in story.needs} <= parts


def score(mean: float, error: float = 0.1) -> Score:
    return Score(mean=mean, standard_error=error, exploded=0)


def comparison(
    optimizers: dict[str, Score], differences: dict[str, tuple[float, float]]
) -> dict[str, Claim]:
    paired = {name: MeanAndError(*pair) for name, pair in differences.items()}
    summary = EvaluationSummary(optimizers, paired)
    found = judge(ROWS, task_results("linear_regression", summary=summary))
    return {claim.id.partition(".")[2]: claim for claim in found}


def test_a_win_must_exceed_two_standard_errors() -> None:
    claims = comparison(
        {
            "learned": score(0.5), "momentum": score(1.0), "adam": score(0.6),
            "rmsprop": score(math.nan),
        },
        {"momentum": (-0.5, 0.1), "adam": (-0.1, 0.08), "rmsprop": (math.nan, math.nan)},
    )  # fmt: skip
    assert claims["learned_beats_momentum"].measured == pytest.approx(5.0)
    assert claims["learned_beats_momentum"].passed
    assert claims["learned_beats_adam"].verdict == Verdict.ROUNDING
    assert claims["learned_beats_rmsprop"].passed
    assert claims["advantage_over_momentum"].measured == pytest.approx(0.5)


def test_a_learned_optimizer_that_diverges_loses() -> None:
    claims = comparison(
        {"learned": score(math.inf), "momentum": score(1.0)}, {"momentum": (math.nan, math.nan)}
    )
    assert claims["learned_beats_momentum"].verdict == Verdict.DISAGREES
    assert claims["learned_beats_momentum"].measured is None
    assert "diverged" in claims["learned_beats_momentum"].note


def test_the_mechanisms_are_judged_by_what_was_measured(tiny_study: Path) -> None:
    found = read_task_result(tiny_study / "rosenbrock" / "mechanisms.json", MechanismsResult)
    parts = found.mechanisms

    def verdicts(rate: list[float]) -> dict[str, bool]:
        changed = dataclasses.replace(
            parts,
            update=dataclasses.replace(parts.update, largest_part=MeanAndError(0.2, 0.01)),
            schedule=dataclasses.replace(parts.schedule, rate=np.array(rate)),
            adaptation=dataclasses.replace(
                parts.adaptation,
                ratio=MeanAndError(1.0, 0.01),
                slope_ratio=MeanAndError(math.nan, math.nan),
            ),
        )
        mechanisms = dataclasses.replace(found, mechanisms=changed)
        return {
            claim.row: claim.passed for claim in judge(ROWS, task_results(mechanisms=mechanisms))
        }

    assert verdicts([1.0, 2.0, 0.5]) == {
        "update_saturates": True,
        "schedule_warms_up": True,
        "schedule_decays": True,
        "rate_falls_with_gradient": False,
        "slope_falls_with_gradient": False,
    }
    flat = verdicts([1.0, 1.0, 1.0])
    assert not flat["schedule_warms_up"]
    assert not flat["schedule_decays"]


def kept(fraction: float, mean: float = 1.0) -> dict[str, Any]:
    return {"mean": mean, "standard_error": 0.1, "exploded": 0, "kept": Kept(fraction, 0.1)}


def test_the_ledger_names_what_a_readable_optimizer_lacks(tiny_study: Path) -> None:
    found = read_task_result(tiny_study / "rosenbrock" / "distillation.json", DistillationResult)
    learned = {
        name: JudgedMechanism(what=name, **row)
        for name, row in {
            "no schedule": kept(0.4), "linear": kept(math.nan, math.nan), "one mode": kept(-1.0),
        }.items()
    }  # fmt: skip

    def claim(fraction: float, **without: float) -> Claim:
        size = dataclasses.replace(found.sizes[0], name="2 momenta", **kept(fraction))
        changed = dataclasses.replace(
            found,
            sizes=[size],
            chosen=0,
            without={name: Judged(**kept(part)) for name, part in without.items()},
            learned_without=learned,
        )
        (judged,) = judge(ROWS, task_results("digits", distillation=changed))
        return judged

    note = claim(0.5, schedule=0.2).note
    assert "its part worth most is schedule (without it: 0.2)" in note
    assert "mechanism worth most is its nonlinearity (without it: diverged)" in note
    assert "missing: nonlinearity, as it gains nothing by adaptive scaling or saturation" in note
    note = claim(0.5, saturation=0.1, schedule=0.6).note
    assert "its part worth most is saturation (without it: 0.1)" in note
    assert "missing: schedule, as it gains nothing by schedule (without its schedule the" in note
    assert "beyond the parts" in claim(0.5, saturation=0.1, schedule=0.3).note
    assert claim(0.5).verdict == Verdict.BEYOND
    good = claim(0.95)
    assert good.passed
    assert "missing" not in good.note
    # Finite, but there is no advantage to keep: that is not divergence.
    assert "2 momenta: the learned one is not ahead there" in claim(math.nan).note


def test_a_ledger_is_read_back_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "claims.json"
    claims = judge([row(Measured(0.5)), row(Measured(math.inf))], task_results(training=[]))
    write_json(path, claims)
    assert read_ledger(path) == claims
    for content, where in (("[{}]", r"claims\.json: "), ("[", "not valid JSON")):
        path.write_text(content)
        with pytest.raises(UserError, match=where):
            read_ledger(path)


def test_recipes_follow_the_papers_protocol_at_every_scale() -> None:
    for scale in SCALES:
        assert recipe_for("linear_regression", scale).protocol.decay_every == 500
    assert recipe_for("linear_regression", "paper").architecture.units == 256
    assert recipe_for("linear_regression", "laptop").protocol.num_meta_steps == 5000
    with pytest.raises(UserError, match="--scale"):
        recipe_for("linear_regression", "galaxy")
