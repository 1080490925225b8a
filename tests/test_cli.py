"""The command line: one line and exit code 2 for anything wrong, and nothing touched."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import optdyn
from optdyn.cli import _options as options
from optdyn.cli._examples import EXAMPLES
from optdyn.cli._settings import (
    LARGEST_DEVICES,
    SETTINGS,
    ReproduceSettings,
    SearchSettings,
    TrainSettings,
    TuneSettings,
)
from optdyn.cli.main import COMMANDS, main
from optdyn.meta_training._trainer import MetaTraining, make_meta_step
from optdyn.optimizers._baselines import BASELINES
from optdyn.optimizers._cells import CELLS
from optdyn.optimizers._componentwise_rnn import Architecture
from optdyn.optimizers._encodings import ENCODINGS
from optdyn.runs import _training_run as training_run
from optdyn.runs._checkpoints import analysis_checkpoints
from optdyn.search._learning_rate import LearningRateSearch
from optdyn.tasks import TASKS, LinearRegression

ON_TASK = ["--task", "rosenbrock", "--devices", "1"]
TINY = [*ON_TASK, "--units", "4", "--unroll-length", "10", "--batch-size", "2"]
SOURCE = str(Path(__file__).parents[1] / "src")

pytestmark = pytest.mark.usefixtures("own_compilation_cache")

COUNTS = [
    "--units", "--unroll-length", "--meta-steps", "--batch-size", "--decay-every", "--segment",
    "--chunk", "--devices",
]  # fmt: skip
NUMBERS = ["--learning-rate", "--decay", "--clip", "--gain", "--input-scale", "--output-scale"]
CHOICES = ["--task", "--cell", "--encoding", "--normalization"]

not_numbers = st.text(max_size=12).filter(lambda text: not is_number(text))
bad_counts = st.one_of(
    st.integers(max_value=0).map(str), st.floats(0.001, 0.999).map(str), not_numbers,
    st.sampled_from(["1.5", "nan", "inf", "-inf", "1e3", "", "9" * 30, "9" * 5000]),
)  # fmt: skip
bad_numbers = st.one_of(
    st.floats(max_value=0.0).map(str), not_numbers,
    st.sampled_from(["nan", "-nan", "inf", "-inf", "0", "-0.0", "1e400", "1e31", "", "one"]),
)  # fmt: skip
bad_choices = st.text(max_size=12).filter(
    lambda text: text not in {*TASKS, *CELLS, *ENCODINGS, "none", "first"}
)
bad_task_options = st.sampled_from(
    ["n", "=3", "n=0", "n=-1", "n=x", "n=1.5", "low=1", "low=nan", "low=x", "high=-9", "n=nan",
     "spectrum=3", "spectrum=flat", "other=1", "width=3", "", "a b=1", "self=1", "n=" + "9" * 5000]
)  # fmt: skip
bad_options = st.one_of(
    st.tuples(st.sampled_from(COUNTS), bad_counts),
    st.tuples(st.sampled_from(NUMBERS), bad_numbers),
    st.tuples(st.sampled_from(CHOICES), bad_choices),
    st.tuples(st.just("--task-option"), bad_task_options),
    st.tuples(st.just("--seed"), st.one_of(not_numbers, st.sampled_from(["-1", "4294967296"]))),
    st.tuples(st.from_regex(r"--[a-z]{3,8}-x", fullmatch=True), st.just("1")),
    st.tuples(st.sampled_from(["--out", "--initial"]), st.sampled_from(["", "a\0b"])),
)


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def complaint(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """The one line of a command line that is refused."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"optdyn: error: [^\n]+\n", captured.err), captured.err
    return captured.err.removeprefix("optdyn: error: ").rstrip("\n")


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(bad=bad_options, joined=st.booleans())
def test_any_bad_option_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], bad: tuple[str, str], joined: bool
) -> None:
    name, value = bad
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        argv = ["train", "--out", str(out), *([f"{name}={value}"] if joined else [name, value])]
        line = complaint(capsys, argv)
        assert name in line
        assert not out.exists()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["frobnicate"], "command: unknown value 'frobnicate' (allowed: train,"),
        (["train", "--task", "foo"], "--task: unknown value 'foo' (allowed: linear_regression,"),
        (["train", "--seed=--"], "--seed: '--' is not allowed (a value)"),
        (["train", "--units", "-3"], "--units: '-3' is not allowed (an integer >= 1 and <= "),
        (["train", "--learning-rate", "nan"], "--learning-rate: 'nan' is not allowed (a finite"),
        (["train", "--units"], "--units: expected one argument"),
        (["train", "--unit", "3"], "'--unit': unknown option"),
        (["train", "stray"], "'stray': unknown option"),
        (["train", "--units", "32769"], "--units: '32769' is not allowed (an integer >= 1 and <= "),
        (["train", "--task-option", "n=1000001"], "--task-option: n: '1000001' is not allowed"),
        (["train", "--devices", "3"], "--devices: 3 is not allowed (a divisor of --batch-size 32)"),
        (["train", "--chunk", "5"], "--chunk: 5 is not allowed (a divisor of"),
        (["train", "--initial", "/absent"], "--initial: /absent: cannot read (No such file"),
        (["search-lr", "--lowest", "1", "--highest", "0.1"], "--lowest: 1.0 is not allowed"),
        (["tune", "--baseline", "foo"], "--baseline: unknown value 'foo' (allowed: momentum,"),
        (["evaluate", "--out", "/absent"], "--out: /absent does not exist"),
        (["reproduce", "--scale", "huge"], "--scale: unknown value 'huge' (allowed: smoke, laptop"),
        (["reproduce", "--retrain=1"], "--retrain: ignored explicit argument '1'"),
    ],
)
def test_complaints_name_the_option_and_what_is_allowed(
    capsys: pytest.CaptureFixture[str], argv: list[str], expected: str
) -> None:
    assert complaint(capsys, argv).startswith(expected)


def test_folders_that_cannot_be_used_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "thesis.tex"
    precious.write_text("precious")
    assert "holds other files" in complaint(capsys, ["train", "--out", str(tmp_path)])
    below = precious / "run"
    assert f"--out: {below}: cannot" in complaint(capsys, ["train", "--out", str(below)])
    assert "holds nothing to evaluate" in complaint(
        capsys, ["evaluate", "--out", str(_empty(tmp_path / "empty"))]
    )
    assert precious.read_text() == "precious"


def _empty(path: Path) -> Path:
    path.mkdir()
    return path


def test_train_continues_evaluates_and_refuses_other_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    argv = ["train", "--out", str(out), "--meta-steps", "8", *TINY]
    monkeypatch.setattr(training_run, "make_meta_step", functools.cache(make_meta_step))
    append = training_run.MetricsLog.append

    def interrupting(log: training_run.MetricsLog, row: training_run.TrainingRow) -> None:
        append(log, row)
        if row.meta_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(training_run.MetricsLog, "append", interrupting)
        assert main(argv) == 143
    assert f"to go on: optdyn train --out {out}" in capsys.readouterr().err
    assert main(argv) == 0
    assert "going on from meta-step 5" in capsys.readouterr().out
    assert main(argv) == 0
    assert "finished" in capsys.readouterr().out

    assert "seed = 0, not 1" in complaint(capsys, [*argv, "--seed", "1"])
    last = analysis_checkpoints(out / "rosenbrock" / "checkpoints")[-1]
    wider = ["train", "--out", str(tmp_path / "b"), *TINY, "--units", "6", "--initial", str(last)]
    assert re.search(r"--initial: .* 4 units.* 6 units", complaint(capsys, wider))
    assert not (tmp_path / "b").exists()

    small = [*ON_TASK, "--problems", "2", "--unroll-length", "5", "--out", str(out)]
    assert main(["tune", *small, "--samples", "3", "--rescore-top", "3"]) == 0
    assert "best momentum" in capsys.readouterr().out
    assert main(["evaluate", *small]) == 0
    assert re.search(r"learned .*±.*\nmomentum .*±", capsys.readouterr().out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert main(["evaluate", *small]) == 0
    assert main(["tune", *small, "--samples", "3", "--rescore-top", "3"]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_out_of_memory_and_full_disks_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["report", "--out", str(tmp_path)]
    for error, expected in [
        (MemoryError(), "out of memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: 4 TB"), "out of memory"),
        (OSError(28, "No space left on device", "a.parquet"), "a.parquet: No space left"),
    ]:

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("optdyn.cli._report.parse_settings", fail)
        assert expected in complaint(capsys, argv)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_every_option_with_its_default(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    has_values = any(field.metadata["parse"] for field in dataclasses.fields(SETTINGS[command][0]))
    assert ("(default: " in text) == has_values
    assert main(["--help"]) == 0
    assert f"{command} " in capsys.readouterr().out


def test_defaults_are_the_papers() -> None:
    train = options.parse_settings(TrainSettings, "train", [])
    assert train.protocol(train.learning_rate) == MetaTraining()
    assert train.architecture() == Architecture()
    search = options.parse_settings(SearchSettings, "search-lr", [])
    assert search.search() == LearningRateSearch()
    tune = options.parse_settings(TuneSettings, "tune", [])
    assert (tune.samples, tune.unroll_length) == (2500, 200)
    reproduce = options.parse_settings(ReproduceSettings, "reproduce", ["--retrain"])
    assert (reproduce.scale, reproduce.retrain) == ("laptop", True)


def test_options_reach_the_settings() -> None:
    argv = ["--units", "8", "--cell", "lstm", "--encoding", "asinh", "--gain", "2", "--meta-steps"]
    argv += ["7", "--chunk", "4", "--task-option", "n=3", "--task-option", "low=-1.5"]
    train = options.parse_settings(TrainSettings, "train", argv)
    assert train.architecture().cell == "lstm"
    assert train.architecture().encoding.gain == 2.0
    assert train.protocol(0.1).num_meta_steps == 7
    assert train.protocol(0.1).chunk == 4
    assert train.make_task() == LinearRegression(n=3, low=-1.5)


def test_choices_come_from_the_registries(capsys: pytest.CaptureFixture[str]) -> None:
    for option, registry in [("--task", TASKS), ("--cell", CELLS), ("--encoding", ENCODINGS)]:
        line = complaint(capsys, ["train", option, "?"])
        assert line.endswith(f"(allowed: {', '.join(registry)})")
    line = complaint(capsys, ["tune", "--baseline", "?"])
    assert line.endswith(f"(allowed: {', '.join(BASELINES)})")


def test_help_needs_no_jax_and_no_time() -> None:
    code = "import sys, optdyn.cli.main as m; m.main(['--help']); assert 'jax' not in sys.modules"
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": SOURCE},
    )
    assert time.monotonic() - started < 1.0


def test_too_many_devices_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    count = LARGEST_DEVICES
    argv = ["train", "--devices", str(count), "--batch-size", str(count)]
    line = complaint(capsys, [*argv, "--out", str(tmp_path / "run")])
    assert line.startswith(f"--devices: {count} is not allowed (at most")


def test_examples_in_the_help_are_sound(capsys: pytest.CaptureFixture[str]) -> None:
    told = {text for lines in EXAMPLES.values() for text, _ in lines}
    for text in told:
        program, command, *rest = shlex.split(
            text.split(" > ")[0].removeprefix("source <(").rstrip(")")
        )
        assert program == "optdyn"
        rest, inner = (
            (rest[: rest.index("--")], rest[rest.index("--") + 1 :]) if "--" in rest else (rest, [])
        )
        if inner:
            options.parse_settings(SETTINGS[inner[0]][0], inner[0], inner[1:])
        target = rest.pop(0) if rest and not rest[0].startswith("-") else None
        form = SETTINGS[command][1 if command == "analyze" and target else 0]
        options.parse_settings(form, next(iter(EXAMPLES)), rest)
    for command in COMMANDS:
        words = [command, "bash"] if command == "completion" else [command]
        assert main([*words, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "examples:\n  " in shown
        assert all(text in told for text in re.findall(r"^  ((?:source|optdyn) .*)$", shown, re.M))
    assert main(["analyze", "rosenbrock", "--help"]) == 0
    assert "optdyn analyze linear_regression" in capsys.readouterr().out


def test_every_command_has_settings_examples_and_a_summary() -> None:
    assert SETTINGS.keys() == COMMANDS.keys()
    assert {name.split()[0] for name in EXAMPLES} == COMMANDS.keys()


def test_version_and_exit_codes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"optdyn {optdyn.__version__}\n"
    assert main([]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "0 done, 1 optdyn doctor found a fault, 2 bad input" in text
    assert "130 or 143 stopped by SIGINT (Ctrl-C) or SIGTERM" in text
