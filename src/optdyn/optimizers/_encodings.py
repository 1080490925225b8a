"""How a gradient enters the recurrent network."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optdyn.errors import require_choice, require_number

ENCODINGS = ("linear", "log_sign", "asinh")


@dataclasses.dataclass(frozen=True)
class Encoding:
    """Maps each gradient to the network's inputs, as its ``kind`` says.

    - ``linear``: ``scale · gain · g`` (gain = scale = 1: the raw gradient);
    - ``log_sign``: the pair ``[scale · log(1 + gain·|g|), sign g]``;
    - ``asinh``: ``scale · asinh(gain · g)``, linear below 1/gain and
      logarithmic above, smooth everywhere (so it can be linearised at g = 0).

    Attributes:
        kind: what the network sees of a gradient g: linear (g), log_sign (the pair log(1 + |g|),
            sign of g) or asinh (linear for small g, logarithmic for large)
        gain: factor on the gradient before it is encoded
        scale: factor on the encoded gradient
    """

    kind: str = "linear"
    gain: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        require_choice("encoding.kind", self.kind, list(ENCODINGS))
        require_number("encoding.gain", self.gain)
        require_number("encoding.scale", self.scale)

    @property
    def size(self) -> int:
        """The number of inputs a gradient becomes."""
        return 2 if self.kind == "log_sign" else 1

    def __call__(self, g: Float[Array, " N"]) -> Float[Array, "N inputs"]:
        if self.kind == "linear":
            features = [self.scale * self.gain * g]
        elif self.kind == "asinh":
            features = [self.scale * _asinh(self.gain * g)]
        else:
            features = [self.scale * jnp.log1p(self.gain * jnp.abs(g)), jnp.sign(g)]
        return jnp.stack(features, axis=-1)


@jax.custom_jvp
def _asinh(x: Float[Array, " N"]) -> Float[Array, " N"]:
    """The inverse hyperbolic sine, exact near zero, of few operations (`jnp.arcsinh` has many)."""
    size = jnp.abs(x)
    return jnp.sign(x) * jnp.log1p(size + size * (size / (1.0 + jnp.sqrt(1.0 + x * x))))


@_asinh.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _asinh(*primals), tangents[0] / jnp.sqrt(1.0 + primals[0] * primals[0])
