"""The measured settings, and the process in which each is measured."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

NUM_STEPS = 200
UNITS = (32, 64, 256)
BATCHES = (1, 8, 32)
PARAMETERS = {"linear_regression": 5, "rosenbrock": 2, "two_moons": 8577}
SAMPLING_SECONDS = 300.0
"""A process takes no further sample after this time: the largest rows need minutes each."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row: a task, the GRU's size, the number of problems in a meta-step."""

    task: str
    units: int
    batch: int


ALL = [Setting(*row) for row in itertools.product(PARAMETERS, UNITS, BATCHES)]
QUICK = [
    Setting("linear_regression", 32, 32),
    Setting("linear_regression", 256, 32),
    Setting("rosenbrock", 32, 32),
    Setting("two_moons", 32, 1),
]


def memory() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def measure(python: str, module: str, setting: Setting, samples: int) -> dict[str, Any]:
    """Run ``module`` in a process of its own; what it printed, or ``{"failed": reason}``.

    Large pages are asked for in every process alike: a meta-step writes
    gigabytes once, and with pages of 4 KiB the kernel is a fifth of the time.
    """
    environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    arguments = [setting.task, str(setting.units), str(setting.batch), str(samples)]
    done = subprocess.run(
        [python, "-m", module, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env=environment,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"failed": lines[-1] if lines else f"ended with status {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])
