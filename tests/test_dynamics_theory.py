"""Stability and optimal settings against textbook results."""

from __future__ import annotations

import numpy as np
import optax
import pytest

from dynamics_helpers import adam_state, learned_at_fixed_point
from optdyn.dynamics import (
    closed_loop_radius,
    eigenmodes,
    is_stable,
    linearize,
    optimal_gradient_descent,
    optimal_momentum,
    settle,
    stable_range,
    truncate,
)
from optdyn.errors import UserError
from optdyn.optimizers._aggregated_momentum import aggregated_momentum

pytestmark = pytest.mark.usefixtures("x64")


def test_optimal_momentum_has_its_rate_everywhere() -> None:
    m, L = 0.01, 4.0
    alpha, beta = optimal_momentum(m, L)
    radius = closed_loop_radius(linearize(optax.sgd(alpha, momentum=beta)), np.geomspace(m, L, 7))
    # At both ends the roots coincide: rounding moves them by its square root.
    np.testing.assert_allclose(radius, np.sqrt(beta), rtol=1e-6)
    nearby = closed_loop_radius(linearize(optax.sgd(1.05 * alpha, momentum=beta)), np.array([m, L]))
    assert np.max(nearby) > np.sqrt(beta) + 1e-3


def test_optimal_gradient_descent() -> None:
    alpha, rate = optimal_gradient_descent(0.5, 2.0)
    assert (alpha, rate) == (0.8, 0.6)
    radius = closed_loop_radius(linearize(optax.sgd(alpha)), np.array([0.5, 2.0]))
    np.testing.assert_allclose(radius, rate, rtol=1e-12)
    assert optimal_momentum(2.0, 2.0) == (pytest.approx(0.5), 0.0)


@pytest.mark.parametrize(("m", "L"), [(0.0, 1.0), (2.0, 1.0), (1.0, np.nan), (-1.0, 1.0)])
def test_bad_spectra(m: float, L: float) -> None:
    for function in (optimal_momentum, optimal_gradient_descent):
        with pytest.raises(UserError, match="curvature"):
            function(m, L)


def nesterov_edge(alpha: float, beta: float) -> float:
    return 2 * (1 + beta) / (alpha * (1 + 2 * beta))


EDGES = {
    "descent": (optax.sgd(0.1), 20.0),
    "tiny_descent": (optax.sgd(1e-7), 2e7),
    "heavy_ball": (optax.sgd(0.1, momentum=0.9), 38.0),
    "slow_heavy_ball": (optax.sgd(0.01, momentum=0.999), 399.8),
    "nesterov": (optax.sgd(0.1, momentum=0.9, nesterov=True), nesterov_edge(0.1, 0.9)),
    "one_velocity": (aggregated_momentum([0.1], [0.5]), 30.0),
}


@pytest.mark.parametrize(("tx", "edge"), EDGES.values(), ids=EDGES.keys())
def test_stability_edges(tx: optax.GradientTransformation, edge: float) -> None:
    lin = linearize(tx)
    assert stable_range(lin) == pytest.approx(edge, rel=1e-6)
    assert stable_range(eigenmodes(lin)) == pytest.approx(edge, rel=1e-6)
    assert is_stable(lin, edge * 1e-3, edge * 0.999)
    assert not is_stable(lin, edge * 1e-3, edge * 1.001)


def test_adaptive_optimizers_at_a_stationary_state() -> None:
    tx = optax.adam(0.1, b1=0.9)
    lin = linearize(tx, state=adam_state(tx, 1.0), count=10**9)
    rate = 0.1 * 0.1 / (np.sqrt(0.999) + 1e-8)
    assert stable_range(lin) == pytest.approx(2 * 1.9 / rate, rel=1e-6)
    # AdaGrad's accumulator never decays, but it is not in the loop.
    tx = optax.adagrad(0.5)
    lin = linearize(tx, state=settle(tx, 1.0, steps=100))
    assert stable_range(lin) == pytest.approx(-2.0 / lin.D, rel=1e-6)


@pytest.mark.parametrize("make", [optax.contrib.madgrad, optax.adabelief])
def test_modes_outside_the_loop_are_left_out(make) -> None:
    # What is left of both is momentum: their other modes, 1 and 0.999, do not move x.
    lin = linearize(make(0.1), state=settle(make(0.1), 1.0, steps=1000))
    modes = eigenmodes(lin)
    alpha, beta = modes.alpha[0].real, modes.beta[0].real
    assert beta == pytest.approx(0.9, rel=1e-9)
    assert stable_range(lin) == pytest.approx(2 * (1 + beta) / alpha, rel=1e-6)
    middle = (1 + beta) / alpha
    assert closed_loop_radius(lin, np.array([middle]))[0] == pytest.approx(np.sqrt(beta))


def test_climbing_and_growing_optimizers_are_never_stable() -> None:
    assert stable_range(linearize(optax.scale(0.1))) == 0.0
    assert stable_range(linearize(aggregated_momentum([0.1], [1.01]))) == 0.0


def test_weight_decay_adds_to_the_curvature() -> None:
    lin = linearize(optax.chain(optax.add_decayed_weights(0.5), optax.scale(-0.1)))
    np.testing.assert_allclose(closed_loop_radius(lin, np.array([0.0, 1.0])), [0.95, 0.85])


def test_a_subset_of_modes_has_its_own_range() -> None:
    modes = eigenmodes(linearize(aggregated_momentum([0.1, 0.02], [0.9, 0.99])))
    assert stable_range(truncate(modes, [1])) == pytest.approx(38.0, rel=1e-6)
    assert stable_range(truncate(modes, [0])) == pytest.approx(199.0 * 0.02 / 0.02, rel=1e-6)


def test_modal_and_original_coordinates_agree_for_a_learned_optimizer() -> None:
    lin = learned_at_fixed_point("gru")
    curvatures = np.geomspace(1e-2, 1e2, 5)
    np.testing.assert_allclose(
        closed_loop_radius(truncate(eigenmodes(lin), "all"), curvatures),
        closed_loop_radius(lin, curvatures),
        rtol=1e-8,
    )
