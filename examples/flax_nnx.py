"""Train a Flax NNX network with a learned optimizer: `pip install optdyn flax`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import make_moons

import optdyn


class Network(nnx.Module):
    """Two hidden layers of 32 units."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(2, 32, rngs=rngs)
        self.second = nnx.Linear(32, 32, rngs=rngs)
        self.readout = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.tanh(self.first(x))
        x = nnx.tanh(self.second(x))
        return self.readout(x)[:, 0]


@nnx.jit
def step(
    network: Network, optimizer: nnx.Optimizer, inputs: jax.Array, labels: jax.Array
) -> jax.Array:
    """One step of full-batch training; returns the loss before it."""

    def loss(network: Network) -> jax.Array:
        return jnp.mean(optax.sigmoid_binary_cross_entropy(network(inputs), labels))

    value, gradients = nnx.value_and_grad(loss)(network)
    optimizer.update(network, gradients)
    return value


def main(steps: int = 200) -> list[float]:
    """Train on two moons; returns the loss before each step."""
    inputs, labels = map(jnp.asarray, make_moons(256, noise=0.1, random_state=0))
    network = Network(nnx.Rngs(0))
    tx = optdyn.load_pretrained("two_moons").as_optax()
    optimizer = nnx.Optimizer(network, tx, wrt=nnx.Param)
    losses = [float(step(network, optimizer, inputs, labels)) for _ in range(steps)]
    print(f"loss: {losses[0]:.3f} at the start, {losses[-1]:.3f} after {steps} steps")
    return losses


if __name__ == "__main__":
    main()
