"""One meta-gradient, then meta-steps, on the devices there are; the first process writes them.

`python meta_steps.py FILE DEVICES…` in one process: on each of these numbers of
forced devices (4/2: on four of which two share each problem). With
``OPTDYN_NUM_PROCESSES`` set: on one device of each process.
"""

from __future__ import annotations

import dataclasses
import os
import sys

import jax
import numpy as np
from jax.sharding import Mesh

import optdyn.distributed._processes as processes
from helpers import as_vector, random_rnn, small_task
from optdyn.distributed import join
from optdyn.meta_training._components import make_mesh
from optdyn.meta_training._gradient import meta_value_and_grad
from optdyn.meta_training._trainer import MetaTraining, make_meta_step, start_training

META_STEPS = 50
BOUND = 0.02
PROTOCOL = MetaTraining(
    num_meta_steps=META_STEPS, unroll_length=6, batch_size=8, learning_rate=1e-2,
    normalization="first",
)  # fmt: skip


def measure(mesh: Mesh | None, replicate) -> dict[str, np.ndarray]:
    """The meta-objective, the bounded meta-gradient, and the weights after the meta-steps."""
    task, key = small_task("linear_regression"), jax.random.key(2)
    state = replicate(start_training(random_rnn("rnn", units=6), PROTOCOL))

    @jax.jit
    def first(optimizer):
        tight = dataclasses.replace(PROTOCOL.unroll_options(), max_cotangent_norm=BOUND)
        value, gradient, diagnostics = meta_value_and_grad(
            optimizer, task, key, batch_size=PROTOCOL.batch_size, options=tight, mesh=mesh
        )
        return {
            "value": value,
            "gradient": as_vector(gradient),
            "contained": diagnostics.contained,
        }

    found = first(state.optimizer)
    step = make_meta_step(task, PROTOCOL, 0, mesh)
    for _ in range(META_STEPS):
        state, _ = jax.block_until_ready(step(state))
    weights = jax.jit(as_vector)(state.optimizer)
    return {name: np.asarray(array) for name, array in {**found, "weights": weights}.items()}


if __name__ == "__main__":
    path, *devices = sys.argv[1:]
    if processes.VARIABLES["num_processes"] in os.environ:
        me = processes.find_processes(None, None, None, os.environ)
        group = join(me, None, PROTOCOL.batch_size)
        measured = measure(group.mesh, group.from_first)
        if group.is_first:
            np.savez(path, **measured)
        group.finish()
    else:
        counts = {words: tuple(map(int, (*words.split("/"), 1)[:2])) for words in devices}
        jax.config.update("jax_num_cpu_devices", max(count for count, _ in counts.values()))
        found = {}
        for words, (count, components) in counts.items():
            mesh = make_mesh(jax.devices()[:count], components) if count > 1 else None
            for name, array in measure(mesh, lambda state: state).items():
                found[f"{name}_{words}"] = array
        np.savez(path, **found)
