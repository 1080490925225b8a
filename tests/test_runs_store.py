"""Files are whole or absent, whatever the disk does; every fault is one line."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optdyn.errors import UserError
from optdyn.runs import _plain as plain
from optdyn.runs import _store as files


def test_write_replaces_the_whole_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.bin"
    files.write_bytes(path, b"long old content")
    files.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_refused_write_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, call, refuse)
        with pytest.raises(UserError, match=os.strerror(code)) as caught:
            files.write_json(path, {"new": 2})
    assert "\n" not in str(caught.value)
    assert files.read_json(path, dict) == {"old": 1}


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write
    monkeypatch.setattr(files.os, "write", lambda fd, data: real_write(fd, data[:7]))
    content = bytes(range(100))
    files.write_bytes(tmp_path / "a", content)
    assert (tmp_path / "a").read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b'{"a": NaN}',
        b'{"a": 1e400}',
        b'{"a": -1e999}',
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_bad_json_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json: "):
        files.read_json(path, dict)


def test_only_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for a writer
    for name in ("pipe", ".", "/dev/zero", "a\0b"):
        with pytest.raises(UserError, match="cannot read") as caught:
            files.read_bytes(tmp_path / name)
        assert "\0" not in str(caught.value)


def test_an_error_is_one_line_whatever_a_name_holds() -> None:
    told = str(UserError("a\nb\r\x1b[31m\udcff β: cannot read"))
    assert told == "a\\nb\\r\\x1b[31m\\udcff β: cannot read"


def test_too_large_and_absent_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"a": 1}')
    with pytest.raises(UserError, match="at most 4 bytes"):
        files.read_bytes(tmp_path / "a.json", limit=4)
    with pytest.raises(UserError, match="No such file"):
        files.read_json(tmp_path / "b.json", dict)


def test_plain_values_survive_json() -> None:
    value = {"a": (1, 2.5), "p": Path("x"), "n": np.float32(0.5), "v": np.arange(2), "i": math.inf}
    expected = {"a": [1, 2.5], "p": "x", "n": 0.5, "v": [0, 1], "i": None}
    assert json.loads(json.dumps(plain.to_plain(value))) == expected


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/a", "../a", "a\0", ".hidden", "a b", "é"])
def test_unsafe_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="name"):
        files.safe_name(name)


@given(st.text())
def test_a_safe_name_stays_in_its_folder(name: str) -> None:
    try:
        safe = files.safe_name(name)
    except UserError:
        return
    assert (Path("/folder") / safe).parent == Path("/folder")
    assert os.path.normpath(f"/folder/{safe}") == f"/folder/{safe}"


def contents() -> dict[str, bytes]:
    """A sealed file of each kind."""
    table = pyarrow.table({"a": [1, 2], "b": ["x", "y"]})
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    return {
        "a.json": files.result_bytes({"rows": [1, 2.5, None], "name": "x"}),
        "a.safetensors": files.arrays_bytes(arrays, {"name": "x"}),
        "a.parquet": files.table_bytes(table, {"name": "x"}),
    }


def test_every_bit_of_every_kind_of_file_is_guarded(tmp_path: Path) -> None:
    for name, content in contents().items():
        assert files.is_sealed(content)
        for bit in range(0, 8 * len(content), 3):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            assert not files.is_sealed(bytes(flipped))
        for length in range(0, len(content), 7):
            assert not files.is_sealed(content[:length])
        (tmp_path / name).write_bytes(content[:-1])
        with pytest.raises(UserError, match=rf"{name}: damaged"):
            files.read_sealed(tmp_path / name)


def test_each_kind_of_file_gives_back_what_was_written(tmp_path: Path) -> None:
    for name, content in contents().items():
        files.write_bytes(tmp_path / name, content)
    assert files.read_result(tmp_path / "a.json", dict)["rows"] == [1, 2.5, None]
    arrays, beside = files.read_arrays(tmp_path / "a.safetensors", dict)
    assert beside["name"] == "x"
    np.testing.assert_array_equal(arrays["w"], np.arange(6).reshape(2, 3))
    table, beside = files.read_table(tmp_path / "a.parquet", dict)
    assert beside["name"] == "x"
    assert table.to_pydict() == {"a": [1, 2], "b": ["x", "y"]}


def test_sealed_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(contents()["a.json"])
    with pytest.raises(UserError, match="not an optdyn checkpoint"):
        files.read_arrays(tmp_path / "a", dict)
    with pytest.raises(UserError, match="not an optdyn table"):
        files.read_table(tmp_path / "a", dict)


def test_a_result_that_is_there_already_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_result(path, {"a": 1})
    before = path.stat().st_mtime_ns, path.stat().st_ino
    files.write_result(path, {"a": 1})
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    files.write_result(path, {"a": 2})
    assert files.read_result(path, dict)["a"] == 2
