"""The measured settings, and the process in which each is measured."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

NUM_STEPS = 200
UNITS = (32, 64, 256)
BATCHES = (1, 8, 32)
PARAMETERS = {"linear_regression": 5, "rosenbrock": 2, "two_moons": 8577}
POINTS = 256
"""Data points of two moons in every measurement."""
SAMPLING_SECONDS = 300.0
"""A process takes no further sample after this time: the largest rows need minutes each."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One measurement: a task, the GRU's size, the number of problems in a meta-step.

    ``devices``: None for as many of the cores as the batch divides over. ``budget``:
    bytes for the reverse pass; None for half of the machine's memory.
    """

    task: str
    units: int
    batch: int
    steps: int = NUM_STEPS
    devices: int | None = None
    budget: int | None = None
    task_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def cell_flops(self) -> float:
        """Operations of the cell's matrix products, forward and back, in one meta-step."""
        rows = self.batch * self.task_options.get("n", PARAMETERS[self.task])
        return 18.0 * self.units**2 * rows * self.steps


def row(task: str, units: int, batch: int) -> Setting:
    """A row of the table."""
    options = {"points": POINTS} if task == "two_moons" else {}
    return Setting(task, units, batch, task_options=options)


ALL = [row(*each) for each in itertools.product(PARAMETERS, UNITS, BATCHES)]
QUICK = [
    row("linear_regression", 32, 32),
    row("linear_regression", 256, 32),
    row("rosenbrock", 32, 32),
    row("rosenbrock", 256, 32),
    row("two_moons", 32, 1),
]
LONG_FLOPS = 9e11
"""Rows with more than this, half a minute and more a meta-step on two cores, are measured on
request."""


def memory() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def measure(python: list[str], module: str, setting: Setting, samples: int) -> dict[str, Any]:
    """Run ``module`` in a process of its own; what it printed, or ``{"failed": reason}``.

    Large pages are asked for in every process alike: a meta-step writes
    gigabytes once, and with pages of 4 KiB the kernel is a fifth of the time.
    """
    environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    told = json.dumps(dataclasses.asdict(setting))
    done = subprocess.run(
        [*python, "-m", module, told, str(samples)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env=environment,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"failed": lines[-1] if lines else f"ended with status {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def told() -> tuple[Setting, int]:
    """In that process: what to measure, and how many samples to take."""
    setting, samples = sys.argv[1:]
    return Setting(**json.loads(setting)), int(samples)
