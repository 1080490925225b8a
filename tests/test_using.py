"""A trained optimizer in a user's own loop: any library, any pytree, any optax wrapper."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import nnx

import optdyn
from helpers import small_part
from optdyn.errors import UserError


@pytest.fixture(scope="module")
def tx() -> optax.GradientTransformation:
    return optdyn.load_pretrained("two_moons").as_optax()


def gradients_like(params: Any, step: int = 0) -> Any:
    """Made-up gradients, other ones for each component and step."""
    leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, params))
    made, start = [], 0
    for leaf in leaves:
        waves = 1e-2 * np.sin(1.0 + start + np.arange(leaf.size) + 0.3 * step)
        made.append(jnp.asarray(waves, leaf.dtype).reshape(leaf.shape))
        start += leaf.size
    return jax.tree.unflatten(treedef, made)


def run(
    tx: optax.GradientTransformation, params: Any, steps: int = 3, start: int = 0, state: Any = None
) -> tuple[list[Any], Any]:
    """The updates of ``steps`` jitted steps on made-up gradients, and the state after them."""
    state, update, updates = tx.init(params) if state is None else state, jax.jit(tx.update), []
    for step in range(start, start + steps):
        found, state = update(gradients_like(params, step), state, params)
        updates.append(found)
    return updates, state


def small_rnn(units: int) -> optdyn.ComponentwiseRNN:
    """An optimizer of random weights; native code starts at 16 units."""
    rnn = optdyn.ComponentwiseRNN.init(jax.random.key(1), optdyn.Architecture(units=units))
    return dataclasses.replace(rnn, w=jnp.linspace(-1.0, 1.0, units), h0=0.1 * jnp.ones(units))


def flat(tree: Any) -> np.ndarray:
    leaves = [np.asarray(leaf, np.float32).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves) if leaves else np.zeros(0, np.float32)


def features() -> tuple[jax.Array, jax.Array]:
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)
    return inputs, jnp.sin(inputs[:, :1])


START = {
    "w1": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4),
    "b1": np.zeros(4, np.float32),
    "w2": np.linspace(1, -1, 4, dtype=np.float32).reshape(4, 1),
    "b2": np.zeros(1, np.float32),
}


def plain_losses(tx: optax.GradientTransformation, steps: int) -> list[float]:
    inputs, targets = features()

    def loss(p: dict[str, jax.Array]) -> jax.Array:
        hidden = jnp.tanh(inputs @ p["w1"] + p["b1"][None])
        return jnp.mean((hidden @ p["w2"] + p["b2"][None] - targets) ** 2)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    params: Any = jax.tree.map(jnp.asarray, START)
    state, losses = tx.init(params), []
    for _ in range(steps):
        params, state, value = step(params, state)
        losses.append(float(value))
    return losses


def nnx_losses(tx: optax.GradientTransformation, steps: int) -> list[float]:
    inputs, targets = features()

    class Network(nnx.Module):
        def __init__(self) -> None:
            start = [lambda *_, name=name: jnp.asarray(START[name]) for name in ("w1", "w2")]
            self.first = nnx.Linear(2, 4, kernel_init=start[0], rngs=nnx.Rngs(0))
            self.second = nnx.Linear(4, 1, kernel_init=start[1], rngs=nnx.Rngs(0))
            self.dropout = nnx.Dropout(0.0, rngs=nnx.Rngs(1))  # its counter is no parameter

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.second(self.dropout(jnp.tanh(self.first(x))))

    @nnx.jit
    def step(network: Network, optimizer: nnx.Optimizer) -> jax.Array:
        def loss(n: Network) -> jax.Array:
            return jnp.mean((n(inputs) - targets) ** 2)

        value, gradients = nnx.value_and_grad(loss)(network)
        optimizer.update(network, gradients)
        return value

    with jax.numpy_rank_promotion("allow"):
        network = Network()
        optimizer = nnx.Optimizer(network, tx, wrt=nnx.Param)
        return [float(step(network, optimizer)) for _ in range(steps)]


def equinox_losses(tx: optax.GradientTransformation, steps: int) -> list[float]:
    inputs, targets = features()
    network = eqx.nn.MLP(2, 1, 4, 1, jnp.tanh, key=jax.random.key(0))
    network = eqx.tree_at(
        lambda n: [n.layers[0].weight, n.layers[0].bias, n.layers[1].weight, n.layers[1].bias],
        network,
        [START["w1"].T, START["b1"], START["w2"].T, START["b2"]],
    )

    @eqx.filter_jit
    def step(network: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        def loss(n: Any) -> jax.Array:
            return jnp.mean((jax.vmap(n)(inputs) - targets) ** 2)

        value, gradients = eqx.filter_value_and_grad(loss)(network)
        updates, state = tx.update(gradients, state, eqx.filter(network, eqx.is_inexact_array))
        return eqx.apply_updates(network, updates), state, value

    state, losses = tx.init(eqx.filter(network, eqx.is_inexact_array)), []
    for _ in range(steps):
        network, state, value = step(network, state)
        losses.append(float(value))
    return losses


@pytest.mark.parametrize("library", [nnx_losses, equinox_losses])
def test_libraries_train_the_same_network_alike(
    tx: optax.GradientTransformation, library: Callable[..., list[float]]
) -> None:
    plain = plain_losses(tx, 8)
    assert plain[-1] < 0.9 * plain[0]
    np.testing.assert_allclose(library(tx, 8), plain, rtol=1e-4)


def test_a_scale_can_be_injected_scheduled_and_set(tx: optax.GradientTransformation) -> None:
    params = {"a": jnp.ones(3)}

    def scaled(scale: float) -> optax.GradientTransformation:
        return optax.chain(tx, optax.scale(scale))

    plain, _ = run(tx, params, steps=3)
    scheduled, _ = run(optax.inject_hyperparams(scaled)(lambda count: 0.5**count), params, steps=3)
    for step, (a, b) in enumerate(zip(scheduled, plain, strict=True)):
        np.testing.assert_allclose(a["a"], 0.5**step * b["a"], rtol=1e-6)
    injected = optax.inject_hyperparams(scaled)(scale=1.0)
    state = injected.init(params)
    state.hyperparams["scale"] = jnp.asarray(0.25)
    (first,), _ = run(injected, params, steps=1, state=state)
    np.testing.assert_allclose(first["a"], 0.25 * plain[0]["a"], rtol=1e-6)


@pytest.mark.parametrize("learned", small_part([("w",)], [("w", "b"), ("w",), ()]))
def test_multi_transform_gives_each_label_its_optimizer(
    tx: optax.GradientTransformation, learned: tuple[str, ...]
) -> None:
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2), "rest": {"c": jnp.ones(1)}}
    labels = {"w": "sgd", "b": "sgd", "rest": "frozen"} | dict.fromkeys(learned, "learned")
    both = optax.multi_transform(
        {"learned": tx, "sgd": optax.sgd(0.1), "frozen": optax.set_to_zero()}, labels
    )
    updates, _ = run(both, params, steps=2)
    gradients = gradients_like(params, 1)
    np.testing.assert_array_equal(updates[-1]["rest"]["c"], 0.0)
    for name in ("w", "b"):
        if name in learned:
            state = tx.init(params[name])
            for step in range(2):
                expected, state = tx.update(gradients_like(params, step)[name], state)
        else:
            expected = -0.1 * gradients[name]
        np.testing.assert_allclose(updates[-1][name], expected, rtol=1e-5, atol=1e-7)


WRAPPERS: dict[str, Callable[[optax.GradientTransformation], Any]] = {
    "alone": lambda tx: tx,
    "accumulated": lambda tx: optax.MultiSteps(tx, every_k_schedule=2).gradient_transformation(),
    "if finite": lambda tx: optax.apply_if_finite(tx, max_consecutive_errors=2),
    "flattened": optax.flatten,
    "extra arguments": optax.with_extra_args_support,
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_state_keeps_its_type_in_a_scan(tx: optax.GradientTransformation, name: str) -> None:
    wrapped = WRAPPERS[name](tx)
    params = {"a": jnp.ones(3), "b": jnp.array(1.0)}
    gradients = gradients_like(params)

    def step(state: Any, _: None) -> tuple[Any, Any]:
        updates, state = wrapped.update(gradients, state, params)
        return state, updates

    state, updates = jax.lax.scan(step, wrapped.init(params), None, length=2)
    moved = {"a": 3, "b": 1}
    assert {key: int(np.sum(updates[key][-1] != 0.0)) for key in moved} == moved
    assert jax.tree.structure(state) == jax.tree.structure(wrapped.init(params))


def by_safetensors(state: Any, like: Any, folder: Path) -> Any:
    leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    safetensors.numpy.save_file(leaves, folder / "state.safetensors")
    loaded = safetensors.numpy.load_file(folder / "state.safetensors")
    treedef = jax.tree.structure(like)
    return jax.tree.unflatten(treedef, [loaded[str(i)] for i in range(len(loaded))])


def by_orbax(state: Any, like: Any, folder: Path) -> Any:
    import orbax.checkpoint as ocp  # takes seconds to import

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "state", like)


@pytest.mark.parametrize("store", [by_safetensors, by_orbax])
def test_a_stored_state_goes_on_to_the_bit(
    tx: optax.GradientTransformation, tmp_path: Path, store: Callable[..., Any]
) -> None:
    chained = optax.chain(optax.clip_by_global_norm(1.0), tx, optax.scale_by_adam())
    params = {"a": [jnp.ones((2, 2)), None], "b": jnp.array(1.0)}
    straight, _ = run(chained, params, steps=4)
    _, state = run(chained, params, steps=2)
    loaded = store(state, chained.init(params), tmp_path)
    resumed, _ = run(chained, params, steps=2, start=2, state=loaded)
    np.testing.assert_array_equal(flat(resumed[-1]), flat(straight[-1]))


def test_what_cannot_be_optimised_is_refused(tx: optax.GradientTransformation) -> None:
    with pytest.raises(UserError, match=r"parameters\['a'\]\[1\]: int32 is not allowed"):
        tx.init({"a": [jnp.ones(2), jnp.arange(2)]})
    with pytest.raises(UserError, match=r"parameters\.key|parameters\['key'\]: key<fry>"):
        tx.init({"key": jax.random.key(0)})
    state = tx.init({"a": jnp.ones(3)})
    with pytest.raises(UserError, match=r"gradients\['a'\]: complex64 is not allowed"):
        tx.update({"a": jnp.ones(3, complex)}, state)
    with pytest.raises(
        UserError, match=r"gradients\['a'\]: shape \(2,\), but the state is for \(3,\)"
    ):
        tx.update({"a": jnp.ones(2)}, state)
    for other in ({}, {"b": jnp.ones(3)}, [jnp.ones(3)]):
        with pytest.raises(UserError, match="gradients: not the tree that the state was made for"):
            tx.update(other, state)
    swapped = tx.init({"w": jnp.ones((4, 3)), "b": jnp.zeros(3)})
    with pytest.raises(UserError, match="give init the same pytree"):
        tx.update({"w": jnp.ones(3), "b": jnp.ones((4, 3))}, swapped)


def test_it_can_be_sent_to_another_process(tx: optax.GradientTransformation) -> None:
    again = cloudpickle.loads(cloudpickle.dumps(tx))
    gradients = {"a": jnp.array([0.3, -0.2])}
    one, other = (each.update(gradients, each.init(gradients))[0] for each in (tx, again))
    np.testing.assert_array_equal(one["a"], other["a"])


@pytest.mark.parametrize("units", [6, 16])
def test_forward_and_reverse_mode_agree_with_central_differences(units: int) -> None:
    with jax.enable_x64(True):
        rnn = small_rnn(units)
        tx = rnn.as_optax()
        g, dot = jnp.linspace(-1.0, 1.0, 12), jnp.cos(jnp.arange(12.0))
        state = tx.init(g)

        @jax.jit
        def update(gradient: Any) -> Any:
            return tx.update(gradient, state)[0]

        slope = (update(g + 1e-5 * dot) - update(g - 1e-5 * dot)) / 2e-5
        forward = jax.jvp(update, (g,), (dot,))[1]
        np.testing.assert_allclose(forward, slope, rtol=1e-7, atol=1e-10)
        every = jax.jit(jax.vmap(lambda v: jax.jvp(update, (g,), (v,))[1]))(jnp.eye(12))
        backward = jax.jit(jax.jacrev(update))(g)
        np.testing.assert_allclose(every, backward.T, rtol=1e-12, atol=1e-14)
        # Reverse mode alone, as meta-training uses it, gives the same.
        quick = rnn.as_optax(reverse_only=True)
        reverse = jax.jit(jax.grad(lambda v: jnp.sum(dot * quick.update(v, state)[0])))(g)
        np.testing.assert_allclose(reverse, every @ dot, rtol=1e-12, atol=1e-14)
