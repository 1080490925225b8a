"""Runs that are killed anywhere go on to the same bits."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tiny_runs import results

SOURCES = [Path(__file__).parents[2] / "src", Path(__file__).parent]
KILLS = {"training": 80, "tuning": 70, "evaluation": 60}
SIGNALS = 20
KILLS_IN_SMALL, SIGNALS_IN_SMALL = 1, 1
RUNS_IN_SMALL = ("training", "tuning")
"""An evaluation is tuning's kind of run: chunk by chunk, of which none is done twice."""
MOST_KILLS = 12
"""Of one run: after them it is let go on to its end."""
LONGEST_FAREWELL = 10.0
"""Seconds from a signal to the end of the process, on a machine with much else to do."""

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Has a run done in a process of its own: see `killer`."""
    cache = tmp_path_factory.mktemp("compiled")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SOURCES))}
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("killer.py")), str(cache)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask(
            run: str, folder: Path, signum: int | None = None, after: float = 0.0,
            working: bool = True,
        ) -> dict[str, Any]:  # fmt: skip
            request = {
                "run": run, "folder": str(folder), "signal": signum, "after": after,
                "working": working,
            }  # fmt: skip
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            return json.loads(stdout.readline())

        yield ask
        stdin.close()


@pytest.fixture(scope="module")
def undisturbed(ask: Ask, tmp_path_factory: pytest.TempPathFactory, full: bool) -> dict[str, Path]:
    """Each run's folder, where nothing disturbed it; each begins on the one before."""
    folders: dict[str, Path] = {}
    before = None
    for run in KILLS if full else RUNS_IN_SMALL:
        folders[run] = tmp_path_factory.mktemp("whole") / run
        if before is not None:
            shutil.copytree(before, folders[run])
        end = ask(run, folders[run])
        assert end["code"] == 0, folders[run].with_suffix(".output").read_text()
        before = folders[run]
    return folders


def test_killed_runs_go_on_to_the_same_bits(
    ask: Ask, undisturbed: dict[str, Path], tmp_path: Path, full: bool, figures: dict[str, object]
) -> None:
    chance = random.Random(0)
    kills, runs, begins_on = dict.fromkeys(KILLS, 0), 0, None
    for run, folder in undisturbed.items():
        expected, number = results(folder), 0
        usual = 1.0
        while kills[run] < (KILLS[run] if full else KILLS_IN_SMALL):
            number += 1
            here = tmp_path / f"{run}-{number}"
            if begins_on is not None:
                shutil.copytree(begins_on, here)
            for _ in range(chance.randint(1, MOST_KILLS) if full else KILLS_IN_SMALL):
                working = chance.random() < 0.8
                end = ask(run, here, signal.SIGKILL, chance.uniform(0.0, usual), working)
                if end["code"] != -signal.SIGKILL:
                    break
                kills[run] += 1
            else:
                end = ask(run, here)
            assert end["code"] == 0, here.with_suffix(".output").read_text()
            assert results(here) == expected
            usual = 0.5 * usual + 0.5 * end["seconds_of_work"]
            runs += 1
            shutil.rmtree(here)
        begins_on = folder
    figures["SIGKILLs"] = f"{sum(kills.values())} ({kills}), in {runs} runs"
    figures["runs that failed to go on, or differ by a bit"] = 0


def test_signalled_runs_save_and_leave_soon(
    ask: Ask, tmp_path: Path, full: bool, figures: dict[str, object]
) -> None:
    chance = random.Random(1)
    whole = tmp_path / "whole"
    assert ask("command", whole)["code"] == 0
    expected, stopped, slowest = results(whole), 0, 0.0
    here = tmp_path / "here"
    while stopped < (SIGNALS if full else SIGNALS_IN_SMALL):
        signum = chance.choice([signal.SIGTERM, signal.SIGINT])
        end = ask("command", here, signum, chance.uniform(0.0, 0.6), chance.random() < 0.8)
        told = here.with_suffix(".output").read_text()
        if end["code"] == 0:
            assert _without_resume(results(here)) == _without_resume(expected)
            shutil.rmtree(here)
            continue
        assert end["code"] == 128 + signum, told
        assert told.splitlines()[-1].startswith("optdyn: stopped"), told
        assert "; to go on: optdyn train " in told.splitlines()[-1]
        slowest = max(slowest, end["seconds_to_end"])
        assert slowest < LONGEST_FAREWELL
        stopped += 1
    assert ask("command", here)["code"] == 0
    assert _without_resume(results(here)) == _without_resume(expected)
    figures["SIGTERMs and SIGINTs"] = f"{stopped}, the slowest end after {slowest:.2f} s"


def _without_resume(found: dict[str, Any]) -> dict[str, Any]:
    """Without all but the last of the states to resume from, which lie where a run stopped."""
    states = sorted(name for name in found if "/resume-" in name)
    return {name: value for name, value in found.items() if name not in states[:-1]}
