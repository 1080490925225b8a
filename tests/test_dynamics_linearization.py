"""Linearisation against closed forms and finite differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics_helpers import adam_state, learned, learned_at_fixed_point, random_rnn
from helpers import small_part
from optdyn.dynamics import componentwise, eigenmodes, linearize, settle, step_map
from optdyn.dynamics._theory import steady_rate
from optdyn.errors import UserError
from optdyn.optimizers._encodings import Encoding

pytestmark = pytest.mark.usefixtures("x64")


def test_momentum_matrices() -> None:
    lin = linearize(optax.sgd(0.3, momentum=0.9))
    np.testing.assert_allclose([lin.A[0, 0], lin.B[0], lin.C[0], lin.D], [0.9, 1, -0.27, -0.3])
    assert lin.drift == lin.weight_decay == lin.residual_norm == 0.0
    assert lin.names == ("0.trace",)


def test_stateless_optimizer_has_only_a_direct_response() -> None:
    lin = linearize(optax.sgd(0.3))
    assert lin.size == 0
    assert pytest.approx(-0.3, abs=1e-15) == lin.D


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_at_a_stated_second_moment(decay: float) -> None:
    lr, b1, b2, eps, s = 0.02, 0.9, 0.999, 1e-8, 0.37
    tx = optax.adamw(lr, b1, b2, eps, weight_decay=decay)
    lin = linearize(tx, state=adam_state(tx, s), count=10**9)
    modes = eigenmodes(lin)
    expected = lr * (1 - b1) / (np.sqrt(b2) * s + eps)
    np.testing.assert_allclose(modes.beta[0], b1, rtol=1e-10)
    np.testing.assert_allclose(modes.alpha, [expected, 0], rtol=1e-10, atol=1e-16)
    assert abs(modes.feedthrough) < 1e-10 * expected
    assert lin.weight_decay == pytest.approx(-lr * decay, rel=1e-12)


def test_settled_state_is_the_stationary_one() -> None:
    tx = optax.adam(0.1, b1=0.8, b2=0.99)
    state = settle(tx, 0.5)
    (nu,) = optax.tree_utils.tree_get(state, "nu")
    (mu,) = optax.tree_utils.tree_get(state, "mu")
    assert float(nu) == pytest.approx(0.25, rel=1e-12)
    # The two phases of the cycle are ± each other: their mean is zero.
    assert abs(float(mu)) < 1e-15
    (mu,) = optax.tree_utils.tree_get(settle(tx, 0.5, alternating=False), "mu")
    assert float(mu) == pytest.approx(0.5, rel=1e-12)


def test_frozen_parts_are_no_state_variables() -> None:
    tx = optax.inject_hyperparams(optax.adam)(0.1)
    assert step_map(tx).names == ("inner_state.0.mu", "inner_state.0.nu")
    schedule = optax.linear_schedule(1.0, 0.0, 100)
    tx = optax.chain(optax.trace(0.5), optax.scale_by_learning_rate(schedule))
    assert pytest.approx(-0.25, rel=1e-12) == linearize(tx, count=75).D


def test_coupled_weight_decay_reaches_the_state() -> None:
    tx = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9))
    lin = linearize(tx, param=2.0)
    assert lin.weight_decay == pytest.approx(-1e-3)
    np.testing.assert_allclose(lin.E, [0.01])
    assert lin.drift == pytest.approx(-2e-3)


def test_schedule_free_does_not_depend_on_where_it_is() -> None:
    tx = optax.contrib.schedule_free(optax.sgd(0.5), learning_rate=0.5, b1=0.8)
    lin = linearize(tx, state=settle(tx, 1.0, steps=100))
    assert lin.weight_decay == 0.0
    np.testing.assert_array_equal(lin.E, [0.0])
    np.testing.assert_allclose(lin.comoving, [1.0], rtol=1e-9)
    # y' − y = c((z − lr g) − x) b1 + (1 − b1)(…): z moves by −lr g, y by its share of it.
    share = 1 - 0.8 * (1 - 1 / 101)
    assert pytest.approx(-0.5 * share, rel=1e-9) == lin.D


def test_saturated_clip_has_no_response() -> None:
    tx = optax.chain(optax.clip(1.0), optax.sgd(0.1))
    assert pytest.approx(-0.1) == linearize(tx, gradient=0.5).D
    assert linearize(tx, gradient=2.0).D == 0.0
    assert linearize(tx, gradient=2.0).drift == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("tx", "gradient"),
    [
        (optax.adam(0.1), 0.0),
        (optax.lion(0.1), 0.0),
        (optax.sign_sgd(0.1), 0.0),
        (optax.chain(optax.clip(1.0), optax.sgd(0.1)), 1.0),
        (random_rnn("gru", 3, Encoding("log_sign")).as_optax(), 0.0),
    ],
    ids=["adam", "lion", "sign", "clip", "log_sign"],
)
def test_no_derivative_is_refused(tx: optax.GradientTransformation, gradient: float) -> None:
    with pytest.raises(UserError, match=r"operating point: .* does not exist .*allowed: "):
        linearize(tx, gradient=gradient)


@pytest.mark.parametrize("make", [optax.adam, optax.rmsprop, optax.adabelief])
def test_smooth_points_are_not_refused(make) -> None:
    step = step_map(make(0.1))
    for scale in (1e-4, 1.0, 1e4):
        assert linearize(step, state=settle(step, scale)).D < 0.0


def test_slopes_agree_at_a_nonzero_gradient() -> None:
    assert linearize(optax.lion(0.1), gradient=0.1).D == 0.0
    tx = random_rnn("gru", 3, Encoding("log_sign", gain=1e3)).as_optax()
    assert linearize(tx, gradient=1e-3).D != 0.0


@pytest.mark.parametrize(
    "tx",
    [
        optax.lamb(0.1),
        optax.adafactor(0.1),
        optax.contrib.muon(0.1),
        optax.contrib.scale_by_muon(),
        optax.contrib.prodigy(),
        optax.adafactor(0.1, multiply_by_parameter_scale=False, clipping_threshold=None),
    ],
    ids=["lamb", "adafactor", "muon", "only_muon", "prodigy", "only_factored"],
)
def test_coupled_components_are_refused(tx: optax.GradientTransformation) -> None:
    with pytest.raises(UserError, match="not component-wise"):
        linearize(tx)


def full_matrix(gradients, state, params=None):
    """AdaGrad with the whole matrix of second moments, of vectors alone."""
    state = state + jnp.outer(gradients, gradients)
    sizes, vectors = jnp.linalg.eigh(state + 1e-3 * jnp.eye(len(gradients)))
    return -(vectors / jnp.sqrt(sizes)[None]) @ (vectors.T @ gradients), state


def momentum_of_vectors(gradients, state, params=None):
    (n,) = gradients.shape
    state = 0.9 * state[:n] + gradients
    return -0.1 * state, state


def test_optimizers_of_vectors_alone() -> None:
    tx = optax.GradientTransformation(lambda p: jnp.zeros((len(p), len(p))), full_matrix)
    with pytest.raises(UserError, match=r"not component-wise.* computed over them all"):
        linearize(tx)
    tx = optax.GradientTransformation(jnp.zeros_like, momentum_of_vectors)
    np.testing.assert_allclose(eigenmodes(linearize(tx)).alpha, [0.1], rtol=1e-12)


def test_optimizers_of_matrices_alone() -> None:
    def mean_of_rows(gradients, state, params=None):
        rows, columns = gradients.shape
        return jnp.broadcast_to(gradients.mean(1, keepdims=True), (rows, columns)), state

    def plain(gradients, state, params=None):
        rows, columns = gradients.shape
        return -0.1 * gradients.reshape(rows, columns), state

    for update, told in (mean_of_rows, "matrix as a whole"), (plain, "run on one component"):
        tx = optax.GradientTransformation(lambda p: jnp.zeros(p.shape[0]), update)
        with pytest.raises(UserError, match=told):
            linearize(tx)


def test_updates_of_another_shape_are_refused() -> None:
    with pytest.raises(UserError, match=r"update has the shape \(\) for parameters of shape"):
        linearize(optax.stateless(lambda g, p: jnp.sum(g)))


def test_parts_without_a_hash() -> None:
    class Momentum:
        __hash__ = None

        def __call__(self, gradients, state, params=None):
            state = 0.9 * state + gradients
            return -0.1 * state, state

    tx = optax.GradientTransformation(jnp.zeros_like, Momentum())
    np.testing.assert_allclose(eigenmodes(linearize(tx)).alpha, [0.1], rtol=1e-12)


def test_states_made_in_single_precision_lose_no_hyperparameters() -> None:
    tx = optax.inject_hyperparams(optax.adam)(0.1, b1=0.9, b2=0.999, eps=1e-8)
    with jax.enable_x64(False):
        state = optax.tree_utils.tree_set(tx.init(jnp.zeros(1)), nu=jnp.full(1, 4.0))
    assert state.hyperparams["b1"].dtype == jnp.float32
    modes = eigenmodes(linearize(tx, state=state, count=10**6))
    np.testing.assert_allclose(modes.beta[0], 0.9, rtol=1e-12)
    np.testing.assert_allclose(modes.alpha[0], 0.01 / (np.sqrt(0.999) * 2 + 1e-8), rtol=1e-12)


def test_a_kink_in_the_parameter_asks_for_another_one() -> None:
    tx = optax.chain(optax.sgd(0.1), optax.keep_params_nonnegative())
    with pytest.raises(UserError, match=r"∂Δx/∂param .*another param="):
        linearize(tx)
    assert pytest.approx(-0.1) == linearize(tx, param=0.5).D


def test_componentwise() -> None:
    assert componentwise(optax.adam(0.1))
    assert componentwise(random_rnn("lstm", 3).as_optax())
    assert not componentwise(optax.clip_by_global_norm(1e3))


def test_optimizers_that_need_more_are_refused() -> None:
    with pytest.raises(UserError, match="cannot be run"):
        linearize(optax.polyak_sgd())


def test_foreign_states_are_refused() -> None:
    with pytest.raises(UserError, match="state"):
        linearize(optax.adam(0.1), state=optax.sgd(0.1, 0.9).init(jnp.zeros(1)))
    with pytest.raises(UserError, match="state"):
        linearize(optax.adam(0.1), state=optax.adam(0.1).init(jnp.zeros(2)))
    with pytest.raises(UserError, match="h: shape"):
        linearize(optax.sgd(0.1, 0.9), h=np.zeros(2))


@pytest.mark.parametrize("cell", small_part(["gru", "lstm"], ["gru", "lstm", "rnn", "ugrnn"]))
def test_learned_optimizer_against_finite_differences(cell: str) -> None:
    rnn, step = learned(cell)
    lin = learned_at_fixed_point(cell)
    h = lin.state
    assert lin.residual_norm < 1e-12
    assert lin.drift == pytest.approx(float(rnn.w @ h[: rnn.w.size]), abs=1e-12)
    np.testing.assert_allclose(lin.C, lin.A[: rnn.w.size].T @ rnn.w, atol=1e-13)
    assert pytest.approx(float(rnn.w @ lin.B[: rnn.w.size]), abs=1e-13) == lin.D

    def outputs(z: np.ndarray) -> np.ndarray:
        h_next, dx = step(jnp.asarray(z[:-1]), jnp.asarray(z[-1]))
        return np.append(np.asarray(h_next), float(dx))

    z, size = np.append(h, 0.0), 1e-5
    for i in (0, len(h) // 2, len(h)):
        move = size * np.eye(len(z))[i]
        slope = (outputs(z + move) - outputs(z - move)) / (2 * size)
        column = np.append(lin.A[:, i], lin.C[i]) if i < len(h) else np.append(lin.B, lin.D)
        np.testing.assert_allclose(slope, column, atol=1e-9)


def test_a_rate_has_the_sign_of_what_a_gradient_does_in_all() -> None:
    """RMSProp at the gradient g with memory ν: of −αg/√ν' both ways to the update count."""
    alpha, decay, g, nu = 0.01, 0.9, 0.3, 0.04
    tx = optax.rmsprop(alpha, decay=decay, eps=0.0)
    state = optax.tree_utils.tree_set(tx.init(jnp.ones(1)), nu=jnp.full(1, nu))
    lin = linearize(tx, state=state, gradient=g)
    after = decay * nu + (1 - decay) * g**2
    direct = alpha * (after**-0.5 - (1 - decay) * g**2 * after**-1.5)
    # What comes by way of ν sums up to −αg/(2ν'^{3/2}) · β · 2(1 − β)g/(1 − β).
    remembered = -alpha * g**2 * decay * after**-1.5
    assert steady_rate(lin) == pytest.approx(direct + remembered, rel=1e-9)
    assert f"learning rate {direct + remembered:.4g} a step in all" in str(lin)
