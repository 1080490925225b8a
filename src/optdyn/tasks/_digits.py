"""Networks classifying handwritten digits."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from optdyn.errors import UserError, require_positive_int
from optdyn.random_streams import derived
from optdyn.tasks._base import Problem
from optdyn.tasks._mlp import Layers, apply_mlp, init_mlp, linear

FEATURES = 64
CLASSES = 10
TOTAL_POINTS = 1797
BRIGHTEST = 16.0
LAYOUT = "layout"


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
    ``max_depth``: each problem draws an architecture of its own, see `draw_layout`: 1 to
    ``max_depth`` hidden layers of ``width`` units, or half or a quarter as many (None:
    one hidden layer of ``width`` units in every problem).
    """

    width: int = 32
    points: int = TOTAL_POINTS
    batch: int | None = None
    max_depth: int | None = None

    def __post_init__(self) -> None:
        require_positive_int("digits.width", self.width)
        require_positive_int("digits.points", self.points)
        if self.points > TOTAL_POINTS:
            raise UserError(
                f"digits.points: {self.points!r} is not allowed (at most {TOTAL_POINTS})"
            )
        for name in ("batch", "max_depth"):
            if getattr(self, name) is not None:
                require_positive_int(f"digits.{name}", getattr(self, name))

    def sample(self, key: Key[Array, ""]) -> Problem:
        """Draw the initial weights, the layout, and the key of the minibatches."""
        start, batches = (key, None) if self.batch is None else jax.random.split(key)
        sizes = (FEATURES, *[self.width] * (self.max_depth or 1), CLASSES)
        params, data = init_mlp(start, sizes), tuple[Layout, ...]()
        if self.max_depth is not None:
            layout = draw_layout(derived(start, LAYOUT), self.width, self.max_depth)
            params, data = _narrowed(params, layout), (layout,)
        if batches is None:
            return Problem(params, self.loss, data)
        return Problem(params, self.batch_loss, data, key=batches, full_loss_fn=self.loss)

    def loss(self, layers: Layers, *layout: Layout) -> Float[Array, ""]:
        """Mean cross-entropy over the dataset."""
        features, labels = images(self.points)
        return _cross_entropy(layers, jnp.asarray(features), jnp.asarray(labels), *layout)

    def batch_loss(self, layers: Layers, *layout: Layout, key: Key[Array, ""]) -> Float[Array, ""]:
        """Mean cross-entropy over ``batch`` images drawn by ``key``."""
        features, labels = images(self.points)
        rows = jax.random.randint(key, (self.batch or 1,), 0, self.points)
        chosen = jnp.asarray(features)[rows], jnp.asarray(labels)[rows]
        return _cross_entropy(layers, *chosen, *layout)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layout:
    """Which part of the largest network a problem uses.

    ``units`` [width]: 1 for the hidden units that are there, else 0. ``layers``
    [max_depth]: 1 for the hidden layers that are there; the others hand on what they are
    given. What is not used has a gradient of zero, so that to a component-wise optimizer
    the problem is the smaller network's.
    """

    units: Float[Array, " width"]
    layers: Float[Array, " depth"]


def draw_layout(key: Key[Array, ""], width: int, max_depth: int) -> Layout:
    """All ``width`` units, half or a quarter (at least one), in 1 to ``max_depth`` layers."""
    halvings, depth = (derived(key, name) for name in ("width", "depth"))
    units = jnp.maximum(width // 2 ** jax.random.randint(halvings, (), 0, 3), 1)
    layers = jax.random.randint(depth, (), 1, max_depth + 1)
    return Layout(
        (jnp.arange(width) < units).astype(jnp.float32),
        (jnp.arange(max_depth) < layers).astype(jnp.float32),
    )


def _narrowed(params: Layers, layout: Layout) -> Layers:
    """Initial weights with the variance 2 / (fan-in + fan-out) of the units that are there."""
    width, units = layout.units.size, jnp.sum(layout.units)
    ends = {0: FEATURES, len(params) - 1: CLASSES}
    factors = [
        jnp.sqrt((ends.get(i, width) + width) / (ends.get(i, units) + units))
        for i in range(len(params))
    ]
    return [
        {**layer, "weight": factor * layer["weight"]}
        for layer, factor in zip(params, factors, strict=True)
    ]


def _cross_entropy(
    layers: Layers,
    features: Float[Array, "points features"],
    labels: Int[Array, " points"],
    layout: Layout | None = None,
) -> Float[Array, ""]:
    inputs = features.astype(layers[0]["weight"].dtype)
    logits = apply_mlp(layers, inputs) if layout is None else _apply_part(layers, inputs, layout)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def _apply_part(
    layers: Layers, inputs: Float[Array, "points features"], layout: Layout
) -> Float[Array, "points classes"]:
    """The outputs of the network that ``layout`` leaves of ``layers``."""
    units, used = layout.units[None].astype(inputs.dtype), layout.layers.astype(inputs.dtype)
    hidden = units * jnp.tanh(linear(layers[0], inputs))
    for layer, there in zip(layers[1:-1], used[1:], strict=True):
        hidden = there * units * jnp.tanh(linear(layer, hidden)) + (1.0 - there) * hidden
    return linear(layers[-1], hidden)
