"""Saturation, schedule, adaptation and followed modes, against closed forms."""

from __future__ import annotations

import numpy as np
import optax
import pytest

from dynamics_helpers import linear_system
from optdyn.dynamics import eigenmodes, step_map
from optdyn.dynamics._operating_point import operating_point
from optdyn.dynamics._tracking import track_modes
from optdyn.errors import UserError
from optdyn.mechanisms._measurement import Visited, measure
from optdyn.mechanisms._nonlinear import (
    adam_adaptation,
    adaptation,
    autonomous_schedule,
    effective_rates,
    portrait,
    rmsprop_adaptation,
    update_function,
)

GRID = np.geomspace(1e-4, 1e3, 57)
CLIPPED = optax.chain(optax.clip(0.37), optax.sgd(0.5, momentum=0.75))


def test_gradient_descent_does_not_saturate():
    found = update_function(optax.sgd(0.5), GRID)
    assert found.rate == pytest.approx(0.5, rel=1e-12)
    assert found.linear_part == pytest.approx(np.ones(len(GRID)), rel=1e-12)
    assert found.threshold == np.inf


def test_the_threshold_of_a_clip_is_found_exactly():
    found = update_function(CLIPPED, GRID)
    assert found.threshold == pytest.approx(0.37, rel=1e-12)
    assert found.response == pytest.approx(0.5 * np.minimum(GRID, 0.37), rel=1e-12)
    assert found.linear_part_at(np.array([1e-9, 1e9])) == pytest.approx([1.0, 0.37e-3], rel=1e-9)


def test_the_drift_is_not_taken_for_an_update():
    moving = update_function(optax.sgd(0.5, momentum=0.75), GRID, h=np.array([3.0]))
    assert moving.response == pytest.approx(0.5 * GRID, rel=1e-9)


@pytest.mark.parametrize("sizes", [[1.0], [1.0, 0.5], [0.0, 1.0]])
def test_sizes_must_ascend(sizes):
    with pytest.raises(UserError, match="ascending from above 0"):
        update_function(optax.sgd(0.5), np.array(sizes))


def test_the_schedule_of_a_scheduled_optimizer_is_its_schedule():
    schedule = optax.warmup_cosine_decay_schedule(0.1, 0.8, 5, 30, 0.2)
    found = autonomous_schedule(optax.sgd(schedule, momentum=0.9), 40)
    assert found == pytest.approx([float(schedule(k)) for k in range(40)], rel=1e-6)


def test_momentum_has_a_constant_schedule_and_rates_of_states_do_not_matter():
    tx = optax.sgd(0.5, momentum=0.75)
    assert autonomous_schedule(tx, 5) == pytest.approx([0.5] * 5, rel=1e-12)
    clipped = optax.chain(optax.clip_by_global_norm(1.0), tx)
    assert autonomous_schedule(clipped, 5) == pytest.approx([0.5] * 5, rel=1e-12)
    assert effective_rates(tx, np.array([[0.0], [9.0]])) == pytest.approx([0.5, 0.5], rel=1e-12)


def test_adaptation_of_rmsprop_is_the_closed_form():
    found = adaptation(optax.rmsprop(0.1, decay=0.9), GRID)
    assert found.converged.all()
    assert found.h[:, 0] == pytest.approx(GRID**2, rel=1e-9)
    assert found.rate == pytest.approx(rmsprop_adaptation(GRID, 0.1, 0.9), rel=1e-9)
    # The slope at g itself, differentiated by hand.
    square = GRID**2
    slope = 0.1 * (0.9 * square + 1e-8) / (square + 1e-8) ** 1.5
    assert found.slope == pytest.approx(slope, rel=1e-8)


def test_adaptation_of_adam_is_the_closed_form():
    found = adaptation(optax.adam(0.1, b1=0.9, b2=0.95), GRID, count=100_000)
    assert found.converged.all()
    assert found.rate == pytest.approx(adam_adaptation(GRID, 0.1, 0.9, 0.95), rel=1e-8)


def test_clipping_alone_is_not_adaptation():
    found = adaptation(CLIPPED, GRID)
    assert found.rate == pytest.approx(np.full(len(GRID), 0.5), rel=1e-9)


def test_a_portrait_recovers_a_plane():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    inside = rng.normal(size=(200, 2)) * [3.0, 0.5]
    found = portrait(inside @ basis.T + 7.0)
    assert found.explained[:2].sum() == pytest.approx(1.0, rel=1e-12)
    assert found.axes @ found.axes.T == pytest.approx(np.eye(3), abs=1e-9)
    rebuilt = found.mean + found.project(inside @ basis.T + 7.0) @ found.axes
    assert rebuilt == pytest.approx(inside @ basis.T + 7.0, abs=1e-9)
    with pytest.raises(UserError, match="at least two, all finite"):
        portrait(np.full((3, 2), np.nan))


def modes_of(alpha, beta):
    """Those of aggregated momentum: ``v' = β v + g`` with the update ``−Σ α v'``."""
    alpha, beta = np.array(alpha), np.array(beta)
    return eigenmodes(
        linear_system(np.diag(beta), np.ones(beta.size), -alpha * beta, D=-np.sum(alpha))
    )


def test_modes_that_cross_are_followed_by_their_vectors():
    # Gains swap order between checkpoints, and the two eigenvalues pass each other.
    fast = np.linspace(0.2, 0.95, 8)
    slow = np.linspace(0.8, 0.5, 8)
    tracks = track_modes([modes_of([0.5, 0.3], [f, s]) for f, s in zip(fast, slow, strict=True)])
    assert tracks.beta.real[:, 0] == pytest.approx(fast, rel=1e-9)
    assert tracks.beta.real[:, 1] == pytest.approx(slow, rel=1e-9)
    assert tracks.gain[:, 0] == pytest.approx(0.5 / (1 - fast), rel=1e-9)
    assert tracks.timescale[-1] == pytest.approx(-1.0 / np.log([0.95, 0.5]), rel=1e-9)
    assert np.max(tracks.step) < 0.3
    with pytest.raises(UserError, match="checkpoints: state sizes"):
        track_modes([modes_of([0.5], [0.2]), modes_of([0.5, 0.3], [0.2, 0.4])])


def measured(tx):
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(4, 3, 40)) * np.geomspace(1.0, 1e-3, 40)
    step = step_map(tx)
    point = operating_point(step, gradients[0])
    return measure(step, point.modes, Visited(gradients, gradients))


def test_everything_is_measured_for_a_clipped_optimizer():
    found = measured(CLIPPED)
    top = found.density.quantiles[-1]
    assert found.density.count.sum() == 4 * 3 * 40
    assert found.update.threshold_start == pytest.approx(0.37, rel=1e-9)
    assert 0.1 < found.update.largest_part.mean < 0.5 < top
    assert found.update.largest_part.standard_error > 0
    assert found.schedule.rate == pytest.approx(np.full(40, 0.5), rel=1e-12)
    assert found.schedule.on_problems.mean == pytest.approx(np.full(40, 0.5), rel=1e-9)
    assert found.adaptation.ratio.mean == pytest.approx(1.0, rel=1e-9)
    assert found.linear.impulse[:3] == pytest.approx([-0.5, -0.375, -0.28125], rel=1e-9)
    # At frequency π: 0.5/(1 + 0.75).
    assert found.linear.response[-1] == pytest.approx(0.5 / 1.75, rel=1e-6)


def test_an_adaptive_optimizer_is_told_from_a_clipped_one():
    # RMSProp that has a linear regime: ε is as large as usual gradients.
    found = measured(optax.rmsprop(0.1, decay=0.9, eps=1e-4))
    assert found.adaptation.ratio.mean < 0.1
    assert found.update.threshold_start < 0.1
