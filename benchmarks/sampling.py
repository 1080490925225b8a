"""Timing by repetition, shared by the engine and its peers."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.settings import SAMPLING_SECONDS

LEAST_SECONDS = 4.0


def sample_seconds(run: Callable[[], Any], samples: int) -> list[float]:
    """Seconds of each of ``samples`` calls, more where they are short.

    They are taken for `LEAST_SECONDS` at least, and not beyond `SAMPLING_SECONDS`.
    """
    taken: list[float] = []
    while (len(taken) < samples or sum(taken) < LEAST_SECONDS) and sum(taken) < SAMPLING_SECONDS:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return taken


def peak_bytes() -> int:
    """The most memory this process has had resident, its libraries included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
