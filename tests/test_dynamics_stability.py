"""The stability map: its edge and its optimum against the theory of quadratics."""

from __future__ import annotations

import numpy as np
import optax
import pytest

from dynamics_helpers import learned_at_fixed_point
from optdyn.dynamics import (
    closed_loop_radius,
    eigenmodes,
    linearize,
    optimal_gradient_descent,
    optimal_momentum,
    stability_map,
)
from optdyn.errors import UserError
from optdyn.optimizers._aggregated_momentum import aggregated_momentum

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize(
    ("tx", "edge"),
    [
        (optax.sgd(0.1), 2 / 0.1),
        (optax.sgd(0.1, momentum=0.9), 2 * 1.9 / 0.1),
        (optax.sgd(0.1, momentum=0.9, nesterov=True), 2 * 1.9 / (0.1 * 2.8)),
    ],
    ids=["descent", "heavy_ball", "nesterov"],
)
def test_edges(tx: optax.GradientTransformation, edge: float) -> None:
    found = stability_map(linearize(tx))
    assert found.edge == pytest.approx(edge, rel=1e-6)
    # The grid brackets it, and the radius crosses 1 there.
    inside = found.curvature < edge
    assert 0 < np.sum(~inside) < len(inside)
    assert np.all(found.radius[inside] < 1)
    assert np.all(found.radius[~inside] >= 1)
    assert stability_map(eigenmodes(linearize(tx))).edge == pytest.approx(edge, rel=1e-6)


def test_optimal_settings_reach_the_optimum_on_their_spectrum() -> None:
    spectrum = np.geomspace(0.02, 3.0, 30)
    alpha, beta = optimal_momentum(0.02, 3.0)
    found = stability_map(linearize(optax.sgd(alpha, momentum=beta)), spectrum=spectrum)
    assert (found.low, found.high, found.range_given) == (0.02, pytest.approx(3.0), True)
    assert found.rate == pytest.approx(found.momentum_rate, rel=1e-6)
    assert found.momentum_rate == pytest.approx(np.sqrt(beta), rel=1e-12)
    alpha, rate = optimal_gradient_descent(0.02, 3.0)
    found = stability_map(linearize(optax.sgd(alpha)), spectrum=spectrum)
    assert found.rate == pytest.approx(rate, rel=1e-9)
    assert found.descent_rate == pytest.approx(rate, rel=1e-12)
    assert found.fastest_curvature == pytest.approx(1 / alpha, rel=0.05)


def test_the_best_range_is_found() -> None:
    alpha, beta = optimal_momentum(0.02, 2.0)
    found = stability_map(linearize(optax.sgd(alpha, momentum=beta)), condition_number=100.0)
    assert not found.range_given
    assert found.high / found.low == pytest.approx(100.0, rel=1e-12)
    assert found.low == pytest.approx(0.02, rel=0.05)
    assert found.momentum_rate <= found.rate < found.momentum_rate + 0.02


@pytest.mark.parametrize(
    "tx",
    [
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        aggregated_momentum([0.1, 0.02, 0.3], [0.9, 0.99, 0.0]),
        optax.chain(optax.trace(0.5), optax.sgd(0.1, momentum=0.8)),
    ],
    ids=["nesterov", "aggmo", "two_traces"],
)
def test_no_memory_beats_the_optimum(tx: optax.GradientTransformation) -> None:
    lin = linearize(tx)
    for condition_number in (2.0, 30.0, 1000.0):
        found = stability_map(lin, condition_number=condition_number)
        assert found.rate >= found.momentum_rate - 1e-9


def test_radii_are_the_closed_loops() -> None:
    lin = learned_at_fixed_point("gru")
    found = stability_map(lin, spectrum=np.array([1e-9, 1e9]), points=20)
    np.testing.assert_allclose([found.curvature[0], found.curvature[-1]], [1e-9, 1e9], rtol=1e-9)
    np.testing.assert_allclose(found.radius, closed_loop_radius(lin, found.curvature))
    assert found.rate >= np.max(found.radius) - 1e-12


def test_what_never_settles() -> None:
    climbing = stability_map(linearize(optax.scale(0.1)))
    assert climbing.edge == 0.0
    assert np.all(climbing.radius > 1.0)
    still = stability_map(linearize(optax.lion(0.1, weight_decay=0.0), gradient=1.0))
    np.testing.assert_allclose(still.radius, 1.0)


def test_bad_input() -> None:
    lin = linearize(optax.sgd(0.1))
    for spectrum in ([], [0.0], [-1.0, 1.0], [np.nan], [np.inf]):
        with pytest.raises(UserError, match="spectrum"):
            stability_map(lin, spectrum=np.array(spectrum))
    with pytest.raises(UserError, match="condition_number"):
        stability_map(lin, condition_number=0.5)
    with pytest.raises(UserError, match="points"):
        stability_map(lin, points=3)
