"""Strict settings for every test."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# Tests run small programs once: compiling them is most of their time. So they are compiled
# quickly, and stored for the other worker, for commands in processes of their own and for the
# next run.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
PROGRAMS = Path(__file__).parents[1] / ".pytest_cache" / "programs"
LARGEST_CACHE = 2 * 2**30
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis
import jax
import pytest

from chromium import HOW_TO_INSTALL, chromium_path
from helpers import FULL, TINY_RECIPES
from optdyn.inner_loop import Objective
from optdyn.precision import double_precision
from optdyn.pretrained import load_shipped
from optdyn.runs import HeldOut, analyze_task, explain_task, explore_task, open_run
from optdyn.runs._store import write_bytes
from optdyn.study import Study, reproduce
from optdyn.tasks import TwoMoons

FIGURES: dict[str, object] = {}
HAS_TORCH = importlib.util.find_spec("torch") is not None
LEFT_OUT = {}
if not HAS_TORCH:
    LEFT_OUT["pytorch"] = "without PyTorch (make test-torch)"
if chromium_path() is None and "REQUIRE_BROWSER" not in os.environ:
    LEFT_OUT["browser"] = HOW_TO_INSTALL
collect_ignore = list(LEFT_OUT)

# A machine that is busy is no fault of the code. A commit gets the same verdict each
# time: new examples are sought by the suites at full length.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.register_profile("searching", deadline=None)
hypothesis.settings.load_profile("searching" if FULL else "repeatable")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Begin anew with programs that have grown too many; no worker is at work yet."""
    stored = PROGRAMS.glob("*") if "PYTEST_XDIST_WORKER" not in os.environ else ()
    if sum(path.stat().st_size for path in stored) > LARGEST_CACHE:
        shutil.rmtree(PROGRAMS)


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
            reproduce(out, Study(TINY_RECIPES, "smoke", shipping=shared / "nothing ships"))
    return out


@pytest.fixture(scope="session")
def small_moons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: the shipped two-moons optimizer analysed on a small network."""
    out = tmp_path_factory.mktemp("moons") / "run"
    task, held_out = TwoMoons(width=3, depth=1, points=16), HeldOut(0, 2, Objective(num_steps=8))
    with open_run(out) as run:
        for place, content in load_shipped("two_moons").files.items():
            write_bytes(out / "two_moons" / place, content)
        analyze_task(run, task, held_out)
        explain_task(run, task, held_out)
        explore_task(run, task, held_out, held_out)
    return out
