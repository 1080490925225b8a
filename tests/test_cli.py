"""The command line: one line and exit code 2 for anything wrong, and nothing touched."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import optdyn
from helpers import command_options
from optdyn.cli._commands import COMMANDS, EXAMPLES
from optdyn.cli._options import LARGEST_DEVICES
from optdyn.cli.main import main, parse
from optdyn.inner_loop import Objective
from optdyn.meta_training._trainer import MetaTraining, make_meta_step
from optdyn.optimizers._baselines import BASELINES
from optdyn.optimizers._cells import CELLS
from optdyn.optimizers._componentwise_rnn import Architecture
from optdyn.optimizers._encodings import ENCODINGS
from optdyn.runs import _training_run as training_run
from optdyn.runs._cards import Card
from optdyn.runs._checkpoints import analysis_checkpoints
from optdyn.runs._run_folder import open_run
from optdyn.search._learning_rate import LearningRateSearch
from optdyn.study._recipes import LAPTOP
from optdyn.tasks import TASKS, LinearRegression, make_task

ON_TASK = ["--task", "rosenbrock", "--devices", "1"]
TINY = [*ON_TASK, "--units", "4", "--unroll-length", "10", "--batch-size", "2"]
SOURCE = str(Path(__file__).parents[1] / "src")


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
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@hypothesis.given(bad=bad_options, joined=st.booleans())
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
        (["frobnicate"], "command: unknown value 'frobnicate' (see optdyn --help)"),
        (["train", "--task", "foo"], "--task: unknown value 'foo' (allowed: linear_regression,"),
        (["train", "--seed=--"], "--seed: '--' is not allowed (an integer from 0 to 4294967295)"),
        (["train", "--units", "-3"], "--units: -3 is not allowed (an integer >= 1)"),
        (["train", "--learning-rate", "nan"], "--learning-rate: nan is not allowed (a finite"),
        (["train", "--units"], "--units: expected one argument"),
        (["train", "--unit", "3"], "Unknown option: --unit. Did you mean --units? (see optdyn"),
        (["train", "stray"], "'stray': is not expected (see optdyn train --help)"),
        (["train", "--units", "32769"], "--units: '32769' is not allowed (an integer <= 32768)"),
        (["train", "--gain", "0"], "--gain: 0.0 is not allowed (a finite number > 0)"),
        (["train", "--encoding", "x"], "--encoding: unknown value 'x' (allowed: linear, log_sign"),
        (["train", "--normalization", "x"], "--normalization: unknown value 'x' (allowed: none,"),
        (["train", "--task-option", "n=1000001"], "--task-option: n: '1000001' is not allowed"),
        (["train", "--devices", "3"], "--devices: 3 is not allowed (a divisor of --batch-size 32)"),
        (["train", "--chunk", "5"], "--chunk: 5 is not allowed (a divisor of"),
        (["train", "--initial", "/absent"], "--initial: /absent: cannot read (No such file"),
        (["search-lr", "--lowest", "1", "--highest", "0.1"], "--lowest: 1.0 is not allowed"),
        (["search-lr", "--learning-rate", "1"], "--learning-rate: is what the search draws (give"),
        (["tune", "--baseline", "foo"], "--baseline: unknown value 'foo' (allowed: momentum,"),
        (["sweep", "--cells", "gru,"], "--cells: unknown value '' (allowed: gru,"),
        (["evaluate", "--out", "/absent"], "--out: /absent does not exist"),
        (["reproduce", "--scale", "huge"], "--scale: unknown value 'huge' (allowed: smoke, laptop"),
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

        monkeypatch.setattr("optdyn.cli._report.require_own", fail)
        assert expected in complaint(capsys, argv)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_option_and_ends_with_examples(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(option.name in shown for option in command_options(command))
    assert "\nExamples:\n  " in shown
    listed = re.findall(r"^  ((?:source|optdyn) .*)$", shown, re.M)
    assert listed == [text for text, _ in EXAMPLES[command]]
    assert not re.search(r"`|\[default: (None|False)?\]", shown)
    assert main(["--help"]) == 0
    assert f" {command} " in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_breaks_lines_only_where_the_terminal_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "2000")
    monkeypatch.setattr(importlib.import_module("optdyn.cli.main"), "HELP_WIDTH", 2000)
    assert main([command, "--help"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert rows
    assert all(re.match(r"│ (\*  )?(--|[A-Z]+ )", row) for row in rows)


def given(*argv: str) -> dict[str, Any]:
    """What a command line gives its command."""
    _, bound = parse(list(argv))
    bound.apply_defaults()
    return bound.arguments


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a task of the user's own, in the current folder, which holds no runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_task_of_mine.py").write_text(OWN_TASK, encoding="utf-8")
    importlib.invalidate_caches()
    yield "a_task_of_mine:Bowl"
    sys.modules.pop("a_task_of_mine", None)


OWN_TASK = """
import dataclasses, jax, jax.numpy as jnp, optdyn

@dataclasses.dataclass(frozen=True)
class Bowl:
    n: int = 2
    steep: float = 1.0

    def sample(self, key):
        return optdyn.Problem(
            params=jax.random.normal(key, (self.n,)),
            loss_fn=lambda x: 0.5 * self.steep * jnp.sum(x**2),
        )
"""


def test_defaults_of_a_task_of_ones_own_are_the_papers(own: str) -> None:
    train = given("train", "--task", own)
    assert train["protocol"] == MetaTraining()
    assert train["architecture"] == Architecture()
    assert given("search-lr", "--task", own)["search"] == LearningRateSearch()
    tune = given("tune", "--task", own)
    assert (tune["search"].num_samples, tune["objective"]) == (2500, Objective())
    assert given("train", "--task", own, "--task-option", "n=3")["task"].make().n == 3


@pytest.mark.parametrize("task", LAPTOP)
def test_defaults_of_a_built_in_task_are_its_recipes(own: str, task: str) -> None:
    recipe = LAPTOP[task]
    train = given("train", "--task", task)
    assert train["protocol"] == recipe.protocol
    assert train["architecture"] == recipe.architecture
    assert train["task"].make() == make_task(task, **recipe.task_options)
    tune = given("tune", "--task", task)
    assert tune["objective"] == recipe.protocol.objective
    assert tune["search"].num_problems == recipe.tuning.num_problems
    assert given("evaluate", "--task", task)["held_out"].num_problems == recipe.test_problems
    assert given("analyze", "--task", task)["held_out"].num_problems == recipe.analysis_problems


def test_options_reach_the_dataclasses(own: str) -> None:
    argv = ["--units", "8", "--cell", "lstm", "--encoding", "asinh", "--gain", "2", "--meta-steps"]
    argv += [
        "8",
        "--meta-steps",
        "7",
        "--chunk",
        "4",
        "--task-option",
        "n=3",
        "--task-option",
        "low=-1.5",
    ]
    train = given("train", *argv, "--max-cotangent-norm", "none")
    assert train["architecture"].cell == "lstm"
    assert train["architecture"].encoding.gain == 2.0
    assert (train["protocol"].num_meta_steps, train["protocol"].chunk) == (7, 4)
    assert train["protocol"].max_cotangent_norm is None
    assert train["task"].make() == LinearRegression(n=3, low=-1.5)
    sweep = given("sweep", "--cells", "gru,lstm", "--learning-rates", "0.1,1e-3")["trainings"]
    assert (sweep.cells, sweep.learning_rates) == (("gru", "lstm"), (0.1, 1e-3))


def test_a_command_goes_by_the_run_folder(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    protocol = MetaTraining(num_meta_steps=9, unroll_length=50, normalization="first", clip=2.0)
    card = Card(own, {"n": 3, "steep": 2.5}, Architecture(units=5), protocol, seed=4)
    with open_run(Path(out)) as run:
        run.settle(f"train/{own}", card.settings())
    for command in ("tune", "evaluate", "analyze"):
        found = given(command, "--out", out)
        judged = found["objective"] if command == "tune" else found["held_out"].objective
        assert judged == Objective(50, "first")
        assert found["task"].make() == type(found["task"].make())(n=3, steep=2.5)
    again = given("train", "--out", out, "--meta-steps", "20")
    assert again["protocol"] == dataclasses.replace(protocol, num_meta_steps=20)
    assert (again["architecture"], again["run"].seed) == (Architecture(units=5), 4)
    assert capsys.readouterr().err == ""
    assert given("tune", "--out", out, "--unroll-length", "60")["objective"].num_steps == 60
    note = f"optdyn: note: --unroll-length 60, but this run's train/{own} has 50\n"
    assert capsys.readouterr().err == note
    given("tune", "--out", out, "--unroll-length", "60", "--quiet")
    assert capsys.readouterr().err == ""
    with open_run(Path(out)) as run:
        run.settle("train/rosenbrock", {"protocol": {}})
    assert "--task: the run folder holds several" in complaint(capsys, ["tune", "--out", out])


def test_choices_come_from_the_registries(capsys: pytest.CaptureFixture[str]) -> None:
    for option, registry in [("--task", TASKS), ("--cell", CELLS), ("--encoding", ENCODINGS)]:
        line = complaint(capsys, ["train", option, "?"])
        assert f"(allowed: {', '.join(registry)}" in line
    line = complaint(capsys, ["tune", "--baseline", "?"])
    assert line.endswith(f"(allowed: {', '.join(BASELINES)})")


def test_help_needs_no_jax() -> None:
    code = "import sys, optdyn.cli.main as m; m.main(['--help']); assert 'jax' not in sys.modules"
    environment = os.environ | {"PYTHONPATH": SOURCE}
    command = [sys.executable, "-c", code]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def test_too_many_devices_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    count = LARGEST_DEVICES
    argv = ["train", "--devices", str(count), "--batch-size", str(count)]
    line = complaint(capsys, [*argv, "--out", str(tmp_path / "run")])
    assert line.startswith(f"--devices: {count} is not allowed (at most")


def test_examples_in_the_help_are_sound(own: str) -> None:
    (Path() / "mymodule.py").write_text(OWN_TASK.replace("Bowl", "MyTask"), encoding="utf-8")
    for text in (text for lines in EXAMPLES.values() for text, _ in lines):
        words = shlex.split(text.split(" > ")[0].removeprefix("source <(").rstrip(")"))
        assert words[0] == "optdyn"
        parse(words[1:])
    assert EXAMPLES.keys() == COMMANDS.keys()


def test_version_and_exit_codes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"optdyn {optdyn.__version__}\n"
    assert main([]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "0 done, 1 optdyn doctor found a fault, 2 bad input" in text
    assert "130 or 143 stopped by SIGINT (Ctrl-C) or SIGTERM" in text
