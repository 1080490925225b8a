"""One training on several devices and processes is the same training."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from optdyn.cli.main import main
from optdyn.distributed._processes import Processes, find_processes, launch
from optdyn.distributed._watch import LOST_EXIT, SILENCE
from optdyn.errors import UserError
from optdyn.runs._checkpoints import analysis_checkpoints, load_optimizer
from optdyn.runs._metrics_log import read_metrics
from optdyn.runs._training_run import CHECKPOINTS, METRICS

HERE = Path(__file__).parent
GRADIENT, WEIGHTS = 1e-5, 1e-4
"""Relative to the largest entry."""

META_STEPS, KILLED_AFTER = 50, 20


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes import what the tests do."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE.parent), *filter(None, sys.path)]))


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, relative to the largest entry."""
    return float(np.max(np.abs(one - other)) / np.max(np.abs(other)))


@pytest.fixture(scope="module")
def on_devices(tmp_path_factory: pytest.TempPathFactory, full: bool) -> dict[str, np.ndarray]:
    path = tmp_path_factory.mktemp("devices") / "found.npz"
    counts = ["1", "2", "3", "4", "8", "4/2", "8/4"] if full else ["1", "3"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}
    subprocess.run(
        [sys.executable, str(HERE / "meta_steps.py"), str(path), *counts],
        check=True,
        env=environment,
    )
    return dict(np.load(path))


def those_of(words: str, on_devices: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What was found on the devices that ``words`` tell of."""
    split = {name: name.rpartition("_") for name in on_devices}
    return {split[name][0]: on_devices[name] for name in on_devices if split[name][2] == words}


def require_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> str:
    gradient = difference(found["gradient"], expected["gradient"])
    weights = difference(found["weights"], expected["weights"])
    assert difference(found["value"], expected["value"]) < GRADIENT
    assert gradient < GRADIENT
    assert found["contained"] == expected["contained"] > 0
    assert weights < WEIGHTS
    return f"meta-gradient {gradient:.1e}, weights after {META_STEPS} meta-steps {weights:.1e}"


def test_any_number_of_devices_gives_the_same_training(
    on_devices: dict[str, np.ndarray], figures: dict[str, object]
) -> None:
    alone = those_of("1", on_devices)
    for words in sorted({name.rpartition("_")[2] for name in on_devices} - {"1"}):
        count, _, components = words.partition("/")
        shared = f", {components} to a problem," if components else ""
        figures[f"{count} devices{shared} against 1"] = require_same(
            those_of(words, on_devices), alone
        )


@pytest.mark.full  # the next one compares the training of two with that of one
def test_any_number_of_processes_gives_the_same_training(
    on_devices: dict[str, np.ndarray], tmp_path: Path, figures: dict[str, object]
) -> None:
    alone = those_of("1", on_devices)
    for count in (1, 2, 4):
        path = tmp_path / f"{count}.npz"
        script = [sys.executable, str(HERE / "meta_steps.py"), str(path)]
        assert launch(script, count) is None
        figures[f"{count} processes against 1 device"] = require_same(dict(np.load(path)), alone)


def test_a_killed_process_ends_the_job_which_goes_on_with_fewer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], full: bool, figures: dict[str, object]
) -> None:
    words = f"--cell rnn --units 4 --unroll-length 6 --batch-size 8 --meta-steps {META_STEPS}"
    words = words.split()
    assert main(["train", *words, "--devices", "1", "--out", str(tmp_path / "whole")]) == 0
    before, after, victim = (4, 2, 2) if full else (2, 1, 1)
    out = tmp_path / "killed"
    log = out / "linear_regression" / METRICS
    options = [*words, "--out", str(out)]
    script = [sys.executable, str(HERE / "mortal_train.py"), str(victim), str(KILLED_AFTER)]
    started = time.monotonic()
    failed = launch([*script, str(log), *options], before)
    assert failed == (-9, f"process {victim} of {before} was ended by SIGKILL")
    figures["seconds from the start to the end of the killed job"] = round(
        time.monotonic() - started, 1
    )
    rows = read_metrics(log)
    assert KILLED_AFTER <= len(rows) < META_STEPS
    told = capfd.readouterr().err.splitlines()
    ours = [line for line in told if line.startswith("optdyn: ")]
    assert len(ours) == 1
    assert f"process {victim} of {before} has ended: stopped after meta-step" in ours[0]

    assert main(["launch", "--processes", str(after), "--", "train", *options]) == 0
    names = ("meta_objective", "gradient_norm")
    whole = read_metrics(tmp_path / "whole" / "linear_regression" / METRICS)
    resumed = read_metrics(log)
    assert len(resumed) == META_STEPS
    curves = [
        np.array([[getattr(row, n) for n in names] for row in rows]) for rows in (resumed, whole)
    ]
    ends = [
        load_optimizer(analysis_checkpoints(folder / "linear_regression" / CHECKPOINTS)[-1])[0]
        for folder in (out, tmp_path / "whole")
    ]
    curve = float(np.max(np.abs(curves[0] / curves[1] - 1)))
    weights = max(difference(ends[0].weights[name], ends[1].weights[name]) for name in ("W_h",))
    assert curve < WEIGHTS
    assert weights < WEIGHTS
    figures[f"{before} processes, one killed, then {after}"] = (
        f"loss curve {curve:.1e}, weights {weights:.1e} from the uninterrupted"
    )


def test_who_takes_part_comes_from_arguments_or_the_environment() -> None:
    environment = {
        "OPTDYN_COORDINATOR": "host:1234",
        "OPTDYN_NUM_PROCESSES": "4",
        "OPTDYN_PROCESS_ID": "3",
    }
    assert find_processes(None, None, None, environment) == Processes("host:1234", 4, 3)
    assert find_processes("[::1]:80", 2, 0, environment) == Processes("[::1]:80", 2, 0)
    assert find_processes("[::1]:80", 2, 0, {}).host == "::1"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("host:1", 2, None), "--process-id: needed with --distributed"),
        (("host:1", 2, 2), "--process-id: 2 is not allowed"),
        (("host", 2, 0), "--coordinator: 'host' is not allowed"),
        (("host:99999", 2, 0), "--coordinator: 'host:99999' is not allowed"),
        ((":80", 2, 0), "--coordinator: ':80' is not allowed"),
    ],
)
def test_bad_places_are_refused(given: tuple, told: str) -> None:
    with pytest.raises(UserError, match=told):
        find_processes(*given, {})


def test_bad_variables_are_refused() -> None:
    with pytest.raises(UserError, match="OPTDYN_NUM_PROCESSES: 'x' is not allowed"):
        find_processes("host:1", None, 0, {"OPTDYN_NUM_PROCESSES": "x"})


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["launch"], "launch: needs -- and a command"),
        (["launch", "--", "tune"], "launch: needs -- and a command"),
        (["launch", "--processes", "0", "--", "train"], "--processes: 0 is not allowed"),
        (["train", "--process-id", "1"], "need --distributed"),
        (["train", "--distributed"], "--coordinator: needed with --distributed"),
    ],
)
def test_bad_commands_are_refused(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert told in capsys.readouterr().err


SILENT = """
import sys, threading, time, os
import optdyn.distributed._watch as watch
watch.SILENCE = 1.0
hub = watch.Hub("localhost", 2)
pid = os.fork()
if pid == 0:
    spoke = watch.Spoke("localhost", hub.port, hub.token, 1)
    time.sleep(0.5)
    os.kill(os.getpid(), 19)
hub.accept()
started = time.monotonic()
assert hub.wait_for_loss(30)
os.kill(pid, 9)
print(hub.lost, round(time.monotonic() - started))
"""


def test_a_process_that_says_nothing_is_lost() -> None:
    done = subprocess.run([sys.executable, "-c", SILENT], capture_output=True, text=True)
    assert done.stdout.startswith("process 1 of 2 has said nothing for 1 s"), done.stderr
    assert int(done.stdout.split()[-1]) <= 4
    assert LOST_EXIT == 75
    assert SILENCE == 20
