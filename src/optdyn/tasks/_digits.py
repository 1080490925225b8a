"""A network classifying handwritten digits."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optdyn.errors import UserError, require_positive_int
from optdyn.tasks._base import Problem
from optdyn.tasks._mlp import Layers, apply_mlp, init_mlp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key

FEATURES = 64
CLASSES = 10
TOTAL_POINTS = 1797
BRIGHTEST = 16.0


@functools.cache
def images(points: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ``points`` images [points, 64], pixels in [0, 1], and labels [points]."""
    from sklearn.datasets import load_digits  # slow to import, needed by this task alone

    data = load_digits()
    features = data.data[:points] / BRIGHTEST
    return features.astype(np.float32), data.target[:points].astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Digits:
    """Cross-entropy of a tanh network 64-width-10; random initial weights.

    The data are the 8 × 8 digits that come with scikit-learn (1797 images, of
    which the first ``points`` are used). ``batch``: how many of them, drawn anew with
    replacement, each inner step sees (None: all, the same loss at every step).
    """

    width: int = 32
    points: int = TOTAL_POINTS
    batch: int | None = None

    def __post_init__(self) -> None:
        require_positive_int("digits.width", self.width)
        require_positive_int("digits.points", self.points)
        if self.points > TOTAL_POINTS:
            raise UserError(
                f"digits.points: {self.points!r} is not allowed (at most {TOTAL_POINTS})"
            )
        if self.batch is not None:
            require_positive_int("digits.batch", self.batch)

    def sample(self, key: Key[Array, ""]) -> Problem:
        """Draw the initial weights, and the key of the minibatches."""
        sizes = (FEATURES, self.width, CLASSES)
        if self.batch is None:
            return Problem(params=init_mlp(key, sizes), loss_fn=self.loss)
        start, batches = jax.random.split(key)
        return Problem(init_mlp(start, sizes), self.batch_loss, key=batches, full_loss_fn=self.loss)

    def loss(self, layers: Layers) -> Float[Array, ""]:
        """Mean cross-entropy over the dataset."""
        features, labels = images(self.points)
        return _cross_entropy(layers, jnp.asarray(features), jnp.asarray(labels))

    def batch_loss(self, layers: Layers, key: Key[Array, ""]) -> Float[Array, ""]:
        """Mean cross-entropy over ``batch`` images drawn by ``key``."""
        features, labels = images(self.points)
        rows = jax.random.randint(key, (self.batch or 1,), 0, self.points)
        return _cross_entropy(layers, jnp.asarray(features)[rows], jnp.asarray(labels)[rows])


def _cross_entropy(
    layers: Layers, features: Float[Array, "points features"], labels: Int[Array, " points"]
) -> Float[Array, ""]:
    logits = apply_mlp(layers, features.astype(layers[0]["weight"].dtype))
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
