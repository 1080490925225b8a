"""Eigenmodes give back what optimizers were built from."""

from __future__ import annotations

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics_helpers import adam_state, learned, learned_at_fixed_point, linear_system
from helpers import small_part
from optdyn.dynamics import (
    Linearization,
    eigenmodes,
    impulse_mismatch,
    linearize,
    settle,
    timescale,
    truncate,
)
from optdyn.errors import UserError
from optdyn.optimizers._aggregated_momentum import aggregated_momentum
from optdyn.study._optimizer_drawing import impulse_parts

pytestmark = pytest.mark.usefixtures("x64")


EXACT = {
    "momentum": (optax.sgd(0.3, momentum=0.95), [0.3], [0.95], 0.0),
    "nesterov": (optax.sgd(0.3, momentum=0.95, nesterov=True), [0.285], [0.95], 0.3),
    "descent": (optax.sgd(0.3), [], [], 0.3),
    "aggmo": (
        aggregated_momentum([0.1, 0.02, 0.3], [0.9, 0.99, 0.0]),
        [0.02, 0.1, 0.0],
        [0.99, 0.9, 0.0],
        0.3,
    ),
    "aggmo_negative": (aggregated_momentum([0.1, 0.2], [0.9, -0.5]), [0.1, 0.2], [0.9, -0.5], 0.0),
    "scaled": (optax.chain(optax.scale(0.5), optax.sgd(0.3, momentum=0.9)), [0.15], [0.9], 0.0),
    "scaled_nesterov": (
        optax.chain(optax.sgd(0.3, momentum=0.9, nesterov=True), optax.scale(2.0)),
        [0.54],
        [0.9],
        0.6,
    ),
    "clipped": (optax.chain(optax.clip(1.0), optax.sgd(0.3, momentum=0.9)), [0.3], [0.9], 0.0),
}


@pytest.mark.parametrize(("tx", "alpha", "beta", "feedthrough"), EXACT.values(), ids=EXACT.keys())
def test_exact_recovery(tx, alpha, beta, feedthrough: float) -> None:
    lin = linearize(tx)
    modes = eigenmodes(lin)
    np.testing.assert_allclose(modes.alpha, alpha, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(modes.beta, beta, rtol=1e-10, atol=1e-14)
    assert modes.feedthrough == pytest.approx(feedthrough, rel=1e-10, abs=1e-14)
    assert impulse_mismatch(lin, modes) < 1e-12
    assert not modes.degenerate


def test_scaled_adam() -> None:
    tx = optax.chain(optax.adam(0.1, b1=0.8), optax.scale(0.5))
    modes = eigenmodes(linearize(tx, state=adam_state(tx, 2.0), count=10**9))
    expected = 0.5 * 0.1 * 0.2 / (np.sqrt(0.999) * 2.0 + 1e-8)
    np.testing.assert_allclose(modes.alpha, [expected, 0], rtol=1e-10, atol=1e-16)


PARTS = {
    "momentum": optax.sgd(0.3, momentum=0.95),
    "nesterov": optax.sgd(0.3, momentum=0.7, nesterov=True),
    "aggmo": aggregated_momentum([0.1, 0.02, 0.3], [0.9, 0.99, 0.0]),
    "scaled": optax.scale(-2.5),
}


CHAINS = [("momentum", "nesterov"), ("scaled", "aggmo", "momentum")]


@pytest.mark.parametrize("names", small_part(CHAINS[1:], CHAINS))
def test_a_chain_multiplies_its_parts(names: tuple[str, ...]) -> None:
    frequency = np.array([0.0, 0.01, 0.3, 2.0, np.pi])

    def response(tx: optax.GradientTransformation) -> np.ndarray:
        return eigenmodes(linearize(tx)).frequency_response(frequency)

    expected = np.prod([response(PARTS[name]) for name in names], axis=0)
    chained = response(optax.chain(*(PARTS[name] for name in names)))
    np.testing.assert_allclose(chained, expected, rtol=1e-9)


def test_timescale_and_gain() -> None:
    modes = eigenmodes(linearize(aggregated_momentum([0.1, 0.02, 0.3], [0.9, 0.99, 0.5])))
    np.testing.assert_allclose(modes.gain, [2.0, 1.0, 0.6], rtol=1e-12)
    np.testing.assert_allclose(modes.timescale, -1 / np.log([0.99, 0.9, 0.5]), rtol=1e-12)
    assert np.isposinf(eigenmodes(linear_system([[1.0]], [1.0], [-1.0])).timescale[0])
    assert eigenmodes(linear_system([[0.0]], [1.0], [-1.0])).timescale[0] == 0.0
    beta = np.array([np.exp(-0.1), -np.exp(-0.5), 1.0, np.exp(0.25), 0.0])
    np.testing.assert_allclose(timescale(beta), [10.0, 2.0, np.inf, -4.0, 0.0])


def test_undriven_integrator_has_no_gain() -> None:
    modes = eigenmodes(linear_system([[0.9, 0], [0, 1.0]], [1, 0], [-0.9, 0]))
    np.testing.assert_allclose(modes.gain, [10.0, 0.0])


def optimistic_descent() -> Linearization:
    """Δx_k = −0.1(2 g_k − g_{k−1}), after its first step."""
    tx = optax.optimistic_gradient_descent(0.1)
    return linearize(tx, state=settle(tx, steps=2))


def test_rounding_drives_no_integrator() -> None:
    # MADGRAD's sum of gradients and its starting point both stay as they are: two modes with
    # β = 1, of which x sees one combination, the one that momentum 0.9 averages.
    tx = optax.contrib.madgrad(0.1, momentum=0.9)
    modes = eigenmodes(linearize(tx, state=settle(tx, 1.0, steps=1000)))
    np.testing.assert_allclose(modes.beta, [0.9, 1.0, 1.0], rtol=1e-9)
    np.testing.assert_array_equal(modes.alpha[1:], [0.0, 0.0])
    np.testing.assert_array_equal(modes.used, [True, False, False])


def test_pure_delay() -> None:
    modes = eigenmodes(optimistic_descent())
    np.testing.assert_allclose(modes.delayed, [-0.1], rtol=1e-12)
    np.testing.assert_array_equal(modes.alpha, [0.0])
    assert modes.feedthrough == pytest.approx(0.2, rel=1e-12)
    np.testing.assert_allclose(modes.impulse_response(4), [-0.2, 0.1, 0, 0], atol=1e-15)


def test_impulse_response_equals_a_run() -> None:
    tx = optax.chain(
        optax.trace(0.9, nesterov=True), optax.trace(0.7), optax.scale_by_learning_rate(0.1)
    )
    lin = linearize(tx)
    state, expected = tx.init(np.zeros(1)), []
    for k in range(30):
        updates, state = tx.update(np.array([float(k == 0)]), state)
        expected.append(float(updates[0]))
    np.testing.assert_allclose(lin.impulse_response(30), expected, atol=1e-14)
    np.testing.assert_allclose(eigenmodes(lin).impulse_response(30), expected, atol=1e-14)


def test_frequency_response_is_the_transform_of_the_impulse_response() -> None:
    modes = eigenmodes(linearize(optax.sgd(0.3, momentum=0.8, nesterov=True)))
    frequency = np.array([0.0, 0.3, np.pi])
    k = np.arange(400)
    expected = np.exp(-1j * frequency[:, None] * k) @ modes.impulse_response(400)
    np.testing.assert_allclose(modes.frequency_response(frequency), expected, rtol=1e-12)
    delay = eigenmodes(optimistic_descent())
    np.testing.assert_allclose(delay.frequency_response([np.pi]), [-0.3], rtol=1e-12)


@pytest.mark.parametrize("cell", small_part(["gru", "lstm"], ["gru", "lstm", "rnn", "ugrnn"]))
def test_learned_optimizer(cell: str) -> None:
    rnn, _ = learned(cell)
    lin = learned_at_fixed_point(cell)
    modes = eigenmodes(lin)
    assert impulse_mismatch(lin, modes) < 1e-11
    assert abs(modes.feedthrough) < 1e-11 * np.sum(np.abs(modes.alpha))
    np.testing.assert_allclose(modes.L @ modes.R, np.eye(lin.size), atol=1e-11)
    np.testing.assert_allclose((modes.R * modes.beta) @ modes.L, lin.A, atol=1e-11)
    # α_j = −(wᵀ r_j)(l_jᵀ B) for a readout of the updated state.
    readout = np.zeros(lin.size)
    readout[: rnn.w.size] = rnn.w
    np.testing.assert_allclose(modes.alpha, -(readout @ modes.R) * (modes.L @ lin.B), atol=1e-11)


def test_conjugate_pairs_stand_together() -> None:
    modes = eigenmodes(learned_at_fixed_point("rnn"))
    first = np.flatnonzero(modes.beta.imag > 0)
    assert len(first) > 0
    np.testing.assert_array_equal(modes.beta[first + 1], np.conj(modes.beta[first]))
    np.testing.assert_array_equal(modes.alpha[first + 1], np.conj(modes.alpha[first]))
    np.testing.assert_array_equal(modes.with_conjugates([int(first[0])]), [first[0], first[0] + 1])
    np.testing.assert_array_equal(
        modes.with_conjugates([int(first[0]) + 1]), [first[0], first[0] + 1]
    )
    with pytest.raises(UserError, match="keep"):
        modes.with_conjugates([8])


def heavy_ball_in_closed_loop(alpha: float, beta: float, curvature: float) -> Linearization:
    """State [v, x] of heavy ball on a quadratic; it reads out x."""
    A = [[beta, alpha * curvature], [-beta, 1 - alpha * curvature]]
    return linear_system(A, [alpha, -alpha], [0.0, 1.0])


def test_critical_damping_is_degenerate() -> None:
    beta, curvature = 0.81, 2.0
    critical = heavy_ball_in_closed_loop((1 - np.sqrt(beta)) ** 2 / curvature, beta, curvature)
    modes = eigenmodes(critical)
    assert modes.condition_number > 1e7
    assert impulse_mismatch(critical, modes) < 1e-6
    damped = eigenmodes(heavy_ball_in_closed_loop(0.1, beta, curvature))
    assert damped.condition_number < 100
    assert not damped.degenerate


@pytest.mark.parametrize("beta", [0.9, 0.0])
def test_exactly_defective_matrices(beta: float) -> None:
    lin = linear_system([[beta, 1.0], [0.0, beta]], [0.0, 1.0], [1.0, 0.0], D=-0.5)
    modes = eigenmodes(lin)
    assert modes.degenerate
    np.testing.assert_allclose(
        truncate(modes, "all").impulse_response(20), lin.impulse_response(20), atol=1e-6
    )
    assert impulse_mismatch(lin, modes) < 1e-6


@pytest.mark.parametrize(
    ("A", "B", "C"),
    [
        # Two momenta of 0.5 among others of 0.289 and -0.3.
        (
            [
                [0.289, 0, 0, 0],
                [0.289, 0.5, 0, 0],
                [0.289, 0.5, 0.5, 0],
                [0.4335, 0.75, 0.25, -0.3],
            ],
            [1.0, 1.0, 1.0, 1.5],
            [-0.0303, -0.0525, -0.0175, -0.009],
        ),
        # Three of 0.99, of which two go through the third: 1e-15 is nothing to a solver here.
        (
            [
                [0.5, 0, 0, 0, 0],
                [0.5, 0, 0, 0, 0],
                [0.434, -0.434, 0.99, 0, 0],
                [0.3388, -0.3388, 0, 0.99, 0],
                [-0.7728, 0.7728, -0.99, -0.99, 0.99],
            ],
            [1.0, 1.0, 0.868, 0.6776, -1.5456],
            [0.1538, -0.1538, 0.197, 0.197, -0.098],
        ),
    ],
    ids=["two", "three"],
)
def test_coincident_modes_among_others_keep_the_impulse_response(A, B, C) -> None:
    lin = linear_system(A, B, C)
    modes = eigenmodes(lin)
    assert modes.degenerate
    assert impulse_mismatch(lin, modes) < 1e-6
    np.testing.assert_allclose(modes.L @ modes.R, np.eye(len(B)), atol=1e-6)


@pytest.mark.parametrize("size", small_part([1e-6, 1e6], [1e-6, 1e-3, 1e3, 1e6]))
def test_modes_do_not_depend_on_the_size_of_gradients(size: float) -> None:
    # Second moments of size² and what they act on differ in units by many decades.
    tx = optax.contrib.schedule_free_adamw(0.1, eps=1e-30)

    def at(s: float):
        state = settle(tx, s, alternating=False, steps=3000)
        return eigenmodes(linearize(tx, state=state, gradient=s))

    modes, usual = at(size), at(1.0)
    assert not modes.degenerate
    np.testing.assert_allclose(modes.beta, usual.beta, rtol=1e-9)
    np.testing.assert_allclose(modes.alpha * size, usual.alpha, rtol=1e-6)


@pytest.mark.parametrize(
    ("delay", "beta"),
    small_part([(1, 0.9), (2, 0.0), (4, 0.9)], itertools.product([1, 2, 4], [0.0, 0.9])),
)
def test_gradients_that_come_some_steps_late(delay: int, beta: float) -> None:
    def update(g, queue, x=None):
        return queue[-1], (g, *queue[:-1])

    late = optax.GradientTransformation(lambda p: (jnp.zeros_like(p),) * delay, update)
    lin = linearize(optax.chain(late, optax.sgd(0.1, momentum=beta)))
    modes = eigenmodes(lin)
    steps = np.arange(12)
    exact = np.where(steps >= delay, -0.1 * beta ** np.maximum(steps - delay, 0.0), 0.0)
    np.testing.assert_allclose(modes.impulse_response(12), exact, atol=1e-14)
    np.testing.assert_allclose(truncate(modes, "all").impulse_response(12), exact, atol=1e-14)
    np.testing.assert_allclose(
        modes.frequency_response([0.4, 2.0]),
        [-0.1 * np.exp(-1j * w * delay) / (1 - beta * np.exp(-1j * w)) for w in (0.4, 2.0)],
        atol=1e-13,
    )
    drawn = impulse_parts(modes)
    together = np.sum(drawn["modes"], axis=0)
    together[0] -= drawn["feedthrough"]
    np.testing.assert_allclose(together, drawn["linear"], atol=1e-14)
    dropped = np.flatnonzero(modes.lag == 0).tolist()
    fir = truncate(modes, np.flatnonzero(modes.lag > 0).tolist())
    assert fir.size == modes.linearization.size - len(dropped)
    np.testing.assert_allclose(np.linalg.matrix_power(fir.A, delay + 1), 0.0, atol=1e-14)


def test_truncation_keeps_or_drops_whole_modes() -> None:
    lin = linearize(aggregated_momentum([0.1, 0.02], [0.9, 0.99]))
    modes = eigenmodes(lin)
    np.testing.assert_allclose(
        truncate(modes, "all").impulse_response(50), lin.impulse_response(50), atol=1e-14
    )
    expected = -0.1 * 0.9 ** np.arange(50)
    np.testing.assert_allclose(truncate(modes, [1]).impulse_response(50), expected, atol=1e-14)
    with pytest.raises(UserError, match="keep"):
        truncate(modes, "some")


def test_a_change_of_units_changes_no_mode() -> None:
    lin = learned_at_fixed_point("gru")
    scale = np.array([1.0, 10.0, 0.1, 3.0, 7.0, 0.5, 2.0, 1.0])
    other = dataclasses.replace(
        lin, A=scale[:, None] * lin.A / scale, B=scale * lin.B, C=lin.C / scale
    )
    np.testing.assert_allclose(eigenmodes(other).alpha, eigenmodes(lin).alpha, atol=1e-12)
