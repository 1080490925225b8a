"""Learned optimizers beside a tuned Adam on handwritten digits, where they fit and where not.

A tanh network is trained on scikit-learn's digits (1437 images to train on, 360 to test)
with each optimizer that ships and with Adam, whose learning rate is tuned anew for every
setting. The first setting is as in meta-training: the full batch, 200 steps, a small tanh
network. The others leave it in one respect each; an optimizer that fails in the first (as
one meta-trained on linear regression does) is not tried in them.

    python examples/digits_comparison.py            # under a minute of processor time
    python examples/digits_comparison.py --steps 50 --starts 1
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optdyn

LEARNING_RATES = tuple(float(rate) for rate in np.geomspace(1e-3, 1e-1, 7))
LEAST_ACCURACY = 0.5
TUNING_START = 1000
"""The seed of the start that Adam is tuned on; results are on other starts."""

Params = list[dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Setting:
    """How the network is trained."""

    name: str
    steps: int
    width: int = 32
    batch: int | None = None
    activation: Callable[[jax.Array], jax.Array] = jnp.tanh


def settings(steps: int) -> list[Setting]:
    """The familiar setting, and four that leave it in one respect each."""
    return [
        Setting("as meta-trained", steps),
        Setting("5 x the steps", 5 * steps),
        Setting("batches of 64", steps, batch=64),
        Setting("4 x the width", steps, width=128),
        Setting("ReLU for tanh", steps, activation=jax.nn.relu),
    ]


@functools.cache
def data() -> list[np.ndarray]:
    """Training and test images [n, 64], pixels in [0, 1]; training and test labels [n]."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    return train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)


def initial(key: jax.Array, width: int) -> Params:
    """A network 64-width-10 with Glorot-normal weights."""
    glorot, keys = jax.nn.initializers.glorot_normal(), jax.random.split(key)
    sizes = ((64, width), (width, 10))
    return [
        {"weight": glorot(k, size), "bias": jnp.zeros((1, size[1]))}
        for k, size in zip(keys, sizes, strict=True)
    ]


def logits(params: Params, images: jax.Array, setting: Setting) -> jax.Array:
    """The network's outputs [n, 10]."""
    first, last = params
    hidden = setting.activation(images @ first["weight"] + first["bias"])
    return hidden @ last["weight"] + last["bias"]


def train(
    tx: optax.GradientTransformation, key: jax.Array, setting: Setting
) -> tuple[jax.Array, jax.Array]:
    """The loss on the step's batch, step by step, and the test accuracy after the last."""
    images, test_images, labels, test_labels = map(jnp.asarray, data())

    def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        params, state = carry
        chosen = slice(None)
        if setting.batch is not None:
            chosen = jax.random.choice(key, len(images), (setting.batch,), replace=False)

        def loss(params: Params) -> jax.Array:
            found = logits(params, images[chosen], setting)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(found, labels[chosen]))

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), value

    start_key, batch_key = jax.random.split(key)
    params = initial(start_key, setting.width)
    keys = jax.random.split(batch_key, setting.steps)
    (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), keys)
    right = jnp.argmax(logits(params, test_images, setting), axis=1) == test_labels
    return losses, jnp.mean(right)


def tuned_learning_rate(setting: Setting) -> float:
    """Adam's learning rate with the lowest mean loss on a start that is not judged on."""
    key = jax.random.key(TUNING_START)
    losses = jax.jit(
        lambda rates: jax.lax.map(lambda rate: train(optax.adam(rate), key, setting)[0], rates)
    )(jnp.asarray(LEARNING_RATES))
    means = np.nan_to_num(np.mean(losses, axis=1), nan=np.inf)
    return LEARNING_RATES[int(np.argmin(means))]


def judged(
    tx: optax.GradientTransformation, setting: Setting, starts: int
) -> tuple[float, float, float]:
    """Mean loss along the run, mean loss of its last tenth, test accuracy: over the starts."""
    run = jax.jit(lambda key: train(tx, key, setting))
    found = [run(jax.random.key(seed)) for seed in range(starts)]
    losses = np.mean([losses for losses, _ in found], axis=0)
    last = losses[-max(1, setting.steps // 10) :]
    return float(losses.mean()), float(last.mean()), float(np.mean([a for _, a in found]))


def main(argv: list[str] | None = None) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Print the table, and what it says; returns its numbers by setting and optimizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--starts", type=int, default=2)
    options = parser.parse_args(argv)
    learned = {name: optdyn.load_pretrained(name).as_optax() for name in optdyn.PRETRAINED}
    table: dict[str, dict[str, tuple[float, float, float]]] = {}
    for setting in settings(options.steps):
        rate = tuned_learning_rate(setting)
        contenders = {f"Adam({rate:.3g})": optax.adam(rate), **learned}
        print(f"\n{setting.name}: {setting.steps} steps, batch {setting.batch or 'full'}, "
              f"width {setting.width}, {setting.activation.__name__}")  # fmt: skip
        print(f"  {'optimizer':<20} {'mean loss':>10} {'at the end':>11} {'test accuracy':>14}")
        rows = {name: judged(tx, setting, options.starts) for name, tx in contenders.items()}
        for name, (mean, end, accuracy) in rows.items():
            print(f"  {name:<20} {mean:>10.4g} {end:>11.4g} {accuracy:>14.1%}")
        table[setting.name] = {name.partition("(")[0]: row for name, row in rows.items()}
        learned = {name: tx for name, tx in learned.items() if rows[name][2] >= LEAST_ACCURACY}
    for column, what in ((0, "Lower mean loss"), (1, "Lower loss at the end")):
        print(f"\n{what} than the tuned Adam:")
        for name in learned:
            better = [s for s, rows in table.items() if rows[name][column] < rows["Adam"][column]]
            print(f"  {name:<20} {', '.join(better) or 'nowhere'}")
    return table


if __name__ == "__main__":
    main()
