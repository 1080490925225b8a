"""How the cost of a meta-step grows with steps, batch, parameters; a second device; a budget.

`python -m benchmarks.growth [growth] [devices] [budget]` writes each measurement into
`benchmarks/results/` and, for growth, draws `docs/images/growth.png`.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.settings import POINTS, Setting, measure
from benchmarks.table import PAGE, write_section

matplotlib.use("Agg")

from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "growth.png"
SAMPLES = 7
LARGEST = 3
"""Points at the large end through which the slope is taken."""
GAUSSIAN = {"spectrum": "gaussian"}
SERIES: dict[str, list[tuple[int, Setting]]] = {
    "inner steps": [
        (steps, Setting("linear_regression", 32, 32, steps=steps))
        for steps in (50, 100, 200, 400, 800)
    ],
    "problems in the batch": [
        (batch, Setting("linear_regression", 32, batch)) for batch in (64, 128, 256, 512, 1024)
    ],
    "inner parameters": [
        (n, Setting("linear_regression", 32, 32, task_options={"n": n, **GAUSSIAN}))
        for n in (10, 20, 40, 80, 160)
    ],
}
BUDGET = 4 * 2**30
RESIDENT = 0.9 * 2**30
"""What the program, JAX and its compiler take; the budget for the reverse pass is the rest."""


def growth() -> dict[str, Any]:
    """Seconds against each size over a range of 16, and the slope at the large end."""
    results = {}
    for name, settings in SERIES.items():
        sizes = [size for size, _ in settings]
        seconds = [fastest(setting)["seconds"] for _, setting in settings]
        slope = np.polyfit(np.log(sizes[-LARGEST:]), np.log(seconds[-LARGEST:]), 1)[0]
        results[name] = {"sizes": sizes, "seconds": seconds, "slope": float(slope)}
    draw(results)
    return results


def devices() -> dict[str, Any]:
    """Two devices against one, each limited to one core, at 256 units."""
    one, two = [], []
    for _ in range(2):
        for count, taken in ((1, one), (2, two)):
            setting = Setting("linear_regression", 256, 32, devices=count)
            taken.append(fastest(setting, one_core=count == 1)["seconds"])
    return {"one_device": min(one), "two_devices": min(two), "ratio": min(one) / min(two)}


def budget() -> dict[str, Any]:
    """Two moons, 32 units, batch 32: peak memory and time within 4 GiB and without a limit."""
    base = {"task": "two_moons", "units": 32, "batch": 32, "task_options": {"points": POINTS}}
    within = fastest(Setting(**base, budget=int(BUDGET - RESIDENT)), samples=3)
    without = fastest(Setting(**base), samples=3)
    return {
        "within": within,
        "without": without,
        "ratio": within["seconds"] / without["seconds"],
        "peak_gib": within["peak_bytes"] / 2**30,
    }


def fastest(setting: Setting, samples: int = SAMPLES, one_core: bool = False) -> dict[str, Any]:
    """The least seconds of a meta-step, and the peak memory, of one process."""
    python = ["taskset", "-c", "0", sys.executable] if one_core else [sys.executable]
    result = measure(python, "benchmarks.engine", setting, samples)
    if "failed" in result:
        sys.exit(f"{setting}: {result['failed']}")
    return {
        "seconds": min(result["seconds"]),
        "median": statistics.median(result["seconds"]),
        "peak_bytes": result["peak_bytes"],
    }


def draw(results: dict[str, Any]) -> None:
    """Seconds against each size, with a line of slope one through the last point."""
    figure, axes = plt.subplots(1, len(results), figsize=(9, 3), layout="constrained", sharey=True)
    for axis, (name, series) in zip(axes, results.items(), strict=True):
        sizes, seconds = np.array(series["sizes"]), np.array(series["seconds"])
        axis.loglog(sizes, seconds[-1] * sizes / sizes[-1], "--", color="0.6", label="slope 1")
        axis.loglog(sizes, seconds, "o-", label=f"measured, slope {series['slope']:.2f}")
        axis.set_xlabel(name)
        axis.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        axis.minorticks_off()
        axis.legend(frameon=False)
    axes[0].set_ylabel("seconds a meta-step")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=150)


def main() -> None:
    parts = {"growth": growth, "devices": devices, "budget": budget}
    RESULTS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or parts:
        result = parts[name]()
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(name, json.dumps(result), flush=True)
    write_section(PAGE, "growth", summary())


def summary() -> str:
    """What has been measured, a line each."""
    lines = []
    for name in ("growth", "devices", "budget"):
        path = RESULTS / f"{name}.json"
        measured = json.loads(path.read_text()) if path.exists() else None
        if measured is None:
            continue
        if name == "growth":
            slopes = ", ".join(f"{each} {of['slope']:.2f}" for each, of in measured.items())
            lines.append(f"- Slopes of log seconds at the large end: {slopes}.")
        elif name == "devices":
            lines.append(
                f"- Two devices over one, each on a core, at 256 units (linear regression, batch "
                f"32): {measured['ratio']:.2f} times as fast."
            )
        else:
            lines.append(
                f"- Two moons, 32 units, batch 32 within 4 GiB: peak {measured['peak_gib']:.2f} "
                f"GiB, {measured['ratio']:.2f} times the time without a limit."
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
