"""Whatever is wrong on a command line: exit code 2, one line, and nothing made."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path
from typing import get_args, get_origin

import pytest
from cyclopts import Argument
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import command_options
from optdyn.cli._commands import COMMANDS
from optdyn.cli.main import main
from optdyn.runs._store import TEMPORARY, write_json
from tiny_runs import TASK

FULL, SMALL = 1200, 30
IN_FOLDERS = sorted(set(COMMANDS) - {"doctor", "completion", "launch"})
"""The commands that work in a folder."""
BAD_INTEGERS = [
    "0.5", "-1", "1e3", "nan", "inf", "x", "", " ", "9" * 30, "9" * 5000, "0x10", "1,000", "1_0",
    "\u0663", " 3", "3 ", "3.",
]  # fmt: skip
BAD_NUMBERS = [
    "nan", "-nan", "inf", "-inf", "-1", "1e31", "1e400", "x", "", "1/2", "0,5", "1_0.0",
    "\u0663.5", " 0.5", "0x1p-1",
]  # fmt: skip
BAD_PAIRS = [
    "n", "=3", "n=0", "n=1.5", "n=x", "other=1", "low=nan", "self=1", "a b=1", "n=9999999",
    "n=1_0", "n=\u0663", "n=[", "n=true", "",
]  # fmt: skip
BAD_ADDRESSES = ["host", "host:x", ":1", "host:0", "host:65536", ""]
BAD_LISTS = ["0.5", "1,,2", "1,x", ",", "", "1;2", "-1"]
BAD_NAMES = ["no such name", "", "*", "../..", "\udcff", "a\nb"]
SOUND = {int: "3", float: "0.5"}
done = {"count": 0}


def bad_values(option: Argument) -> list[str]:
    """Texts that are no value of an option."""
    kinds = get_args(option.hint) or (option.hint,)
    if option.name == "--task-option":
        return BAD_PAIRS
    if option.name in ("--coordinator", "--address"):
        return BAD_ADDRESSES
    if get_origin(option.hint) is tuple:
        return ["gru,", *BAD_NAMES, ","] if str in kinds else BAD_LISTS
    if Path in kinds:
        return ["", "a\0b"]
    return BAD_INTEGERS if int in kinds else BAD_NUMBERS if float in kinds else BAD_NAMES


@st.composite
def bad_command_lines(draw: st.DrawFn) -> tuple[list[str], str]:
    """A command line with one fault, and the words its complaint must hold."""
    command = draw(st.sampled_from(IN_FOLDERS))
    # A TARGET makes other options of analyze be allowed; switches take no value.
    known = [
        option
        for option in command_options(command)
        if option.hint is not bool and option.name.startswith("--")
        and "With TARGET" not in [group.name for group in option.parameter.group]
    ]  # fmt: skip
    words = [command]
    # What search-lr draws, and the lower end of its range, are not free.
    unsound = {"--devices"} | ({"--learning-rate", "--lowest"} if command == "search-lr" else set())
    sound = [o for o in known if o.hint in SOUND and o.name not in unsound]
    for option in draw(st.lists(st.sampled_from(sound), max_size=2)) if sound else []:
        words += [option.name, SOUND[option.hint]]
    fault = draw(st.sampled_from(["value", "value", "value", "text", "option", "stray", "missing"]))
    option = draw(st.sampled_from(known))
    flag = option.name
    if fault == "value":
        value = draw(st.sampled_from(bad_values(option)))
        joined = draw(st.booleans())
        return [*words, *([f"{flag}={value}"] if joined else [flag, value])], flag
    if fault == "text" and bad_values(option) != ["", "a\0b"]:
        value = draw(st.text(min_size=1, max_size=20).map(lambda text: f"?{text}"))
        return [*words, f"{flag}={value}"], flag
    if fault == "missing":
        return [*words, flag], flag
    if fault == "stray":
        # After TARGET's place: analyze takes one word, and then no options of runs.
        return [words[0], "x", draw(st.text("abcxyz./", min_size=1, max_size=8))], "is not expected"
    return [*words, f"--{draw(st.text('abcxyz', min_size=3, max_size=8))}-x=1"], "Unknown option"


def complaint(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    assert main(argv) == 2, argv
    captured = capsys.readouterr()
    assert captured.out == "", argv
    assert re.fullmatch(r"optdyn: error: [^\n\r]+\n", captured.err), (argv, captured.err)
    done["count"] += 1
    return captured.err


def test_bad_command_lines_are_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], full: bool, figures: dict[str, object]
) -> None:
    @settings(
        max_examples=FULL if full else SMALL,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(bad=bad_command_lines())
    def check(bad: tuple[list[str], str]) -> None:
        argv, expected = bad
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            command, *rest = argv
            assert expected in complaint(capsys, [command, "--out", str(out), *rest])
            assert not out.exists()

    check()
    figures["bad command lines"] = f"{done['count']}, each exit code 2 and one line"


LARGEST = 2**31 - 1


@pytest.mark.parametrize(
    "words",
    [
        f"train --devices {LARGEST} --batch-size {LARGEST}",
        "train --devices 100000 --batch-size 100000",
        f"train --components {LARGEST}",
        f"train --batch-size {LARGEST}",
        f"train --meta-steps {LARGEST}",
        f"tune --devices {LARGEST}",
        f"tune --problems {LARGEST}",
        f"evaluate --devices {LARGEST}",
        f"sweep --problems {LARGEST}",
        "train --task-option n=3 --task-option n=4",
        "train --task no.such.module:Task",
        "train --task json:dumps",
        "launch",
        "launch --processes 0 -- train",
        "launch -- train --units x",
        "launch -- train --out /dev/null/run",
        "launch -- train --initial absent",
        "launch --processes 33 -- train --batch-size 32",
        "launch -- train --task-option n=0",
        "doctor --units 3",
        "completion --shell bash",
    ],
)
def test_sizes_and_processes_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    command, *rest = words.split()
    out = [] if {"--out", "launch", "doctor", "completion"} & {command, *rest} else ["--out", "run"]
    with contextlib.chdir(tmp_path):
        complaint(capsys, [command, *rest, *out])
    assert list(tmp_path.iterdir()) == []


def _no_files(folder: Path) -> list[str]:
    """Paths that lead to no file, each in another way."""
    os.mkfifo(folder / "pipe")  # whoever opens it waits for a writer
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "empty.safetensors").touch()
    (folder / "header.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    names = ["pipe", "pipe.safetensors", "loop", "dangling", "empty.safetensors", "."]
    return [
        *(str(folder / name) for name in (*names, "header.safetensors")),
        "/dev/zero",
        "x" * 300,
    ]


def test_checkpoints_that_are_no_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    for path in _no_files(tmp_path):
        complaint(capsys, ["train", "--out", str(out), "--initial", path])
        complaint(capsys, ["evaluate", "--out", str(out), "--checkpoint", path])
        complaint(capsys, ["analyze", path])
        assert not out.exists()


@pytest.mark.parametrize("command", IN_FOLDERS)
@pytest.mark.parametrize("name", ["config.json", ".lock", f".config.json{TEMPORARY}"])
def test_a_run_folder_with_something_else_in_the_place_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, name: str
) -> None:
    config = {"format": "optdyn run", "format_version": 2, "versions": {}, "settings": {}}
    write_json(tmp_path / "config.json", config)
    (tmp_path / name).unlink(missing_ok=True)
    if name == "config.json":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).mkdir()
    complaint(capsys, [command, "--out", str(tmp_path)])


FOLDERS = {
    "config.json": "not JSON",
    "thesis.tex": "precious",
}


@pytest.mark.parametrize("command", IN_FOLDERS)
@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_foreign_folders_are_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, name: str
) -> None:
    (tmp_path / name).write_text(FOLDERS[name])
    complaint(capsys, [command, "--out", str(tmp_path)])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, FOLDERS[name])]


@pytest.mark.parametrize("command", ["evaluate", "analyze", "export"])
def test_empty_runs_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    config = {"format": "optdyn run", "format_version": 2, "versions": {}, "settings": {}}
    write_json(tmp_path / "config.json", config)
    complaint(capsys, [command, "--out", str(tmp_path), "--task", TASK])
