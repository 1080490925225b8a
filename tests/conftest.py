"""Strict settings for every test."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

# Tests run small programs once: compiling them is most of their time. So they are compiled
# quickly, in one piece and without the way to each line of Python, and stored for the other
# worker, for commands in processes of their own and for the next run.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
PROGRAMS = Path(__file__).parents[1] / ".pytest_cache" / "programs"
LARGEST_CACHE = 2 * 2**30
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# NumPy's threads wait for each other by spinning, on cores where the other worker is at work: a
# thread of each worker's own is faster by far on matrices as small as those of tests.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import jax
import pytest

from chromium import HOW_TO_INSTALL, chromium_path
from helpers import FULL, SMALL_MOONS, TINY_RECIPES, empty_pictures
from optdyn.precision import double_precision
from optdyn.pretrained import load_shipped
from optdyn.runs import analyze_task, explore_task, open_run
from optdyn.runs._store import write_bytes
from optdyn.study import Study, _stories, reproduce

# Tracing makes many objects that live on: looking for garbage among them takes a tenth of the time.
gc.freeze()
gc.set_threshold(50_000, 20, 50)
FIGURES: dict[str, object] = {}
HAS_TORCH = importlib.util.find_spec("torch") is not None
SLOWEST = (
    "test_cli_output", "test_processes", "test_pages", "test_ray", "test_meta_gradient",
    "test_dynamics_leaves", "test_dynamics_groups", "test_study", "test_report",
    "test_cli_analyze", "test_dynamics_time", "test_dynamics_closed_loop", "test_fused_gru",
    "test_dynamics_identification", "test_optimizer_battery", "test_stochastic_tasks",
    "test_dynamics_linearization", "test_dynamics_lens", "test_learned_update", "test_kills",
    "test_site", "test_notebooks",
)  # fmt: skip
"""Files that begin first, so that both workers end at about the same time."""
LEFT_OUT = {}
if not HAS_TORCH:
    LEFT_OUT["pytorch"] = "without PyTorch (make test-torch)"
if chromium_path() is None and "REQUIRE_BROWSER" not in os.environ:
    LEFT_OUT["browser"] = HOW_TO_INSTALL
collect_ignore = list(LEFT_OUT)

# A machine that is busy is no fault of the code. A commit gets the same verdict each
# time: new examples are sought by the suites at full length.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.register_profile("searching", deadline=None)
hypothesis.settings.load_profile("searching" if FULL else "repeatable")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Begin anew with programs that have grown too many; no worker is at work yet."""
    stored = PROGRAMS.glob("*") if "PYTEST_XDIST_WORKER" not in os.environ else ()
    if sum(path.stat().st_size for path in stored) > LARGEST_CACHE:
        shutil.rmtree(PROGRAMS)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave to the suite at full length what is marked so, and begin with the slowest files."""
    long = [item for item in items if item.get_closest_marker("full")]
    if long and not FULL:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    order = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether the suite is asked for at length (``make test-full``), not a small part of it."""
    return FULL


@pytest.fixture(scope="session")
def figures() -> dict[str, object]:
    """What a suite has done and found, by name: printed when the tests are over."""
    return FIGURES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for folder, why in LEFT_OUT.items():
        terminalreporter.write_line(f"left out: tests/{folder}, {why}")
    if FIGURES:
        terminalreporter.section("figures of the whole suite" if FULL else "of a small part")
    for name, figure in FIGURES.items():
        terminalreporter.write_line(f"{name}: {figure}")


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_dropped() -> Iterator[None]:
    """Memory is for one file's programs, not for those of the whole suite."""
    yield
    jax.clear_caches()
    if sys.platform == "linux":  # its C library keeps what is freed: a gigabyte after some files
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session", autouse=True)
def figures_are_drawn_here() -> Iterator[None]:
    """The other worker keeps the other core busy: one more process only takes time to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_stories, "MANY", 10**9)
        yield


@pytest.fixture(autouse=True)
def strict_rank_promotion() -> Iterator[None]:
    """Adding a vector to a matrix by accident raises."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 throughout the test."""
    with double_precision():
        yield


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished study of `TINY_RECIPES`; not to be written to.

    Made once, for all processes of the tests.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    out = shared / "tiny_study"
    with open(shared / "tiny_study.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "claims.json").exists():
            with empty_pictures():
                reproduce(out, Study(TINY_RECIPES, "smoke", shipping=shared / "nothing ships"))
    return out


@pytest.fixture(scope="session")
def small_moons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: the shipped two-moons optimizer analysed on a small network."""
    out = tmp_path_factory.mktemp("moons") / "run"
    task, held_out = SMALL_MOONS
    with open_run(out) as run:
        for place, content in load_shipped("two_moons").files.items():
            write_bytes(out / "two_moons" / place, content)
        analyze_task(run, task, held_out)
        explore_task(run, task, held_out, held_out)
    return out
