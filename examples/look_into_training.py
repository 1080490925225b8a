"""A training as people write it, with the lens beside it: AdamW on digits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import optdyn

Params = dict[str, jax.Array]


def batch() -> tuple[jax.Array, jax.Array]:
    """A fixed batch of digits and their labels."""
    images, labels = load_digits(return_X_y=True)
    return jnp.asarray(images[:512] / 16.0, jnp.float32), jnp.asarray(labels[:512])


def loss_fn(params: Params, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Cross-entropy of a network with 32 hidden units."""
    images, labels = batch
    hidden = jnp.tanh(images @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def start() -> Params:
    """The first parameters."""
    one, two = jax.random.split(jax.random.key(0))
    return {
        "w1": jax.random.normal(one, (64, 32)) / 8.0,
        "b1": jnp.zeros(32),
        "w2": jax.random.normal(two, (32, 10)) / 6.0,
        "b2": jnp.zeros(10),
    }


def optimizer(peak: float = 0.01) -> optax.GradientTransformation:
    """AdamW with warm-up, cosine decay, a clip by norm, and decay of matrices alone."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, 20, 400)
    return optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(schedule, weight_decay=1e-2, mask=matrices),
    )


def matrices(params: Params) -> dict[str, bool]:
    """Which parameters decay."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def train(tx: optax.GradientTransformation, steps: int, every: int) -> list[dict[str, Any]]:
    """Train, and look every so many steps."""
    data, params = batch(), start()
    state = tx.init(params)
    lens = optdyn.Lens(tx, loss_fn)

    @jax.jit
    def step(params: Params, state: Any) -> tuple[Params, Any]:
        updates, state = tx.update(jax.grad(loss_fn)(params, data), state, params)
        return optax.apply_updates(params, updates), state

    history = []
    for k in range(1, steps + 1):
        params, state = step(params, state)
        if k % every == 0:
            history.append({"step": k, **lens.scalars(state, params, data)})
    return history


def main(peaks: tuple[float, ...] = (0.01, 0.6), steps: int = 40, every: int = 4) -> list[Any]:
    """Train at each peak rate, and print what the lens saw."""
    shown = ("step", "loss", "sharpness", "sharpness_edge", "margin", "clip_factor")
    histories = []
    for peak in peaks:
        print(f"peak learning rate {peak}")
        histories.append(train(optimizer(peak), steps, every))
        for row in histories[-1]:
            print("  ", ", ".join(f"{name} {row[name]:.3g}" for name in shown if name in row))
    return histories


if __name__ == "__main__":
    last = main()[-1]
    optdyn.figures.lens(last).savefig("lens.png")
