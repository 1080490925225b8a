"""Computed table and figure of docs/scaling.md: `python -m benchmarks.scaling [--measure]`.

Seconds on this machine's cores are those of ``benchmarks/results/cores.json``; ``--measure``
measures what it lacks, in processor time (`benchmarks.cores`). The rest is
`benchmarks.cluster_model`. Writes the table into the page, and the figure with its numbers
into ``docs/images``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.cluster_model import (
    BATCH,
    ETHERNET,
    FLOAT,
    H100,
    INFINIBAND,
    NUM_STEPS,
    TWO_LEVELS,
    Link,
    Workload,
    busy,
    on_devices,
)
from benchmarks.limit import count_products
from benchmarks.settings import UNITS
from optdyn.meta_training import UnrollOptions, meta_value_and_grad
from optdyn.meta_training._exact import step_memory
from optdyn.optimizers._componentwise_rnn import ComponentwiseRNN
from optdyn.optimizers.native.build import SWITCH
from optdyn.random_streams import stream
from optdyn.study._recipes import recipe_for
from optdyn.tasks import TASKS

DOCS = Path(__file__).parent.parent / "docs"
PAGE, FIGURE = DOCS / "scaling.md", DOCS / "images" / "scaling.png"
BEGIN, END = "<!-- begin table -->", "<!-- end table -->"
MEASURED = Path(__file__).parent / "results" / "cores.json"
MEASURED_BATCH = {"linear_regression": 32, "rosenbrock": 32, "two_moons": 1, "digits": 1}
META_STEPS = 5000
GPUS = (1, 8, 64)
LARGE, LARGE_UNITS = 1_000_000, 256
"""Inner parameters, and units, of the simulated large problem."""
JITTER = 0.03
"""Standard deviation of the logarithm of a device's time for the same work: an assumption."""
DRAWS = 200
COUNTS = tuple(2**k for k in range(13))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling")
    parser.add_argument("--measure", action="store_true", help="measure what was not")
    options = parser.parse_args()
    os.environ[SWITCH] = "off"  # the products of native code cannot be counted
    works = [workload(*each) for each in itertools.product(TASKS, UNITS)]
    if options.measure:
        measure_missing(works)
    cores = seconds_on_cores(works)
    write_table(works, cores)
    large = enlarged(next(w for w in works if (w.task, w.units) == ("two_moons", LARGE_UNITS)))
    rate = cores_rate(works, cores)
    curves = simulate(large, rate)
    data = {"computed": True, "flops_a_second_on_cores": rate, "jitter": JITTER, "curves": curves}
    FIGURE.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    draw(curves)


def workload(task_name: str, units: int) -> Workload:
    """Counted in the traced program, for one problem."""
    recipe, task = recipe_for(task_name, "paper"), TASKS[task_name]()
    architecture = dataclasses.replace(recipe.architecture, units=units)
    optimizer = ComponentwiseRNN.init(jax.random.key(0), architecture)
    options = UnrollOptions(num_steps=NUM_STEPS, normalization=recipe.protocol.normalization)
    traced = jax.make_jaxpr(
        lambda opt: meta_value_and_grad(opt, task, jax.random.key(0), batch_size=1, options=options)
    )(optimizer)
    counts = count_products(traced.jaxpr)
    problem = jax.eval_shape(task.sample, stream(0, "size"))
    return Workload(
        task=task_name,
        units=units,
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(problem.params)),
        theta=sum(leaf.size for leaf in jax.tree.leaves(optimizer)),
        flops=float(sum(count * product.flops for product, count in counts.items())),
        step=step_memory(optimizer, task, options),
    )


def seconds_on_cores(works: list[Workload]) -> dict[tuple[str, int], float]:
    """Measured seconds of a meta-step of `BATCH` problems, for those of ``works`` there are."""
    rows = json.loads(MEASURED.read_text()) if MEASURED.exists() else []
    asked = {(work.task, work.units) for work in works}
    return {
        (row["task"], row["units"]): row["seconds"] * BATCH / row["batch"]
        for row in rows
        if (row["task"], row["units"]) in asked
    }


def measure_missing(works: list[Workload]) -> None:
    """Measure on this machine's cores (`benchmarks.cores`) what no result file has."""
    kept = json.loads(MEASURED.read_text()) if MEASURED.exists() else []
    known = seconds_on_cores(works)
    environment = {name: value for name, value in os.environ.items() if name != SWITCH}
    for work in works:
        if (work.task, work.units) in known:
            continue
        words = [work.task, str(work.units), str(MEASURED_BATCH[work.task])]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.cores", *words],
            capture_output=True, text=True, check=True, env=environment,
        )  # fmt: skip
        setting = {"task": work.task, "units": work.units, "batch": MEASURED_BATCH[work.task]}
        kept.append({**setting, **json.loads(done.stdout)})
        MEASURED.parent.mkdir(exist_ok=True)
        MEASURED.write_text(json.dumps(kept, indent=1) + "\n")
        print(json.dumps(kept[-1]), flush=True)


def cores_rate(works: list[Workload], cores: dict[tuple[str, int], float]) -> float:
    """Operations a second of whole meta-steps, at the largest measured one."""
    largest = max(
        (work for work in works if (work.task, work.units) in cores),
        key=lambda work: work.flops,
    )
    return BATCH * largest.flops / cores[largest.task, largest.units]


def enlarged(work: Workload) -> Workload:
    """``work`` with `LARGE` inner parameters: everything grows with them but θ."""
    factor = LARGE / work.parameters
    step = dataclasses.replace(
        work.step, kept=int(factor * work.step.kept), carry=int(factor * work.step.carry)
    )
    return dataclasses.replace(
        work, task="large", parameters=LARGE, flops=factor * work.flops, step=step
    )


def simulate(large: Workload, rate: float) -> list[dict[str, Any]]:
    """Efficiency against the number of devices: ideal time over the simulated one.

    Every device's time varies from wait to wait; all wait for the slowest, once a
    meta-step where problems are spread, at every inner step where components are.
    """
    cores = functools.partial(_cores_seconds, rate=rate)
    return [
        _curve(f"{name}, {link.name}", way, large, seconds, link)
        for way in ("problems", "components")
        for name, seconds, link in (
            ("2 cores each", cores, ETHERNET),
            (H100.name, _gpu_seconds, INFINIBAND),
        )
    ]


def _cores_seconds(own: Workload, rate: float) -> float:
    return TWO_LEVELS * own.flops / rate


def _gpu_seconds(own: Workload) -> float:
    return busy(own, H100, 1, TWO_LEVELS)


def _curve(name: str, way: str, work: Workload, seconds: Any, link: Link) -> dict[str, Any]:
    random = np.random.default_rng(0)
    single = seconds(work)
    efficiency, taken = [], []
    for count in COUNTS:
        slowest = np.exp(JITTER * random.standard_normal((DRAWS, count))).max(axis=1).mean()
        total = link.sum(FLOAT * work.theta, count)
        if way == "problems":
            total += single * slowest
            ideal = single
        else:
            total += seconds(work.share(count)) * slowest
            total += TWO_LEVELS * 2 * NUM_STEPS * link.gather(FLOAT * work.parameters, count)
            ideal = single / count
        efficiency.append(round(float(ideal / total), 4))
        taken.append(float(f"{total:.4g}"))
    return {"name": name, "spread": way, "devices": list(COUNTS), "efficiency": efficiency,
            "seconds_a_meta_step": taken}  # fmt: skip


def draw(curves: list[dict[str, Any]]) -> None:
    """Efficiency against devices, a panel for each way of spreading."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = {
        "problems": "one problem on each device",
        "components": "one problem's components over all devices",
    }
    for axes, (way, title) in zip(panels, titles.items(), strict=True):
        for curve in curves:
            if curve["spread"] == way:
                line = "s--" if H100.name in curve["name"] else "o-"
                axes.semilogx(
                    curve["devices"], curve["efficiency"], line, ms=3, base=2, label=curve["name"]
                )
        axes.set(title=title, xlabel="devices (hosts of 2 cores, or GPUs)", ylim=(0, 1.05))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="lower left")
    panels[0].set_ylabel("efficiency (computed)")
    figure.savefig(FIGURE, dpi=150)


def write_table(works: list[Workload], cores: dict[tuple[str, int], float]) -> None:
    """The page's table: days of a training, and gigabytes of each device."""
    lines = [
        "| task | units | 2 cores | " + " | ".join(f"{n} GPU{'s' * (n > 1)}" for n in GPUS) + " |",
        "|---|---|---|" + "---|" * len(GPUS),
    ]
    for work in works:
        seconds = cores.get((work.task, work.units))
        cells = [work.task.replace("_", " "), str(work.units)]
        cells.append("–" if seconds is None else _time(META_STEPS * seconds))
        for count in GPUS:
            estimate = on_devices(work, H100, count)
            cells.append(f"{_time(META_STEPS * estimate.seconds)}, {estimate.bytes / 1e9:.2g} GB")
        lines.append("| " + " | ".join(cells) + " |")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


def _time(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}" if seconds < 99 * length else (
                f"{seconds / length:.0f} {unit}")  # fmt: skip
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    main()
