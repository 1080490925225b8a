"""Cells, encodings and the learned optimizer as an optax pair."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import helpers
from optdyn.errors import UserError
from optdyn.optimizers import CELLS, Architecture, ComponentwiseRNN, Encoding
from optdyn.optimizers._gru_kernel import gru_reference, gru_step


@pytest.mark.parametrize("reset", ["before", "after"])
@pytest.mark.usefixtures("x64")
def test_hand_written_gru_gradient_equals_automatic_differentiation(reset):
    rnn = helpers.random_rnn("gru", units=5, encoding=Encoding("log_sign"))
    keys = jax.random.split(jax.random.key(4), 3)
    h = jax.random.normal(keys[0], (7, 5))
    u = jax.random.normal(keys[1], (7, 2))
    cotangent = jax.random.normal(keys[2], (7, 5))

    def pulled_back(step):
        value, reverse = jax.vjp(lambda p, h, u: step(reset, p, h, u), rnn.weights, h, u)
        return value, reverse(cotangent)

    ours, reference = jax.jit(lambda: (pulled_back(gru_step), pulled_back(gru_reference)))()
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_gru_follows_the_published_equations():
    rnn = helpers.random_rnn("gru", units=2)
    p = {name: np.asarray(value) for name, value in rnn.weights.items()}
    h, u = np.array([[0.3, -0.2]]), np.array([[0.7]])

    def sigmoid(a):
        return 1.0 / (1.0 + np.exp(-a))

    z = sigmoid(u @ p["V_z"] + h @ p["W_z"] + p["b_z"])
    r = sigmoid(u @ p["V_r"] + h @ p["W_r"] + p["b_r"])
    before = z * h + (1 - z) * np.tanh(u @ p["V_c"] + (r * h) @ p["W_c"] + p["b_c"])
    after = z * h + (1 - z) * np.tanh(u @ p["V_c"] + r * (h @ p["W_c"]) + p["b_c"])
    weights, state, inputs = rnn.weights, jnp.asarray(h), jnp.asarray(u)
    np.testing.assert_allclose(gru_step("before", weights, state, inputs), before, rtol=1e-12)
    np.testing.assert_allclose(gru_step("after", weights, state, inputs), after, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_lstm_follows_the_published_equations():
    rnn = helpers.random_rnn("lstm", units=1)
    p = {name: float(value.ravel()[0]) for name, value in rnn.weights.items()}
    output, memory, u = 0.2, -0.4, 0.9

    def gate(name, squash):
        return squash(p[f"V_{name}"] * u + p[f"W_{name}"] * output + p[f"b_{name}"])

    def sigmoid(a):
        return 1.0 / (1.0 + np.exp(-a))

    new_memory = gate("f", sigmoid) * memory + gate("i", sigmoid) * gate("g", np.tanh)
    new_output = gate("o", sigmoid) * np.tanh(new_memory)
    cell = rnn.architecture.make_cell()
    state = cell.step(rnn.weights, jnp.array([[output, memory]]), jnp.array([[u]]))
    np.testing.assert_allclose(state[0], [new_output, new_memory], rtol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_an_untrained_optimizer_stands_still(cell):
    rnn = ComponentwiseRNN.init(jax.random.key(0), Architecture(cell, 6))
    tx = rnn.as_optax()
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(())}
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    assert all(not leaf.any() for leaf in jax.tree.leaves(updates))


@pytest.mark.usefixtures("x64")
def test_encodings_follow_their_formulas():
    g = jnp.array([-2.0, 0.0, 0.5])
    np.testing.assert_allclose(Encoding("linear", gain=3.0)(g)[:, 0], 3 * g)
    np.testing.assert_allclose(
        Encoding("log_sign", gain=2.0)(g), np.stack([np.log1p(2 * np.abs(g)), np.sign(g)], axis=1)
    )
    np.testing.assert_allclose(
        Encoding("asinh", gain=1e3, scale=0.3)(g)[:, 0], 0.3 * np.arcsinh(1e3 * g)
    )
    slope = jax.grad(lambda x: Encoding("asinh", gain=10.0)(x[None])[0, 0])(0.0)
    np.testing.assert_allclose(slope, 10.0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"cell": "transformer"}, "cell"),
        ({"units": -1}, "units"),
        ({"output_scale": float("nan")}, "output_scale"),
    ],
)
def test_bad_architectures_are_named(settings, named):
    with pytest.raises(UserError, match=named):
        Architecture(**settings)
    with pytest.raises(UserError, match=r"encoding\.kind"):
        Encoding("fourier")


@dataclasses.dataclass(frozen=True)
class Leaky:
    """``h' = h/2 + tanh(V u)``: each row by itself."""

    units: int

    @property
    def state_size(self):
        return self.units

    def init(self, key, inputs):
        return {"V": 0.3 * jax.random.normal(key, (inputs, self.units))}

    def step(self, weights, h, u):
        return 0.5 * h + jnp.tanh(u @ weights["V"])


class Centred(Leaky):
    """Less the mean over rows."""

    def step(self, weights, h, u):
        after = super().step(weights, h, u)
        return after - jnp.mean(after, axis=0, keepdims=True)


def test_a_cell_whose_rows_change_each_other_is_refused():
    rnns = [ComponentwiseRNN.init(jax.random.key(0), Architecture(c, 3)) for c in (Leaky, Centred)]
    jax.jit(lambda g: rnns[0].as_optax().update(g, rnns[0].as_optax().init(g)))(jnp.ones(4))
    with pytest.raises(UserError, match=r"cell: rows of Centred\.step are not independent"):
        rnns[1].as_optax()
