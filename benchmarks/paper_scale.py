"""How long a training by the paper's whole protocol takes on this machine's accelerator.

`make bench-gpu` (TASK=, UNITS=) measures meta-steps of what `make paper-gpu` trains, in
seconds by the clock after compilation, and tells the minutes of all 5000 from them. It prints one
line of JSON. On a machine without an accelerator it runs on the processor; give small sizes then:
`python -m benchmarks.paper_scale --task rosenbrock --units 8 --batch 2 --steps 5`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax

from optdyn.meta_training._trainer import MetaTraining, make_meta_step, start_training
from optdyn.optimizers import ComponentwiseRNN
from optdyn.study._recipes import recipe_for
from optdyn.tasks import TASKS

MEMORY_BUDGET = 60_000_000_000
"""Bytes for the reverse pass: what `make paper-gpu` asks for."""


def measure(task: str, units: int, batch: int, steps: int, samples: int) -> dict[str, Any]:
    """Median seconds of a meta-step, and the minutes that a whole training takes at that rate."""
    protocol = MetaTraining(unroll_length=steps, batch_size=batch, memory_budget=MEMORY_BUDGET)
    architecture = dataclasses.replace(recipe_for(task, "paper").architecture, units=units)
    state = start_training(ComponentwiseRNN.init(jax.random.key(0), architecture), protocol)
    begin = time.perf_counter()
    step = make_meta_step(TASKS[task](), protocol, seed=0).lower(state).compile()
    compile_seconds = time.perf_counter() - begin
    taken = []
    for _ in range(samples + 1):
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(step(state))
        taken.append(time.perf_counter() - begin)
    seconds = statistics.median(taken[1:])
    return {
        "device": jax.devices()[0].device_kind,
        "task": task,
        "units": units,
        "batch": batch,
        "compile_seconds": compile_seconds,
        "seconds": seconds,
        "minutes_of_all_meta_steps": (compile_seconds + protocol.num_meta_steps * seconds) / 60,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper_scale")
    parser.add_argument("--task", default="two_moons", choices=list(TASKS))
    parser.add_argument("--units", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--samples", type=int, default=3)
    print(json.dumps(measure(**vars(parser.parse_args(arguments)))))


if __name__ == "__main__":
    main()
