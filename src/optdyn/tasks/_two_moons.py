"""A network classifying the two moons (appendix C.1, Fig. 2c)."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from optdyn.errors import require_number, require_positive_int
from optdyn.tasks._base import Problem
from optdyn.tasks._mlp import Layers, apply_mlp, init_mlp

DATA_SEED = 0


@functools.cache
def moons(points: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """The dataset: features [points, 2] and labels [points] in {0, 1}; one fixed seed."""
    from sklearn.datasets import make_moons  # slow to import, needed by this task alone

    features, labels = make_moons(n_samples=points, noise=noise, random_state=DATA_SEED)
    return features.astype(np.float32), labels.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class TwoMoons:
    """Full-batch logistic loss of a tanh network on two moons; random initial weights.

    ``depth`` hidden layers of ``width`` units (the paper: 3 of 64), ``points``
    data points with coordinate noise ``noise``; ``penalty`` multiplies the Euclidean
    norm (not squared) of all weights and biases. The appendix has no penalty; the authors'
    released code has 5e-3.
    """

    width: int = 64
    depth: int = 3
    points: int = 1024
    noise: float = 0.1
    penalty: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "points"):
            require_positive_int(f"two_moons.{name}", getattr(self, name))
        for name in ("noise", "penalty"):
            require_number(f"two_moons.{name}", getattr(self, name), inclusive=True)

    def sample(self, key: Key[Array, ""]) -> Problem:
        """Draw the initial weights."""
        sizes = (2, *[self.width] * self.depth, 1)
        return Problem(params=init_mlp(key, sizes), loss_fn=self.loss)

    def loss(self, layers: Layers) -> Float[Array, ""]:
        """Mean logistic loss over the dataset plus the weight penalty."""
        features, labels = moons(self.points, self.noise)
        dtype = layers[0]["weight"].dtype
        logits = apply_mlp(layers, jnp.asarray(features, dtype))[:, 0]
        logistic = jnp.mean(jax.nn.softplus(logits) - jnp.asarray(labels, dtype) * logits)
        return logistic + self.penalty * optax.tree.norm(layers)
