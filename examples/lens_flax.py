"""Look into the training of a Flax NNX network: `pip install optdyn flax`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import make_moons

import optdyn


def main(steps: int = 60, every: int = 10) -> list[dict[str, Any]]:
    """Train on two moons with AdamW, and look every so many steps."""
    inputs, labels = map(jnp.asarray, make_moons(256, noise=0.1, random_state=0))
    network = nnx.Sequential(
        nnx.Linear(2, 16, rngs=nnx.Rngs(0)), nnx.tanh, nnx.Linear(16, 1, rngs=nnx.Rngs(1))
    )
    rest, params = nnx.split(network)

    def loss_fn(params: Any) -> jax.Array:
        logits = nnx.merge(rest, params)(inputs)[:, 0]
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
