"""What a user waits for: analyses of one optimizer, and the learned update beside Adam's.

`python -m benchmarks.interactive` (part of `make bench`) writes its results as JSON
and two tables in `docs/benchmarks.md`. Each row is measured in a process of its own, in
processor time, which changes less with other load, and in time by the clock.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.table import PAGE, write_section
from optdyn.dynamics import identify, linearize
from optdyn.optimizers import Architecture, ComponentwiseRNN, Encoding

RESULTS = Path(__file__).parent / "results" / "interactive.json"
PARAMETERS = 1_000_000
SAMPLES = 9
ANALYSES: dict[str, Callable[[optax.GradientTransformation], Any]] = {
    "linearize": lambda tx: linearize(tx, gradient=0.1),
    "identify": identify,
}
LEARNED = tuple((units, dtype) for units in (8, 32) for dtype in ("float32", "bfloat16"))


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Medians of some calls: by the clock, and of the processor on all cores."""

    wall: float
    processor: float


def timed(call: Callable[[], Any], samples: int = SAMPLES) -> Seconds:
    """Run ``call`` some times."""
    walls, processors = [], []
    for _ in range(samples):
        wall, processor = time.perf_counter(), time.process_time()
        call()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return Seconds(statistics.median(walls), statistics.median(processors))


def analysis(name: str) -> dict[str, Any]:
    """An analysis of Adam: the first call, later ones, and the first of another Adam."""
    call, first = ANALYSES[name], optax.adam(1e-3)
    return {
        "first": dataclasses.asdict(timed(lambda: call(first), samples=1)),
        "later": dataclasses.asdict(timed(lambda: call(first))),
        "another": dataclasses.asdict(timed(lambda: call(optax.adam(2e-3)), samples=1)),
    }


def update(units: int, dtype: str, number: int = PARAMETERS) -> dict[str, Any]:
    """An update of ``number`` parameters, its state donated, and Adam's in the same process."""
    params = {"matrix": jnp.zeros((number // 200, 100)), "vector": jnp.zeros(number // 2)}
    gradients = jax.tree.map(
        lambda p: jnp.sin(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params
    )
    architecture = Architecture("gru", units, Encoding("asinh"), output_scale=0.1)
    rnn = ComponentwiseRNN.init(jax.random.key(0), architecture)
    rnn = dataclasses.replace(rnn, w=jax.random.normal(jax.random.key(1), rnn.w.shape))
    learned = _advancing(rnn.as_optax(state_dtype=dtype), params, gradients)
    adam = _advancing(optax.adam(1e-3), params, gradients)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {
        "units": units,
        "dtype": dtype,
        "bytes": learned.state_bytes / size,
        "extra_bytes": learned.extra_bytes / size,
        "learned": dataclasses.asdict(timed(learned.advance)),
        "adam": dataclasses.asdict(timed(adam.advance)),
    }


@dataclasses.dataclass(frozen=True)
class _Advancing:
    advance: Callable[[], None]
    state_bytes: int
    extra_bytes: int


def _advancing(tx: optax.GradientTransformation, params: Any, gradients: Any) -> _Advancing:
    state = tx.init(params)
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    step = jax.jit(tx.update, donate_argnums=1).lower(gradients, state).compile()

    def advance() -> None:
        nonlocal state
        _, state = jax.block_until_ready(step(gradients, state))

    advance()
    return _Advancing(advance, state_bytes, step.memory_analysis().temp_size_in_bytes)


def measured(*told: str) -> dict[str, Any]:
    """What a process of its own measures of one row."""
    command = [sys.executable, "-m", "benchmarks.interactive", *told]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    return json.loads(done.stdout.splitlines()[-1])


def tables(results: dict[str, Any]) -> str:
    """Both tables."""
    lines = [
        "| call, on `optax.adam` | first, s | later, s | another Adam, s |",
        "|---|---|---|---|",
    ]
    for name, row in results["analyses"].items():
        cells = [f"{row[kind]['processor']:.3g}" for kind in ("first", "later", "another")]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| units | state | bytes of state a parameter | other memory | ms | Adam, ms | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["updates"]:
        ours, adam = (1e3 * row[name]["processor"] for name in ("learned", "adam"))
        lines.append(
            f"| {row['units']} | {row['dtype']} | {row['bytes']:.0f} | {row['extra_bytes']:.0f} "
            f"| {ours:.3g} | {adam:.2g} | {ours / adam:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    results = {
        "analyses": {name: measured("analysis", name) for name in ANALYSES},
        "updates": [measured("update", str(units), dtype) for units, dtype in LEARNED],
        "load_average": os.getloadavg()[1],
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    write_section(PAGE, "interactive", tables(results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["analysis"]:
        print(json.dumps(analysis(sys.argv[2])))
    elif sys.argv[1:2] == ["update"]:
        print(json.dumps(update(int(sys.argv[2]), sys.argv[3])))
    else:
        main()
