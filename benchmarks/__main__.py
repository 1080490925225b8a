"""Measure the settings one after the other: engine, peer, engine, peer.

`python -m benchmarks [--quick | --everything] [--peer-python PYTHON]` writes
`benchmarks/results/latest.json` and the table in `docs/benchmarks.md` after every
row, so that what an interrupted run has measured is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.settings import ALL, LONG_FLOPS, QUICK, Setting, measure
from benchmarks.table import write_table

RESULTS = Path(__file__).parent / "results" / "latest.json"
ROUNDS, SAMPLES = 2, 3
PEERS = {"jax": "benchmarks.plain", "torch": "benchmarks.torch_peer"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="five rows alone")
    parser.add_argument("--everything", action="store_true", help="rows that take hours, too")
    parser.add_argument(
        "--peer-python", default=sys.executable, help="an interpreter that has torch installed"
    )
    options = parser.parse_args()
    rows = []
    for setting in QUICK if options.quick else ALL:
        if setting.cell_flops > LONG_FLOPS and not options.everything:
            continue
        rows.append(measure_row(setting, options.peer_python))
        print(json.dumps(rows[-1]), flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
        write_table(rows)


def measure_row(setting: Setting, peer_python: str) -> dict[str, Any]:
    """One row of the results; medians over the samples of all rounds."""
    engine: list[dict[str, Any]] = []
    peers: dict[str, list[float]] = {name: [] for name in PEERS}
    missing = {}
    for _ in range(ROUNDS):
        engine.append(measure([sys.executable], "benchmarks.engine", setting, SAMPLES))
        for name, module in PEERS.items():
            if name not in missing:
                python = peer_python if name == "torch" else sys.executable
                result = measure([python], module, setting, SAMPLES)
                peers[name] += result.get("seconds", [])
                missing |= {name: result["failed"]} if "failed" in result else {}
    identity = {"task": setting.task, "units": setting.units, "batch": setting.batch}
    timed = {name: statistics.median(taken) for name, taken in peers.items() if taken}
    outcome = {"peers": timed, "missing": missing, "load_average": os.getloadavg()[1]}
    failed = [each["failed"] for each in engine if "failed" in each]
    if failed:
        return {**identity, "seconds": None, "failed": failed[0], **outcome}
    taken = [second for each in engine for second in each["seconds"]]
    return {
        **identity,
        "seconds": statistics.median(taken),
        "peak_bytes": max(each["peak_bytes"] for each in engine),
        "fraction_of_limit": statistics.median(
            each["limit_seconds"] / statistics.median(each["seconds"]) for each in engine
        ),
        "limit_seconds": statistics.median(each["limit_seconds"] for each in engine),
        "flops": engine[0]["flops"],
        "compile_seconds": statistics.median(each["compile_seconds"] for each in engine),
        "samples": len(taken),
        "devices": engine[0]["devices"],
        **outcome,
    }


if __name__ == "__main__":
    main()
