"""A small tanh network, shared by the classification tasks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Layers = list[dict[str, "Float[Array, '...']"]]


def init_mlp(key: Key[Array, ""], sizes: tuple[int, ...]) -> Layers:
    """Layers with Glorot-normal weights and zero biases.

    ``sizes`` lists the widths from input to output, such as (2, 64, 64, 64, 1).
    """
    glorot = jax.nn.initializers.glorot_normal()
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"weight": glorot(k, (fan_in, fan_out)), "bias": jnp.zeros((fan_out,))}
        for k, fan_in, fan_out in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def apply_mlp(
    layers: Layers, inputs: Float[Array, "points features"]
) -> Float[Array, "points outputs"]:
    """The network's outputs: tanh between layers, none after the last."""
    for layer in layers[:-1]:
        inputs = jnp.tanh(linear(layer, inputs))
    return linear(layers[-1], inputs)


def linear(layer: dict[str, Array], inputs: Array) -> Array:
    """What a layer gives [points, outputs] before the nonlinearity."""
    return inputs @ layer["weight"] + layer["bias"][None]
