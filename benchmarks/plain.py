"""The meta-step written plainly in JAX: `scan`, `vmap`, `value_and_grad` and a GRU.

It is measured as a peer, on one device with all cores, and the limit counts the
matrix products of its traced program.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.sampling import peak_bytes, sample_seconds
from benchmarks.settings import PARAMETERS, Setting, memory, told
from optdyn.optimizers import Architecture, ComponentwiseRNN, Encoding
from optdyn.optimizers._gru_kernel import gru_reference
from optdyn.tasks import TASKS, Task
from optdyn.tasks._base import joint
from optdyn.tasks._gate import sample_batch

ARRAYS_PER_STEP = 12
"""Arrays of the state's size that automatic differentiation keeps for each inner step."""


def initial(setting: Setting) -> dict[str, Any]:
    """Meta-parameters of a GRU."""
    architecture = Architecture("gru", setting.units, Encoding("asinh"))
    rnn = ComponentwiseRNN.init(jax.random.key(0), architecture)
    return {"cell": rnn.weights, "readout": rnn.w}


def objective(theta: dict[str, Any], key: jax.Array, task: Task, setting: Setting) -> jax.Array:
    """The mean loss over an unroll and over problems, each divided by its first value."""
    problem = joint(sample_batch(task, jax.random.split(key, setting.batch)))

    def step(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
        x, h = carry
        g = jax.grad(lambda at: jnp.sum(problem.loss(at)))(x)
        h = gru_reference("before", theta["cell"], h, jnp.arcsinh(g).reshape(-1, 1))
        x = x + 0.1 * (h @ theta["readout"]).reshape(x.shape)
        return (x, h), problem.loss(x)

    start = (problem.params, jnp.zeros((problem.params.size, setting.units)))
    losses = jax.lax.scan(step, start, None, length=setting.steps)[1]
    return jnp.mean(losses / problem.loss(problem.params)[None])


def main(setting: Setting, samples: int) -> None:
    components = setting.batch * PARAMETERS[setting.task]
    needed = 4 * ARRAYS_PER_STEP * setting.steps * components * setting.units
    if needed > 0.6 * memory():
        sys.exit(f"needs about {needed / 2**30:.0f} GiB of memory")
    task = TASKS[setting.task](**setting.task_options)
    adam = optax.adam(1e-3)
    theta = initial(setting)
    state = adam.init(theta)

    @jax.jit
    def meta_step(theta: Any, state: Any, key: jax.Array) -> tuple[Any, Any]:
        gradient = jax.grad(objective)(theta, key, task, setting)
        updates, state = adam.update(gradient, state)
        return optax.apply_updates(theta, updates), state

    def advance() -> None:
        nonlocal theta, state
        theta, state = jax.block_until_ready(meta_step(theta, state, jax.random.key(0)))

    advance()
    seconds = sample_seconds(advance, samples)
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main(*told())
