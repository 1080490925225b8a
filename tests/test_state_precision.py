"""State stored in bfloat16: half the bytes, sums in float32, nearly the same meta-gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import helpers
from optdyn.errors import UserError
from optdyn.meta_training import MetaTraining, UnrollOptions
from optdyn.meta_training._containment import contain_cotangents
from optdyn.optimizers._state_precision import store_state_in


def test_only_the_state_is_stored_in_fewer_bits() -> None:
    tx = store_state_in("bfloat16", optax.adam(0.1))
    params = {"x": jnp.full((3,), 0.3)}
    state = tx.init(params)
    updates, state = tx.update({"x": jnp.full((3,), 1 / 3)}, state, params)
    assert updates["x"].dtype == jnp.float32
    assert state[0].mu["x"].dtype == jnp.bfloat16
    assert state[0].count.dtype == jnp.int32
    expected = jnp.float32(0.1 / 3).astype(jnp.bfloat16)
    np.testing.assert_array_equal(state[0].mu["x"], expected)
    exact = optax.adam(0.1)
    assert store_state_in("float32", exact) is exact


def test_a_momentum_summed_over_small_steps_is_rounded_after_each_alone() -> None:
    tx, decay = store_state_in("bfloat16", optax.trace(0.5)), 0.5
    state, g = tx.init(jnp.zeros(1)), jnp.array([1.0 + 2.0**-12])
    stored = np.float32(0)
    for _ in range(5):
        updates, state = tx.update(g, state)
        wide = np.float32(decay) * stored + np.float32(g[0])
        np.testing.assert_array_equal(updates, [wide])
        stored = np.float32(jnp.float32(wide).astype(jnp.bfloat16))


@pytest.mark.parametrize("bound", [None, 1.0])
def test_the_meta_gradient_stays_near(bound: float | None) -> None:
    task, rnn = helpers.small_task("linear_regression"), helpers.random_rnn(scale=0.2)

    def gradient(dtype: str) -> np.ndarray:
        options = UnrollOptions(
            num_steps=10, normalization="first", max_cotangent_norm=bound, state_dtype=dtype
        )
        _, found, _ = helpers.compiled_gradient(
            rnn, task, jax.random.key(0), batch_size=4, options=options
        )
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))
        return np.asarray(helpers.as_vector(found))

    exact, rounded = gradient("float32"), gradient("bfloat16")
    difference = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 1e-6 < difference < 2e-2


def test_the_norm_of_a_cotangent_is_summed_in_float32() -> None:
    carry = (jnp.ones((1, 1)), jnp.ones((400, 1), jnp.bfloat16))
    _, reverse = jax.vjp(lambda c, p: contain_cotangents(c, p, 1.0), carry, jnp.zeros(1))
    (_, state), events = reverse((jnp.zeros((1, 1)), jnp.ones((400, 1), jnp.bfloat16)))
    assert state.dtype == jnp.bfloat16
    np.testing.assert_allclose(state.astype(jnp.float32), 0.05, rtol=4e-3)
    assert events[0] == 1


def test_other_types_are_refused() -> None:
    with pytest.raises(UserError, match="state_dtype: unknown value 'float16'"):
        MetaTraining(state_dtype="float16")
