"""Full-batch training that rises to its edge of stability: gradient descent and Adam on digits."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import optdyn

SETTINGS: dict[str, optax.GradientTransformation] = {
    "gradient descent": optax.sgd(0.2),
    # At the edge the first moments swing from step to step: 38 / rate for beta1 = 0.9.
    "adam": optax.adam(3e-3, b2=0.99, eps=1e-7),
}


def loss_fn(params: dict[str, jax.Array], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Squared error of a network with one hidden layer of tanh units."""
    images, targets = batch
    hidden = jnp.tanh(images @ params["w1"] + params["b1"])
    return 0.5 * jnp.mean(jnp.sum((hidden @ params["w2"] + params["b2"] - targets) ** 2, axis=1))


def start(units: int = 32) -> dict[str, jax.Array]:
    """Weights of the size at which no unit saturates."""
    one, two = jax.random.split(jax.random.key(0))
    return {
        "w1": jax.random.normal(one, (64, units)) / 8.0,
        "b1": jnp.zeros(units),
        "w2": jax.random.normal(two, (units, 10)) / units**0.5,
        "b2": jnp.zeros(10),
    }


def watch(tx: optax.GradientTransformation, steps: int, every: int) -> list[dict[str, float]]:
    """Train on all of the data at every step, and look each ``every`` steps."""
    images, labels = load_digits(return_X_y=True)
    batch = (jnp.asarray(images[:512] / 16.0), jax.nn.one_hot(labels[:512], 10))
    lens = optdyn.Lens(tx, loss_fn)
    params = start()
    state = tx.init(params)

    @jax.jit
    def some_steps(params: Any, state: Any) -> tuple[Any, Any]:
        def step(at: Any, nothing: None) -> tuple[Any, None]:
            del nothing
            params, state = at
            updates, state = tx.update(jax.grad(loss_fn)(params, batch), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), length=every)[0]

    history = []
    for step in range(every, steps + 1, every):
        params, state = some_steps(params, state)
        history.append({"step": step, **lens.scalars(state, params, batch)})
    return history


def main(
    steps: int = 1200, every: int = 40, told: Callable[[str], None] = print
) -> dict[str, list[dict[str, float]]]:
    """Both trainings; says where their sharpness ends up beside the edge."""
    histories = {}
    for name, tx in SETTINGS.items():
        history = watch(tx, steps, every)
        tail = [row["sharpness"] / row["sharpness_edge"] for row in history[-len(history) // 4 :]]
        told(f"{name}: sharpness over its edge {sum(tail) / len(tail):.2f} at the end")
        histories[name] = history
    return histories


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--out", help="write a picture of each training there: OUT_adam.png")
    options = parser.parse_args()
    for name, history in main(options.steps).items():
        if options.out:
            figure = optdyn.figures.lens(history)
            figure.savefig(f"{options.out}_{name.replace(' ', '_')}.png")
