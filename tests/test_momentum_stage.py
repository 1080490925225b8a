"""The rule that names the momentum stage, and the search for one through trainings."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax
import pytest

import helpers
from optdyn.errors import UserError
from optdyn.inner_loop import Objective, ProblemSet
from optdyn.mechanisms import (
    MomentumComparison,
    StageRow,
    StageSearch,
    StageThresholds,
    TunedMomentum,
    find_momentum_stage,
)
from optdyn.optimizers._aggregated_momentum import aggregated_momentum
from optdyn.tasks import LinearRegression

RULE = StageThresholds()
TUNED = TunedMomentum(alpha=2.0, beta=0.8, meta_objective=0.1)
SAME = StageRow(
    meta_step=7, meta_objective=0.1, alpha=2.0, beta=0.8, oscillating=False,
    gain_gap=20.0, rate_ratio=5.0, momentum_ratio=1.0, deviation=0.0,
)  # fmt: skip


def test_an_optimizer_that_is_tuned_momentum_strains_nothing():
    strain = RULE.strain(SAME, TUNED)
    assert strain.pop("gain_gap") == pytest.approx(0.5)
    assert set(strain.values()) == {0.0}
    assert RULE.met(SAME, TUNED)


@pytest.mark.parametrize(
    ("field", "at_threshold"),
    [
        ("meta_objective", 0.105), ("meta_objective", 0.095), ("alpha", 2.2), ("alpha", 1.8),
        ("momentum_ratio", 1.05), ("gain_gap", 10.0), ("deviation", 0.05),
    ],
)  # fmt: skip
def test_each_threshold_is_where_it_was_fixed(field, at_threshold):
    row = dataclasses.replace(SAME, **{field: at_threshold})
    assert RULE.strain(row, TUNED)[field] == pytest.approx(1.0)


def test_the_timescale_is_stricter_than_the_momentum_near_one():
    # −1/ln 0.8 = 4.48 steps and −1/ln 0.84 = 5.74: β is 5 % off, the timescale 28 %.
    strain = RULE.strain(dataclasses.replace(SAME, beta=0.84), TUNED)
    assert strain["beta"] == pytest.approx(0.5)
    assert strain["timescale"] == pytest.approx(0.2798 / 0.15, rel=1e-3)


@pytest.mark.parametrize(
    "departure",
    [{"oscillating": True}, {"beta": 1.01}, {"deviation": math.nan}, {"gain_gap": 0.0}],
)
def test_what_oscillates_grows_or_diverges_is_no_momentum(departure):
    row = dataclasses.replace(SAME, **departure)
    assert max(RULE.strain(row, TUNED).values()) == math.inf
    assert not RULE.met(row, TUNED)


def test_the_rule_takes_the_least_strained_of_those_like_momentum():
    far = dataclasses.replace(SAME, meta_step=1, meta_objective=0.2)
    strained = dataclasses.replace(SAME, meta_step=2, meta_objective=0.1, deviation=0.2)
    better = dataclasses.replace(SAME, meta_step=3, meta_objective=0.104, deviation=0.01)
    assert RULE.choose([far, strained, better], TUNED) is better
    assert RULE.choose([far, strained], TUNED) is strained


def test_where_none_is_like_momentum_the_nearest_is_taken():
    diverged = dataclasses.replace(SAME, meta_step=1, meta_objective=math.inf)
    above = dataclasses.replace(SAME, meta_step=2, meta_objective=0.13)
    below = dataclasses.replace(SAME, meta_step=3, meta_objective=0.08)
    assert RULE.choose([diverged, above, below], TUNED) is below
    with pytest.raises(UserError, match="no checkpoints"):
        RULE.choose([], TUNED)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TwoVelocities:
    """A stand-in for a learned optimizer whose modes are known."""

    alpha: jax.Array
    beta: jax.Array

    def as_optax(self) -> optax.GradientTransformation:
        return aggregated_momentum(self.alpha, self.beta)


@pytest.fixture(scope="module")
def comparisons() -> tuple[MomentumComparison, MomentumComparison]:
    sets = (
        ProblemSet(LinearRegression(n=3), 0, 4, Objective(20, "first"), name)
        for name in ("choosing", "fresh")
    )
    choosing, fresh = (MomentumComparison(problems, alpha=0.5, beta=0.75) for problems in sets)
    return choosing, fresh


def passing_through_momentum(best_alpha: float):
    """A training whose mode comes up to ``best_alpha`` at meta-step 30 and goes on."""

    def training(seed: int):
        for meta_step in range(1, 61):
            alpha = best_alpha + 0.04 * seed + (meta_step - 30) / 100
            yield meta_step, TwoVelocities(jnp.array([alpha, 1e-3]), jnp.array([0.75, 0.25]))

    return training


def test_the_search_stops_at_the_first_training_that_meets_all(comparisons):
    plan = StageSearch(seeds=(0, 1, 2), first=10, last=50, every=10)
    seen = []
    stage = find_momentum_stage(
        passing_through_momentum(0.5), *comparisons, plan=plan, on_training=seen.append
    )
    assert stage.met
    assert (stage.seed, stage.chosen.meta_step) == (0, 30)
    assert stage.judged.alpha == pytest.approx(0.5, rel=1e-6)
    assert stage.judged.meta_objective != stage.chosen.meta_objective
    assert stage.tuned.meta_objective == comparisons[1].tuned.meta_objective
    assert [found.looked_at for found in seen] == [5]
    assert stage.trainings == tuple(seen)


def test_checkpoints_of_one_training_share_what_is_compiled(comparisons, caplog):
    first, second = (
        TwoVelocities(jnp.array([rate, 1e-3]), jnp.array([0.75, 0.25])) for rate in (0.5, 0.4)
    )
    before = comparisons[0].measure(1, first)
    with helpers.compilations(caplog) as programs:
        after = comparisons[0].measure(2, second)
    assert after.alpha != before.alpha
    assert programs == []


def test_where_no_training_meets_all_the_least_strained_is_told(comparisons):
    plan = StageSearch(seeds=(0, 1), first=30, last=30, every=10)
    strict = StageThresholds(meta_objective=0.9, alpha=1e-3)
    stage = find_momentum_stage(
        passing_through_momentum(0.52), *comparisons, plan=plan, thresholds=strict
    )
    assert not stage.met
    assert (stage.seed, len(stage.trainings)) == (0, 2)
    assert stage.strain["alpha"] == pytest.approx(40.0, rel=1e-4)


def test_trainings_without_a_stage_are_refused(comparisons):
    plan = StageSearch(seeds=(0,), first=30, last=30)
    with pytest.raises(UserError, match="no checkpoint"):
        find_momentum_stage(passing_through_momentum(5.0), *comparisons, plan=plan)
    with pytest.raises(UserError, match="first"):
        StageSearch(first=10, last=5)
