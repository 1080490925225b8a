"""Optimizers reduced to sets of modes: the explorer's recursion and its stored losses."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import helpers
from optdyn.dynamics import eigenmodes, linearize, reduce, step_map, transients
from optdyn.dynamics._operating_point import operating_point
from optdyn.errors import UserError
from optdyn.inner_loop import Objective, ProblemSet
from optdyn.inner_loop._problem_set import VALIDATION_STREAM
from optdyn.mechanisms._mode_choices import choices, kept_modes_curves
from optdyn.optimizers._aggregated_momentum import aggregated_momentum
from optdyn.runs import AnalysisResult, ExplorerResult, read_task_result
from optdyn.runs._analysis_run import EXPLORER, explore_task
from optdyn.runs._plain import to_plain
from optdyn.runs._run_folder import RunFolder
from optdyn.tasks import LinearRegression, TwoMoons


@pytest.fixture(scope="module")
def validation() -> ProblemSet:
    return ProblemSet(LinearRegression(n=3), 0, 3, Objective(12, "first"), VALIDATION_STREAM)


def rnn_point():
    return operating_point(step_map(helpers.random_rnn("gru", units=4)), np.zeros((1, 5)))


def test_the_recursion_of_the_docstring_is_the_reduced_optimizer(x64) -> None:
    point = rnn_point()
    modes, kept = point.modes, point.modes.with_conjugates([0, 2])
    tx = reduce(modes, keep=kept.tolist(), h0=point.h0)
    gradients = np.random.default_rng(0).standard_normal(20)
    state = tx.init(jnp.zeros(1))
    s = transients(modes, point.h0)[kept]
    beta, alpha, delayed = (v[kept] for v in (modes.beta, modes.alpha, modes.delayed))
    direct = modes.feedthrough + np.sum(alpha).real
    for g in gradients:
        update, state = tx.update(jnp.array([g]), state)
        expected = modes.drift + np.sum(s).real - direct * g
        assert float(update[0]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        s = beta * s - (alpha * beta + delayed) * g


def test_stored_losses_are_those_of_the_reduced_optimizers(validation: ProblemSet) -> None:
    point = rnn_point()
    sets = [[0], [1, 2], [], list(range(4))]
    curves = kept_modes_curves(validation, point, sets)
    for keep, curve in zip(sets, curves, strict=True):
        tx = reduce(point.modes, keep=keep, h0=point.h0)
        expected = validation.mean_curve(validation.curves(lambda tx=tx: tx)()).mean
        np.testing.assert_allclose(curve, expected, rtol=2e-5)
    with pytest.raises(UserError, match="no mode 9"):
        kept_modes_curves(validation, point, [[9]])


def test_choices_are_nested_from_the_strongest_and_keep_pairs_together() -> None:
    beta = [0.9, 0.5, 0.3, 0.2, 0.1]
    modes = eigenmodes(linearize(aggregated_momentum([1.0] * 5, beta)))
    assert choices(modes) == {
        "the strongest mode": [0],
        "mode 2 alone": [1],
        "the 2 strongest modes": [0, 1],
        "the 4 strongest modes": [0, 1, 2, 3],
        "all modes": [0, 1, 2, 3, 4],
    }
    modes = rnn_point().modes
    for kept in choices(modes).values():
        assert modes.with_conjugates(kept).tolist() == kept


@pytest.mark.full
def test_a_task_whose_loss_the_page_cannot_compute_has_its_losses_stored(
    small_moons: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = read_task_result(small_moons / "two_moons" / EXPLORER, ExplorerResult)
    analysis = read_task_result(small_moons / "two_moons" / "analysis.json", AnalysisResult)
    assert kept.problems is None
    assert kept.choices is not None
    assert [int(step) for step in kept.choices] == sorted({analysis.momentum_stage, analysis.final})
    for step, found in kept.choices.items():
        (alone,) = (s for s in found.sets if s.name == "the strongest mode")
        curves = analysis.row(int(step)).curves
        # On the same problems here, so the same as the analysis's.
        np.testing.assert_allclose(found.full, curves.full, rtol=1e-4)
        np.testing.assert_allclose(alone.curve, curves.one_mode, rtol=1e-3)
    held_out = kept.inputs.settings[0]
    task = TwoMoons(**kept.inputs.task_options)
    again = explore_task(RunFolder(small_moons), task, held_out, held_out)
    assert to_plain(again) == to_plain(kept)
    assert "trying sets" not in capsys.readouterr().out
