"""Searches and sweeps on a Ray cluster of two nodes: the same to the bit as in this process."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optdyn.distributed.engines import Engine, LocalEngine, Work, start_engine
from optdyn.errors import UserError
from optdyn.experiments.run_folder import open_run
from optdyn.experiments.sweep_run import Sweep, run_sweep
from optdyn.optimizers.baselines import get_baseline
from optdyn.tasks import make_task
from optdyn.tuning import random_search
from optdyn.tuning.search_table import SearchTable

pytestmark = pytest.mark.filterwarnings(
    # Ray leaves its logs and sockets to the interpreter's end, and its children to the kernel.
    "ignore::ResourceWarning",
    "ignore:subprocess .* is still running:ResourceWarning",
)

HERE = Path(__file__).parent


def started_cluster(attempts: int = 3) -> Any:
    """Two nodes. Ray gives its own processes 15 s to start, which a busy machine may exceed."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for attempt in range(attempts):
        try:
            while len(cluster.list_all_nodes()) < 2:
                cluster.add_node(num_cpus=1)
            return cluster
        except Exception:
            if attempt + 1 == attempts:
                raise
            cluster.shutdown()
            cluster = Cluster()
    raise AssertionError


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """On a cluster of two nodes with a worker each."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), *filter(None, sys.path)]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = started_cluster()
        yield start_engine("ray", cluster.address)
        ray.shutdown()
        cluster.shutdown()


def search(engine: Engine, full: bool, on_chunk=lambda table: None) -> SearchTable:
    sizes = (
        {"num_samples": 2500, "num_problems": 8, "num_steps": 50, "rescore_problems": 16}
        if full
        else {"num_samples": 120, "num_problems": 2, "num_steps": 5, "rescore_problems": 4}
    )
    return random_search(
        get_baseline("momentum"), make_task("linear_regression"), seed=0, engine=engine,
        on_chunk=on_chunk, max_rounds=2, runs_per_chunk=2048 if full else 40, **sizes,
    )  # fmt: skip


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
            found += [(title, child)] if title.startswith("ray::") else workers(child)
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
    figures["search on two Ray nodes, one worker killed"] = (
        f"{local.scores.size} rows in {local.round + 1} rounds equal to the bit; seconds: "
        + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    )


def test_a_sweep_on_a_cluster_is_the_local_one_to_the_bit(engine: Engine, tmp_path: Path) -> None:
    sweep = Sweep(
        tasks=("linear_regression",), cells=("rnn",), units=(2, 3), seeds=(0,),
        learning_rates=(1e-3, 1e-2), num_meta_steps=2, unroll_length=3, batch_size=2,
        num_problems=2,
    )  # fmt: skip
    found = {}
    for name, each in {"local": LocalEngine(), "ray": engine}.items():
        with open_run(tmp_path / name) as run:
            found[name] = run_sweep(run, sweep, engine=each)
    assert found["ray"] == found["local"]
    assert len(found["ray"]) == 4
