"""Train an Equinox network with a learned optimizer: `pip install optdyn equinox`."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import make_moons

import optdyn

tx = optdyn.load_pretrained("two_moons").as_optax()


@eqx.filter_jit
def step(
    network: eqx.Module, state: Any, inputs: jax.Array, labels: jax.Array
) -> tuple[eqx.Module, Any, jax.Array]:
    """One step of full-batch training, and the loss before it."""

    def loss(network: Any) -> jax.Array:
        return jnp.mean(optax.sigmoid_binary_cross_entropy(jax.vmap(network)(inputs), labels))

    value, gradients = eqx.filter_value_and_grad(loss)(network)
    updates, state = tx.update(gradients, state)
    return eqx.apply_updates(network, updates), state, value


def main(steps: int = 200) -> list[float]:
    """Train on two moons; returns the loss before each step."""
    inputs, labels = map(jnp.asarray, make_moons(256, noise=0.1, random_state=0))
    network: eqx.Module = eqx.nn.MLP(2, "scalar", 32, 2, jnp.tanh, key=jax.random.key(0))
    state = tx.init(eqx.filter(network, eqx.is_inexact_array))
    losses = []
    for _ in range(steps):
        network, state, loss = step(network, state, inputs, labels)
        losses.append(float(loss))
    print(f"loss: {losses[0]:.3f} at the start, {losses[-1]:.3f} after {steps} steps")
    return losses


if __name__ == "__main__":
    main()
