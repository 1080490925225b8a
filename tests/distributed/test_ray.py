"""Searches and sweeps on a Ray cluster: the same to the bit as in this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from optdyn.distributed._engines import Engine, LocalEngine, Work, start_engine
from optdyn.errors import UserError
from optdyn.inner_loop import Objective
from optdyn.meta_training import MetaTraining
from optdyn.optimizers import Architecture
from optdyn.optimizers._baselines import get_baseline
from optdyn.runs._run_folder import open_run
from optdyn.runs._search_run import Base, Sweep, run_sweep
from optdyn.search import Execution, SearchProtocol, random_search
from optdyn.search._search_table import SearchTable
from optdyn.tasks import LinearRegression, make_task

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """On the cluster of `cluster_nodes`, whose workers find what the tests do."""
    import ray

    path = os.pathsep.join([str(HERE), *filter(None, sys.path)])
    with subprocess.Popen(
        [sys.executable, str(HERE / "cluster_nodes.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"},
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        yield start_engine("ray", process.stdout.readline().strip())
        ray.shutdown()
        process.stdin.close()


def search(engine: Engine, full: bool, on_chunk=lambda table: None) -> SearchTable:
    protocol = (
        SearchProtocol(
            Objective(50), num_samples=2500, num_problems=8, rescore_problems=16, max_rounds=2
        )
        if full
        else SearchProtocol(
            Objective(5), num_samples=120, num_problems=2, rescore_problems=4, max_rounds=2
        )
    )
    return random_search(
        get_baseline("momentum"),
        make_task("linear_regression"),
        seed=0,
        protocol=protocol,
        execution=Execution(engine=engine, runs_per_chunk=2048 if full else 40),
        on_chunk=on_chunk,
    )


def stubborn(folder: str):
    """A maker of a function that ends its worker the first time."""

    def function(number: int) -> int:
        mark = Path(folder) / "been here"
        if number == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number

    return function


def failing():
    def function(chunk: int) -> int:
        raise UserError(f"chunk: {chunk} is not allowed")

    return function


def work(maker, **settings) -> Work:
    return Work(here=lambda: maker(**settings), maker=f"test_ray:{maker.__name__}",
                settings=settings)  # fmt: skip


@pytest.mark.full
def test_a_killed_workers_chunk_is_done_again(engine: Engine, tmp_path: Path) -> None:
    results = list(engine.map(work(stubborn, folder=str(tmp_path)), range(5)))
    assert results == [0, 1, 4, 9, 16]
    assert (tmp_path / "been here").exists()


def test_errors_of_the_work_are_its_own(engine: Engine) -> None:
    for each in (LocalEngine(), engine):
        with pytest.raises(UserError, match=r"^chunk: 7 is not allowed$"):
            list(each.map(work(failing), [7]))


def workers(pid: int) -> list[tuple[str, int]]:
    """Ray's workers below process ``pid``: what each is doing, and its number."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            title = Path(f"/proc/{child}/cmdline").read_bytes().decode()
            # Ray's own agents are below it, too: without them a node ends.
            at_work = title.startswith(("ray::on_worker", "ray::IDLE"))
            found += [(title, child)] if at_work else workers(child)
    return found


def test_a_search_on_a_cluster_is_the_local_one_to_the_bit(
    engine: Engine, full: bool, figures: dict[str, object]
) -> None:
    killed: list[str] = []

    def kill_a_worker(table: SearchTable) -> None:
        """Once a third of the rows are scored; one in the middle of a chunk, if any is."""
        if not killed and table.to_score().size < 2 * table.scores.size // 3:
            title, pid = max(workers(os.getpid()))
            os.kill(pid, signal.SIGKILL)
            killed.append(title)

    started = time.monotonic()
    distributed = search(engine, full, kill_a_worker)
    seconds = {"ray": time.monotonic() - started}
    started = time.monotonic()
    local = search(LocalEngine(), full)
    seconds["local"] = time.monotonic() - started
    assert len(killed) == 1
    assert killed[0].startswith("ray::on_worker") or not full
    assert distributed.settings == local.settings
    assert distributed.grid == local.grid
    assert distributed.earlier == local.earlier
    for name in ("indices", "scores", "rescores"):
        assert getattr(distributed, name).tobytes() == getattr(local, name).tobytes()
    assert np.isfinite(local.scores).sum() > local.scores.size // 4
    figures["search on two Ray workers, one killed"] = (
        f"{local.scores.size} rows in {local.round + 1} rounds equal to the bit; seconds: "
        + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    )


@pytest.mark.full
def test_a_sweep_on_a_cluster_is_the_local_one_to_the_bit(engine: Engine, tmp_path: Path) -> None:
    protocol = MetaTraining(num_meta_steps=2, unroll_length=3, batch_size=2)
    sweep = Sweep(
        (Base(LinearRegression(), Architecture(), protocol),), cells=("rnn",), units=(2, 3),
        seeds=(0,), learning_rates=(1e-3, 1e-2), num_problems=2,
    )  # fmt: skip
    found = {}
    for name, each in {"local": LocalEngine(), "ray": engine}.items():
        with open_run(tmp_path / name) as run:
            found[name] = run_sweep(run, sweep, engine=each)
    assert found["ray"] == found["local"]
    assert len(found["ray"]) == 4
