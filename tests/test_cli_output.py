"""What the command line prints: one JSON object for scripts, an honest doctor, completions."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import TINY_RECIPES, command_options, small_part
from optdyn.cli import _devices as devices
from optdyn.cli import _doctor as doctor
from optdyn.cli._commands import COMMANDS
from optdyn.cli._distill import distilled
from optdyn.cli._export import train_command
from optdyn.cli._options import OutputOptions
from optdyn.cli._output import Result, present
from optdyn.cli._reproduce import reproduced
from optdyn.cli.main import main
from optdyn.runs._checkpoints import analysis_checkpoints, load_optimizer
from optdyn.runs._run_folder import open_run
from optdyn.study import Recipe, Study
from optdyn.study import _self_test as self_test
from optdyn.tasks import TASKS

TASK = "rosenbrock"
JUDGED = ["--unroll-length", "8", "--normalization", "first"]
TUNED = ["--samples", "40", "--problems", "2", "--rescore-top", "3", "--rescore-problems", "2"]
FINISHED = {
    "tune": ["--task", TASK, *JUDGED, *TUNED],
    "evaluate": ["--task", TASK, *JUDGED, "--problems", "4"],
    "analyze": ["--task", TASK, *JUDGED, "--problems", "2"],
    "report": [],
    "export": ["--task", TASK],
}
"""Command lines on which nothing is left to do in the tiny study."""
KEYS = {
    "train": {"task", "meta_steps", "meta_objective", "checkpoint"},
    "search-lr": {"task", "trainings"},
    "tune": {"task", "baseline", "hyperparameters", "meta_objective", "edges", "table"},
    "evaluate": {"task", "optimizers", "learned_minus"},
    "analyze": {"task", "tuned", "checkpoints", "momentum_stage"},
    "reproduce": {"report", "claims"},
    "distill": {"task", "baseline", "chosen", "sizes", "without"},
    "report": {"report"},
    "export": {"task", "folder", "bytes"},
    "doctor": {"ok", "versions", "devices", "cache", "checks"},
}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests leave the user's cache alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def printed(
    capsys: pytest.CaptureFixture[str], argv: list[str], code: int = 0
) -> tuple[dict[str, Any], str]:
    """The object on standard output, which holds nothing else, and the text on standard error."""
    assert main(argv) == code
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


@pytest.mark.parametrize("command", ["train", *FINISHED])
def test_json_is_all_that_standard_output_holds(
    tiny_study: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    run = Path(shutil.copytree(tiny_study, tmp_path / "run"))
    if command == "train":
        last = analysis_checkpoints(run / TASK / "checkpoints")[-1]
        options = shlex.split(train_command(load_optimizer(last)[1]))[2:]
        options += ["--devices", "1"]
    else:
        options = list(FINISHED[command])
    if command == "export":
        options += ["--to", str(tmp_path / "to")]
    argv = [command, *options, "--out", str(run), "--json"]
    values, told = printed(capsys, argv)
    assert values.keys() >= KEYS[command]
    assert command != "train" or "meta-training is finished" in told
    assert printed(capsys, [*argv, "--quiet"]) == (values, "")
    assert main([*argv[:-1], "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert not lines[0].startswith("{")


@pytest.mark.parametrize(
    ("command", "work", "recipes"),
    [("reproduce", reproduced, TINY_RECIPES), ("distill", distilled, TINY_RECIPES[1:2])],
)
def test_studies_print_json_alone_too(
    tiny_study: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    work: Callable[..., Result],
    recipes: tuple[Recipe, ...],
) -> None:
    run = Path(shutil.copytree(tiny_study, tmp_path / "run"))
    study = Study(recipes, "smoke", shipping=tmp_path / "nothing ships")
    present(OutputOptions(json=True), lambda: work(run, study))
    captured = capsys.readouterr()
    assert json.loads(captured.out).keys() >= KEYS[command]
    assert command != "reproduce" or "two_moons: left out" in captured.err
    present(OutputOptions(quiet=True), lambda: work(run, study))
    captured = capsys.readouterr()
    assert captured.out.splitlines()
    assert not captured.out.startswith("{")
    assert captured.err == ""


def test_progress_goes_aside_for_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--units", "2", "--unroll-length", "3", "--batch-size", "2", "--problems", "2"]
    short = ["--draws", "2", "--horizon", "1", "--finalists", "1", "--meta-steps", "2"]
    argv = ["search-lr", "--task", TASK, "--devices", "1", *tiny, *short, "--out", str(tmp_path)]
    values, told = printed(capsys, [*argv, "--json"])
    assert values.keys() == KEYS["search-lr"]
    assert [row["num_meta_steps"] for row in values["trainings"]] == [2, 1, 1]
    assert re.match(rf"learning rates for {TASK}: 1/4  0 of 3 trained, learning rate .*\n", told)
    assert re.search(rf"\nlearning rates for {TASK}: 4/4  3 of 3 trained", told)


def test_the_doctor_finds_this_installation_well(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    values, told = printed(capsys, ["doctor", "--json"])
    assert values.keys() >= KEYS["doctor"]
    assert values["ok"] is True
    assert all(check["ok"] for check in values["checks"])
    assert len(values["checks"]) == 1 + len(self_test.CHECKS)
    assert told.count("checking: ") == len(values["checks"])


def test_the_doctor_tells_a_fault(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def breaks() -> tuple[bool, str]:
        raise ImportError("no such\nlibrary")

    checks = {"fine": lambda: (True, "all"), "broken": breaks, "off": lambda: (False, "by 2")}
    monkeypatch.setattr(self_test, "CHECKS", checks)
    monkeypatch.setattr(doctor, "cache_is_writable", lambda: (True, "empty"))
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "ok    fine: all (" in shown
    assert "FAULT broken: ImportError: no such library (" in shown
    assert shown.endswith("not well: broken, off\n")
    values, _ = printed(capsys, ["doctor", "--json"], code=1)
    assert values["ok"] is False


def test_self_tests_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "PRETRAINED", {})
    assert self_test.shipped_weights_are_intact()[0] is False
    monkeypatch.setattr(self_test, "LARGEST_ERROR", -1.0)
    assert self_test.momentum_is_recovered()[0] is False


def test_large_pages_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setting = tmp_path / "enabled"
    monkeypatch.setattr(doctor, "HUGE_PAGES", setting)
    assert doctor.large_pages() == "none on this system"
    setting.write_text("always madvise [never]\n")
    assert doctor.large_pages() == "switched off by the system"
    setting.write_text("always [madvise] never\n")
    monkeypatch.setenv(devices.TUNABLES, "glibc.malloc.hugetlb=1")
    assert doctor.large_pages() == "asked for"


def script(capsys: pytest.CaptureFixture[str], shell: str) -> str:
    assert main(["completion", shell]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_bash_completes_commands_options_and_values(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = {
        ("tr",): {"train"},
        ("",): {*COMMANDS},
        ("train", "--task", "r"): {"rosenbrock"},
        ("train", "--task", ""): {*TASKS},
        ("tune", "--baseline", "ad"): {"adam"},
        ("train", "--out", "ru"): {"runs"},
        ("completion", "z"): {"zsh"},
        ("reproduce", "--retrain", "--sc"): {"--scale"},
        ("tune", "--"): {option.name for option in command_options("tune")},
    }
    commands = [script(capsys, "bash"), "compopt() { :; }"]
    for words in lines:
        commands.append(f"COMP_WORDS=(optdyn {shlex.join(words)}); COMP_CWORD={len(words)}")
        commands.append('COMPREPLY=(); _optdyn; echo "${COMPREPLY[*]}"')
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    done = subprocess.run(
        ["bash", "--norc"], input="\n".join(commands), capture_output=True, text=True, check=True
    )
    offered = [{*line.split()} for line in done.stdout.split("\n")[:-1]]
    for found, (words, expected) in zip(offered, lines.items(), strict=True):
        assert expected <= found, words
        assert all(word.startswith(words[-1]) for word in found), words


def test_zsh_and_fish_know_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    zsh, fish = script(capsys, "zsh"), script(capsys, "fish")
    for name in COMMANDS:
        for option in command_options(name):
            if option.name.startswith("--"):
                assert option.name in zsh
                assert f"-l {option.name[2:]}" in fish


def test_completion_needs_a_known_shell(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["completion"], ["completion", "tcsh"], ["completion", "bash", "--fast"]):
        assert main(argv) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "optdyn: error: SHELL: expected one argument"
    assert told[1] == "optdyn: error: SHELL: unknown value 'tcsh' (allowed: bash, zsh, fish)"
    assert told[2] == "optdyn: error: Unknown option: --fast. (see optdyn completion --help)"


PYTHON = f"{shlex.quote(sys.executable)} -m optdyn"
NO_SPACE = "optdyn: error: system: No space left on device\n"
QUICK = [("--version >&-", 0, ""), ("--version >/dev/full", 2, NO_SPACE)]
STREAMS = [
    *QUICK,
    ("train --help >&- <&-", 0, ""),
    ("train --units x >&- 2>&-", 2, ""),
    ("train --units x 2>/dev/full", 2, ""),
    ("train --help >/dev/full", 2, NO_SPACE),
    ("--version >/dev/full 2>/dev/full", 2, ""),
]


@pytest.mark.parametrize(
    ("words", "code", "told"), small_part([*QUICK, ("train --units x >&- 2>&-", 2, "")], STREAMS)
)
def test_streams_that_are_closed_or_full(words: str, code: int, told: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{PYTHON} {words}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", told)


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", b"\\xb1 \\udcff\n"), ("utf-8", b"\xc2\xb1 \xff\n")]
)
def test_text_that_the_encoding_lacks_is_printed(encoding: str, shown: bytes) -> None:
    code = (
        r"from optdyn.cli import _streams as streams; streams.open_closed(); print('\xb1 \udcff')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (shown, b"")


def test_a_report_is_not_written_beside_another_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with open_run(out):
        assert main(["report", "--out", str(out)]) == 2
    assert "is in use by another process" in capsys.readouterr().err
    assert not (out / "report.html").exists()


def test_a_reader_that_leaves_is_no_bad_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("optdyn.cli._report.require_own", fail)
    assert main(["report"]) == 141
    assert capsys.readouterr().err == ""


def test_the_way_to_go_on_is_by_the_path_that_was_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = importlib.import_module("optdyn.cli.main")
    called = tmp_path / "optdyn"
    called.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(called)])
    monkeypatch.setenv("PATH", "/nowhere")
    assert module._program() == str(called)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module._program() == "optdyn"
