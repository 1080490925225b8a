"""What a look through the lens costs beside a training step of a million parameters.

`python -m benchmarks.lens` prints one line of JSON: seconds of a step, of `Lens.scalars`
without and with curvature, and the memory that the products for the sharpness take beside
the parameters and the optimizer's state.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optdyn

SIZES = (784, 1000, 250, 10)
BATCH, SAMPLES = 512, 7


def main() -> None:
    keys = jax.random.split(jax.random.key(0), 5)
    params = {
        f"w{i}": jax.random.normal(keys[i], (a, b)) / a**0.5
        for i, (a, b) in enumerate(itertools.pairwise(SIZES))
    }
    batch = (
        jax.random.normal(keys[3], (BATCH, SIZES[0])),
        jax.random.randint(keys[4], (BATCH,), 0, SIZES[-1]),
    )

    def loss_fn(params: Any, batch: Any) -> Any:
        x, labels = batch
        x = jnp.tanh(jnp.tanh(x @ params["w0"]) @ params["w1"]) @ params["w2"]
        return optax.softmax_cross_entropy_with_integer_labels(x, labels).mean()

    tx = optax.sgd(0.1, momentum=0.9)
    state, lens = tx.init(params), optdyn.Lens(tx, loss_fn)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, after = tx.update(jax.grad(loss_fn)(params, batch), state, params)
        return optax.apply_updates(params, updates), after

    whole = sum(leaf.nbytes for leaf in jax.tree.leaves((params, state)))
    root = jax.tree.map(jnp.ones_like, params)
    memory = lens._product.lower(params, batch, root, (1.0, None), root).compile().memory_analysis()
    extra = memory.temp_size_in_bytes + memory.output_size_in_bytes
    row = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "step": timed(lambda: jax.block_until_ready(step(params, state))),
        "without_curvature": timed(lambda: lens.scalars(state, params, curvature=False)),
        "with_curvature": timed(lambda: lens.scalars(state, params, batch)),
        # Beside what a product takes: the root of the rates, and three vectors.
        "memory_over_params_and_state": (extra + 2 * whole) / whole,
    }
    print(json.dumps(row))


def timed(run: Callable[[], Any]) -> float:
    """The median of some runs, after one that compiles."""
    run()
    taken = []
    for _ in range(SAMPLES):
        begin = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
