"""A run folder is ours, holds one set of settings, and has one writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from optdyn.errors import UserError
from optdyn.runs._run_folder import first_difference, open_run

HOLD = """
import sys, time
from pathlib import Path
from optdyn.runs._run_folder import open_run
with open_run(Path(sys.argv[1])) as run:
    run.settle("part", {"a": 1})
    print("held", flush=True)
    time.sleep(60)
"""


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below ``folder``: its time of change and content."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_settings_are_recorded_once_and_must_be_repeated(tmp_path: Path) -> None:
    settings = {"task": "t", "protocol": {"learning_rate": 0.1, "sizes": (1, 2)}}
    with open_run(tmp_path / "run") as run:
        run.settle("train", settings)
        run.settle("tune", {"samples": 3})
    before = snapshot(tmp_path)
    with open_run(tmp_path / "run") as run:
        run.settle("train", settings)
        changed = {"task": "t", "protocol": {"learning_rate": 0.2, "sizes": (1, 2)}}
        with pytest.raises(UserError, match=r"protocol\.learning_rate = 0\.1, not 0\.2"):
            run.settle("train", changed)
        assert run.settings()["tune"] == {"samples": 3}
    assert snapshot(tmp_path) == before


def test_foreign_things_are_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    (tmp_path / "file").write_text("precious")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"format": "another program"}')
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    before = snapshot(tmp_path)
    for path in (tmp_path, tmp_path / "file", tmp_path / "file" / "below", other, broken):
        with pytest.raises(UserError) as caught, open_run(path):
            pass
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before


def test_an_absent_folder_is_made_only_on_request(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"), open_run(tmp_path / "a", create=False):
        pass
    assert not (tmp_path / "a").exists()


def test_a_folder_left_with_its_lock_alone_is_ours(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.json.tmp").write_text("torn")
    with open_run(tmp_path) as run:
        run.settle("part", {})
    assert (tmp_path / "config.json").exists()


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.settle("part", {})
    deep = tmp_path / "task" / "checkpoints"
    deep.mkdir(parents=True)
    (deep / ".resume-000007.safetensors.tmp").write_text("torn")
    (deep / "resume-000006.safetensors").write_text("whole")
    with open_run(tmp_path):
        pass
    assert [path.name for path in deep.iterdir()] == ["resume-000006.safetensors"]


def test_the_lock_keeps_a_second_process_out_and_dies_with_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | _path()) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        before = snapshot(path)
        with pytest.raises(UserError, match="in use by another process"), open_run(path):
            pass
        assert snapshot(path) == before
        holder.send_signal(signal.SIGKILL)
    with open_run(path) as run:
        assert run.check("part", {"a": 1})


def _path() -> dict[str, str]:
    return {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}


def test_first_difference_names_nested_settings() -> None:
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 2}}) == ("a.b", 1, 2)
    assert first_difference({"a": 1}, {"a": 1, "b": 2}) == ("b", None, 2)
    assert first_difference({"a": {"n": 5}}, {"a": {}}) == ("a.n", 5, None)
