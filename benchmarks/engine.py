"""This engine's meta-step (value, gradient, Adam), measured; prints one line of JSON."""

from __future__ import annotations

import json
import os
import time

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.limit import limit
from benchmarks.sampling import peak_bytes, sample_seconds
from benchmarks.settings import Setting, memory, told
from optdyn.meta_training._components import BATCH_AXIS
from optdyn.meta_training._trainer import MetaTraining, make_meta_step, start_training
from optdyn.optimizers import Architecture, ComponentwiseRNN, Encoding
from optdyn.tasks import TASKS


def main(setting: Setting, samples: int) -> None:
    cores = len(os.sched_getaffinity(0))
    devices = setting.devices or max(n for n in range(1, cores + 1) if setting.batch % n == 0)
    jax.config.update("jax_num_cpu_devices", devices)
    mesh = Mesh(np.array(jax.devices()), (BATCH_AXIS,)) if devices > 1 else None
    task = TASKS[setting.task](**setting.task_options)
    protocol = MetaTraining(
        unroll_length=setting.steps,
        batch_size=setting.batch,
        normalization="first",
        memory_budget=setting.budget or memory() // 2,
    )
    architecture = Architecture("gru", setting.units, Encoding("asinh"), output_scale=0.1)
    rnn = ComponentwiseRNN.init(jax.random.key(0), architecture)
    state = start_training(rnn, protocol)

    begin = time.perf_counter()
    step = make_meta_step(task, protocol, seed=0, mesh=mesh).lower(state).compile()
    compile_seconds = time.perf_counter() - begin

    def advance() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(step(state))

    advance()
    seconds = sample_seconds(advance, samples)
    peak = peak_bytes()
    flops, limit_seconds = limit(setting, task, mesh)
    result = {
        "seconds": seconds,
        "compile_seconds": compile_seconds,
        "peak_bytes": peak,
        "flops": flops,
        "limit_seconds": limit_seconds,
        "devices": devices,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*told())
