"""The learned update as a user runs it: native against plain, state in bfloat16, memory."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import small_part
from optdyn.errors import UserError
from optdyn.optimizers import Architecture, ComponentwiseRNN, Encoding
from optdyn.optimizers import _fused_gru as fused_gru
from optdyn.optimizers import _fused_update as fused_update

UNITS = [3, 4, 8, 10, 16, 24, 32, 72]
EVEN = [each for each in UNITS if each % 2 == 0]
ENCODINGS = ["asinh", "log_sign"]


@functools.partial(jax.jit, static_argnums=(0, 1))  # one program, not one an operation
def optimizer(units: int, encoding: str = "log_sign") -> ComponentwiseRNN:
    rnn = ComponentwiseRNN.init(
        jax.random.key(units), Architecture("gru", units, Encoding(encoding), output_scale=0.5)
    )
    readout, start = 0.5 * jax.random.normal(jax.random.key(1), (2, units))
    biases = {name: leaf + 0.3 for name, leaf in rnn.weights.items() if name.startswith("b_")}
    return dataclasses.replace(rnn, w=readout, h0=start, weights={**rnn.weights, **biases})


def gradients() -> dict[str, jax.Array]:
    keys = iter(jax.random.split(jax.random.key(2), 4))
    shapes = {"matrix": (13, 17), "vector": (64,), "few": (2,), "number": ()}
    return {name: 3 * jax.random.normal(next(keys), shape) for name, shape in shapes.items()}


def after_two_steps(rnn: ComponentwiseRNN, **options: str):
    tx, g = rnn.as_optax(**options), gradients()
    update = jax.jit(tx.update)
    _, state = update(g, tx.init(g))
    return update(jax.tree.map(lambda leaf: -0.5 * leaf, g), state)


@pytest.mark.parametrize(
    ("units", "encoding"),
    small_part(
        zip([3, 8, 10, 32, 72], itertools.cycle(ENCODINGS), strict=False),
        itertools.product(UNITS, ENCODINGS),
    ),
)
def test_the_native_update_is_the_plain_one(monkeypatch, units, encoding):
    rnn = optimizer(units, encoding)
    native = after_two_steps(rnn)
    for module in (fused_gru, fused_update):
        monkeypatch.setattr(module, "targets", lambda: None)
    plain = after_two_steps(rnn)
    for ours, its in zip(jax.tree.leaves(native), jax.tree.leaves(plain), strict=True):
        assert ours.dtype == its.dtype
        np.testing.assert_allclose(ours, its, rtol=1e-5, atol=1e-5)


def step_in_bfloat16(rnn: ComponentwiseRNN, h: np.ndarray, u: np.ndarray) -> np.ndarray:
    """What h' is before it is rounded: factors of the state in bfloat16, all else in float64."""

    def narrow(x: np.ndarray) -> np.ndarray:
        return np.asarray(jnp.asarray(x, jnp.float32).astype(jnp.bfloat16), np.float64)

    p = {name: np.asarray(leaf, np.float64) for name, leaf in rnn.weights.items()}

    def gate(name: str, state: np.ndarray) -> np.ndarray:
        return u @ p[f"V_{name}"] + state @ narrow(p[f"W_{name}"]) + p[f"b_{name}"]

    z, r = (1 / (1 + np.exp(-gate(name, h))) for name in "zr")
    c = np.tanh(gate("c", narrow(r * h)))
    return c + z * (h - c)


@pytest.mark.parametrize("units", small_part([4, 10, 32], EVEN))
def test_a_state_in_bfloat16_is_rounded_and_sums_are_not(units):
    rnn = optimizer(units)
    step = fused_update.bind(
        fused_update.rounded(rnn.weights, jnp.bfloat16), rnn.w, jnp.dtype("bfloat16")
    )
    h = jax.random.normal(jax.random.key(3), (300, units)).astype(jnp.bfloat16)
    u = rnn.architecture.encoding(jax.random.normal(jax.random.key(4), (300,)))
    following, readout = step(h, u)
    expected = step_in_bfloat16(rnn, np.asarray(h, np.float64), np.asarray(u, np.float64))
    assert following.dtype == jnp.bfloat16
    # Where r h is near the middle of two numbers, another rounding of r takes the other one.
    beyond = np.abs(np.asarray(following, np.float64) - expected) - 2.0**-8 * np.abs(expected)
    assert np.quantile(beyond, 0.99) < 1e-5
    assert np.max(beyond) < 5e-3
    miss = np.abs(readout - expected @ np.asarray(rnn.w, np.float64))
    assert np.quantile(miss, 0.5) < 1e-4
    assert np.max(miss) < 5e-3


@pytest.mark.parametrize("units", small_part([3, 32], [3, 8, 32]))
def test_with_and_without_native_code_bfloat16_is_the_same_to_its_rounding(monkeypatch, units):
    rnn = optimizer(units)
    native = after_two_steps(rnn, state_dtype="bfloat16")
    for module in (fused_gru, fused_update):
        monkeypatch.setattr(module, "targets", lambda: None)
    plain = after_two_steps(rnn, state_dtype="bfloat16")
    for ours, its in zip(jax.tree.leaves(native), jax.tree.leaves(plain), strict=True):
        assert ours.dtype == its.dtype
        np.testing.assert_allclose(
            np.asarray(ours, np.float32), np.asarray(its, np.float32), rtol=2.0**-7, atol=2.0**-6
        )
    exact = after_two_steps(rnn)[0]
    assert any(
        np.any(ours != its)
        for ours, its in zip(jax.tree.leaves(native[0]), jax.tree.leaves(exact), strict=True)
    )


@pytest.mark.parametrize(
    ("units", "dtype"),
    small_part(
        [(8, "float32"), (32, "float32"), (32, "bfloat16")],
        itertools.product([8, 32], ["float32", "bfloat16"]),
    ),
)
def test_a_component_that_is_no_number_spoils_no_other(units, dtype):
    tx = optimizer(units).as_optax(state_dtype=dtype)
    g = jnp.linspace(-2.0, 2.0, 200)
    update = jax.jit(tx.update)
    expected, _ = update(g, tx.init(g))
    found, state = update(g.at[70].set(jnp.nan), tx.init(g))
    assert np.isnan(found[70])
    assert np.all(np.isnan(np.asarray(state.h[70], np.float32)))
    others = np.arange(200) != 70
    np.testing.assert_array_equal(found[others], expected[others])


@pytest.mark.parametrize(("dtype", "state_bytes"), [("float32", 128), ("bfloat16", 64)])
def test_with_its_state_donated_an_update_needs_no_copy_of_it(dtype, state_bytes):
    number = 8000
    params = {"matrix": jnp.zeros((50, 80)), "vector": jnp.zeros(4000)}
    tx = optimizer(32, "asinh").as_optax(state_dtype=dtype)
    state = tx.init(params)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == state_bytes * number
    assert jax.tree.map(jnp.shape, state.h) == {"matrix": (50, 80, 32), "vector": (4000, 32)}
    compiled = jax.jit(tx.update, donate_argnums=1).lower(params, state).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 12 * number


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_batch_of_optimizers_gives_what_each_gives_alone(dtype):
    tx, g = optimizer(8).as_optax(state_dtype=dtype), jnp.linspace(-1.0, 1.0, 36).reshape(2, 18)
    state = jax.vmap(tx.init)(g)
    together, _ = jax.vmap(lambda g, state: tx.update(g, state))(g, state)
    for i in range(2):
        alone, _ = tx.update(g[i], tx.init(g[i]))
        np.testing.assert_allclose(
            together[i], alone, rtol=0, atol=1e-5 if dtype == "float32" else 1e-2
        )


def test_its_derivative_is_the_plain_one_in_both_modes():
    rnn = optimizer(8)

    def total(rnn: ComponentwiseRNN, g: jax.Array) -> jax.Array:
        tx = rnn.as_optax()
        return jnp.sum(jnp.sin(tx.update(g, tx.init(g))[0]))

    g = jnp.linspace(-1.0, 1.0, 20)
    alone = jax.jit(functools.partial(total, rnn))
    _, forward = jax.jvp(alone, (g,), (jnp.ones(20),))
    reverse = jnp.sum(jax.jit(jax.grad(total, argnums=1))(rnn, g))
    step = 1e-2
    difference = (alone(g + step) - alone(g - step)) / (2 * step)
    np.testing.assert_allclose(forward, reverse, rtol=1e-5)
    np.testing.assert_allclose(forward, difference, rtol=2e-3)


def test_another_type_is_refused():
    with pytest.raises(UserError, match=r"state_dtype.*float32, bfloat16"):
        optimizer(4).as_optax(state_dtype="float16")
