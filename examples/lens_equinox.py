"""Look into the training of an Equinox network: `pip install optdyn equinox`."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import make_moons

import optdyn


def main(steps: int = 60, every: int = 10) -> list[dict[str, Any]]:
    """Train on two moons with AdamW, and look every so many steps."""
    inputs, labels = map(jnp.asarray, make_moons(256, noise=0.1, random_state=0))
    network: Any = eqx.nn.MLP(2, "scalar", 16, 1, jnp.tanh, key=jax.random.key(0))
    params, rest = eqx.partition(network, eqx.is_inexact_array)

    def loss_fn(params: Any) -> jax.Array:
        logits = jax.vmap(eqx.combine(params, rest))(inputs)
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels))

    tx = optax.adamw(optax.linear_schedule(0.0, 0.1, 20), weight_decay=1e-3)
    state = tx.init(params)
    lens = optdyn.Lens(tx, loss_fn)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(loss_fn)(params), state, params)
        return optax.apply_updates(params, updates), state

    history = []
    for k in range(1, steps + 1):
        params, state = step(params, state)
        if k % every == 0:
            history.append({"step": k, **lens.scalars(state, params)})
            row = history[-1]
            print(f"step {k}: loss {row['loss']:.3f}, margin {row['margin']:.3g}")
    return history


if __name__ == "__main__":
    main()
