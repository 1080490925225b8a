"""What optax asks of an optimizer, asked of every one in `optimizer_registry`."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optimizer_registry import OPTIMIZERS

TREES = {
    "nested": {
        "layers": [{"w": np.full((2, 3), 0.5), "b": np.ones(3)}, {"w": np.ones((3, 1)), "b": None}],
        "pair": (np.array(0.25), np.zeros((0, 4))),
        "empty": {},
    },
    "array": np.arange(4.0),
    "scalar": np.array(2.0),
    "nothing": {"a": None, "b": ()},
}
"""`None`, tuples and empty arrays among them: what a network's parameters may hold."""
TYPES = ("bfloat16", "float32", "float64")
VECTOR = np.array([0.5, -1.0, 0.25, 2.0], np.float32)
GRADIENTS = np.array([[0.3, -0.02, 1.5, 0.0], [0.1, 0.4, -2.0, 0.05]], np.float32)
"""[step, component]"""


@pytest.fixture(params=OPTIMIZERS)
def tx(request: pytest.FixtureRequest) -> optax.GradientTransformationExtraArgs:
    return made(request.param)


@functools.cache
def made(name: str) -> optax.GradientTransformationExtraArgs:
    """The optimizer called ``name``, its update compiled."""
    with jax.enable_x64(False):
        tx = optax.with_extra_args_support(OPTIMIZERS[name]())
    return optax.GradientTransformationExtraArgs(tx.init, jax.jit(tx.update))


def types(tree: Any) -> Any:
    """Each leaf's shape and dtype, and whether its dtype gives way to others'."""
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)


def two_steps(
    tx: optax.GradientTransformation, gradients: Any = GRADIENTS, params: Any = VECTOR
) -> tuple[list[Any], Any]:
    """The updates on two gradients, and the state after them; parameters stand still."""
    state, updates = tx.init(params), []
    for gradient in gradients:
        update, state = tx.update(gradient, state, params)
        updates.append(update)
    return updates, state


def split(vector: Any) -> dict[str, Any]:
    """Four components as a tree of an array, scalars, and nothing."""
    return {"pair": [vector[:2].reshape(1, 2), None], "one": vector[2], "other": (vector[3], {})}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("x64")
def test_updates_are_of_the_gradients_types_and_the_state_keeps_its_own(
    tx: optax.GradientTransformation, dtype: str
) -> None:
    for tree in TREES.values():
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)
        state = jax.eval_shape(tx.init, params)
        updates, after = jax.eval_shape(tx.update, params, state, params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        assert [u.dtype for u in jax.tree.leaves(updates)] == [dtype] * len(jax.tree.leaves(params))
        assert [u.shape for u in jax.tree.leaves(updates)] == [
            p.shape for p in jax.tree.leaves(params)
        ]
        assert types(after) == types(state)


def test_each_leaf_of_a_mixed_tree_keeps_its_type(tx: optax.GradientTransformation) -> None:
    params = {"half": jnp.ones(3, jnp.bfloat16), "single": jnp.ones(2)}
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(tx.update, params, state, params)
    assert {name: leaf.dtype for name, leaf in updates.items()} == {
        "half": jnp.bfloat16, "single": jnp.float32,
    }  # fmt: skip
    assert types(after) == types(state)


# Its gradients are larger than some of the trained ones have met.
@pytest.mark.filterwarnings("ignore::optdyn.optimizers.GradientRangeWarning")
def test_jit_any_tree_and_eager_steps_give_the_same(tx: optax.GradientTransformation) -> None:
    expected, _ = two_steps(tx)
    assert np.all(np.abs(expected[1][:3]) > 0.0)
    with jax.disable_jit():
        eager, _ = two_steps(tx)
    np.testing.assert_allclose(eager, expected, rtol=2e-5, atol=1e-7)
    nested, _ = two_steps(tx, [split(g) for g in GRADIENTS], split(VECTOR))
    for update, whole in zip(nested, expected, strict=True):
        parts = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(update)])
        order = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(split(np.arange(4)))])
        np.testing.assert_allclose(parts, np.asarray(whole)[order], rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", 8), ("float64", 23)])
@pytest.mark.usefixtures("x64")
def test_other_types_differ_by_their_rounding(
    tx: optax.GradientTransformation, dtype: str, bits: int
) -> None:
    expected, _ = two_steps(tx)
    found, _ = two_steps(tx, jnp.asarray(GRADIENTS, dtype), jnp.asarray(VECTOR, dtype))
    for one, other in zip(found, expected, strict=True):
        wide = np.asarray(other, np.float64)
        allowed = 2.0 ** (3 - bits)
        np.testing.assert_allclose(
            np.asarray(one, np.float64), wide, rtol=allowed, atol=allowed / 8 * np.abs(wide).max()
        )


def test_a_second_call_compiles_nothing(tx: optax.GradientTransformation) -> None:
    traces = []

    @jax.jit
    def update(*given: Any) -> Any:
        traces.append(given)
        return tx.update(*given)

    params = jnp.asarray(VECTOR)
    two_steps(optax.GradientTransformation(tx.init, update), jnp.asarray(GRADIENTS), params)
    assert len(traces) == 1


def test_vmap_runs_each_problem_alone(tx: optax.GradientTransformation) -> None:
    together = jax.vmap(lambda *rows: two_steps(tx, rows)[0][1], in_axes=0)(
        *(np.stack([g, 2.0 * g, -g]) for g in GRADIENTS)
    )
    for row, factor in zip(together, (1.0, 2.0, -1.0), strict=True):
        alone, _ = two_steps(tx, factor * GRADIENTS)
        np.testing.assert_allclose(row, alone[1], rtol=2e-5, atol=1e-7)


def test_it_works_in_a_chain_and_behind_a_mask(tx: optax.GradientTransformation) -> None:
    chained, _ = two_steps(optax.chain(optax.clip(0.5), tx, optax.scale(0.5)))
    expected, _ = two_steps(tx, np.clip(GRADIENTS, -0.5, 0.5))
    np.testing.assert_allclose(chained, 0.5 * np.asarray(expected), rtol=1e-6)
    gradients = [{"a": g, "b": g} for g in GRADIENTS]
    masked, _ = two_steps(
        optax.masked(tx, {"a": True, "b": False}), gradients, {"a": VECTOR, "b": VECTOR}
    )
    plain, _ = two_steps(tx)
    for found, moved, gradient in zip(masked, plain, GRADIENTS, strict=True):
        np.testing.assert_array_equal(found["a"], moved)
        np.testing.assert_array_equal(found["b"], gradient)


def test_the_states_parts_of_parameters_are_found(tx: optax.GradientTransformation) -> None:
    params = {"w": jnp.ones((5, 7)), "b": [jnp.zeros(7), None]}
    state = tx.init(params)
    seen = []
    again = optax.tree_map_params(tx, lambda leaf: seen.append(leaf.shape) or leaf, state)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    shaped = [
        x.shape for x in jax.tree.leaves(state) if x.shape[:2] == (5, 7) or x.shape[:1] == (7,)
    ]
    assert sorted(seen) == sorted(shaped)
