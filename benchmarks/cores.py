"""A meta-step on this machine's cores, in processor time: it hardly changes with other load.

`python -m benchmarks.cores TASK UNITS BATCH` prints one line of JSON. A short unroll is
measured and scaled, as each inner step costs the same.
"""

from __future__ import annotations

import json
import os
import sys
import time

import jax
import numpy as np
from jax.sharding import Mesh

from optdyn.meta_training._components import BATCH_AXIS
from optdyn.meta_training._trainer import MetaTraining, make_meta_step, start_training
from optdyn.optimizers import Architecture, ComponentwiseRNN
from optdyn.study._recipes import recipe_for
from optdyn.tasks import TASKS

SHORT, FULL = 20, 200
SAMPLES = 2


def main(task: str, units: int, batch: int) -> None:
    cores = len(os.sched_getaffinity(0))
    devices = cores if batch % cores == 0 else 1
    jax.config.update("jax_num_cpu_devices", devices)
    mesh = Mesh(np.array(jax.devices()), (BATCH_AXIS,)) if devices > 1 else None
    protocol = MetaTraining(unroll_length=SHORT, batch_size=batch)
    architecture = Architecture("gru", units, recipe_for(task, "paper").architecture.encoding)
    state = start_training(ComponentwiseRNN.init(jax.random.key(0), architecture), protocol)
    step = make_meta_step(TASKS[task](), protocol, seed=0, mesh=mesh)
    state, _ = jax.block_until_ready(step(state))
    taken = []
    for _ in range(SAMPLES):
        begin = time.process_time()
        state, _ = jax.block_until_ready(step(state))
        taken.append(time.process_time() - begin)
    print(json.dumps({"seconds": min(taken) / cores * FULL / SHORT}))


if __name__ == "__main__":
    name, units, batch = sys.argv[1:]
    main(name, int(units), int(batch))
