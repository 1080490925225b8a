"""The one module that writes and reads files: atomic, sealed with a checksum, locked.

A file is written beside its final name, flushed to the disk, then renamed. A reader, or a
run after a kill, finds the old content or the new, never a part of either.

Every result carries a seal: the words ``sha256:`` and the SHA-256 of the file's bytes, in
which the digits of the seal itself are zeros. One rule serves JSON, safetensors and Parquet,
and a file that lost or changed a single bit is refused before it is parsed. A seal guards
against accidents (kills, full disks, bad disks), not against forgers. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from optdyn.errors import UserError, first_line
from optdyn.runs._plain import parse, result_plain, to_plain

if TYPE_CHECKING:
    import pyarrow

T = TypeVar("T")

SEAL_FIELD = "seal"
SEAL = re.compile(rb"sha256:([0-9a-f]{8,64})")
DIGITS, FEW_DIGITS = 64, 8
"""Hexadecimal digits of a file's seal, and of the seal of one line of a log."""
CONTENT_KEY = "content"
"""Of a safetensors or Parquet file's metadata: what else belongs to the arrays, as JSON with
the seal."""
LARGEST = 2**31
"""Bytes."""
TEMPORARY = ".tmp"
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def safe_name(name: str) -> str:
    """``name``, if joined to a folder it can only name something inside.

    Raises `UserError` for separators, leading dots, and anything else unusual.
    """
    if not isinstance(name, str) or not SAFE_NAME.fullmatch(name):
        raise UserError(f"name: {name!r} is not allowed (letters, digits, '.', '_', '-')")
    return name


# Bytes.


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, atomically and durably; parents are made.

    Raises `UserError` when the disk refuses (full, read-only, …). ``path`` is whole all the
    same, and as it was unless only the last flush failed.
    """
    make_folder(path.parent)
    temporary = temporary_beside(path)
    with refusals(path, "write"):
        try:
            _write_flushed(temporary, content)
            os.replace(temporary, path)
            flush_folder(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def require_file(path: Path) -> int:
    """The size in bytes of the file at ``path``.

    Raises `UserError` if there is none, or something else, such as a pipe, for which a
    reader would wait.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # a name can hold what no file's may
        raise UserError(
            f"{path}: cannot read ({getattr(error, 'strerror', '') or error})"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: cannot read (not a file)")
    return status.st_size


def read_bytes(path: Path, limit: int = LARGEST) -> bytes:
    """The content of ``path``; raises `UserError` if absent, unreadable or over ``limit`` bytes."""
    if require_file(path) > limit:
        raise UserError(f"{path}: too large (at most {limit} bytes)")
    with refusals(path, "read"):
        return path.read_bytes()


def temporary_beside(path: Path) -> Path:
    """Where the content of ``path`` lies while it is being written.

    The name is fixed: the next attempt overwrites what a killed process left behind. The
    run folder's lock keeps two writers apart.
    """
    return path.with_name(f".{path.name}{TEMPORARY}")


def make_folder(path: Path) -> None:
    """Make ``path`` and its parents, durably; raises `UserError` where that is impossible."""
    with refusals(path, "make the folder"):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            flush_folder(folder.parent)


def remove(path: Path) -> None:
    """Remove a file if it is there. Raises `UserError` where the disk refuses."""
    with refusals(path, "remove"):
        path.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left anywhere below ``folder``, which no one else may write to.

    Raises `UserError` where the disk refuses.
    """
    for path in folder.rglob(f".*{TEMPORARY}"):
        remove(path)


def flush_folder(folder: Path) -> None:
    """Make names in ``folder`` durable: new and renamed ones live in its own data."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def refusals(path: Path, act: str) -> Iterator[None]:
    """An operating system that refuses, in the block, to ``act`` on ``path``: one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot {act} ({error.strerror or error})") from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` for the length of the block.

    The lock is the kernel's: it goes when its process does, however that ends. Raises
    `UserError` if another process holds it, or the disk refuses.
    """
    with refusals(path.parent, "write"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with refusals(path.parent, "lock"):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{path.parent} is in use by another process (wait for it, or choose another "
                    "folder)"
                ) from None
        yield
    finally:
        os.close(descriptor)


# Seals.


def sealed(content: bytes) -> bytes:
    """``content``, which holds a seal of zeros, with its own in place of that."""
    found = SEAL.search(content)
    assert found is not None  # the writer put it there
    return content[: found.start(1)] + _digest(content, found) + content[found.end(1) :]


def is_sealed(content: bytes) -> bool:
    """Whether ``content`` is, to the bit, what `sealed` made."""
    found = SEAL.search(content)
    return found is not None and found[1] == _digest(content, found)


def read_sealed(path: Path) -> bytes:
    """The content of a sealed file. Raises `UserError` if it is missing or damaged."""
    content = read_bytes(path)
    if not SEAL.search(content):
        raise UserError(f"{path}: damaged, or not written by optdyn (it carries no SHA-256)")
    if not is_sealed(content):
        raise UserError(f"{path}: damaged (its content does not match its SHA-256)")
    return content


def _digest(content: bytes, found: re.Match[bytes]) -> bytes:
    digest = hashlib.sha256(content[: found.start(1)])
    digest.update(b"0" * len(found[1]))
    digest.update(content[found.end(1) :])
    return digest.hexdigest()[: len(found[1])].encode()


# JSON.


def write_json(path: Path, value: Any) -> None:
    """Write `to_plain` of ``value`` as indented JSON without a seal, atomically."""
    text = json.dumps(to_plain(value), indent=2, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: Path, kind: type[T]) -> T:
    """The JSON in ``path`` as a ``kind`` (a frozen dataclass or what such a field can be).

    Raises `UserError`, naming the file, the field, and what is allowed there.
    """
    return parse(read_bytes(path), kind, str(path))


def write_result(path: Path, value: Any) -> None:
    """Write a result, a frozen dataclass, as one line of sealed JSON, atomically.

    A file that holds the same already stays as it is.
    """
    content = result_bytes(value)
    if path.exists():
        with contextlib.suppress(UserError):
            if read_bytes(path) == content:
                return
    write_bytes(path, content)


def read_result(path: Path, kind: type[T]) -> T:
    """The ``kind`` that `write_result` wrote. Raises `UserError` as `read_json` does."""
    return parse(read_sealed(path), kind, str(path))


def read_if_sound(
    path: Path, kind: type[T], otherwise: str, read: Callable[[Path, type[T]], T] = read_result
) -> T | None:
    """What ``read`` makes of the file at ``path``, a ``kind``; None where there is no sound one.

    For a damaged file a line is printed that says what is done ``otherwise``.
    """
    if not path.exists():
        return None
    try:
        return read(path, kind)
    except UserError as error:
        print(f"{otherwise}: {error}", flush=True)
        return None


def stored_result(path: Path, kind: type[T], inputs: Any) -> T | None:
    """The result in ``path`` if it is there, intact, and made from these ``inputs``."""
    if path.exists():
        with contextlib.suppress(UserError):
            found: Any = read_result(path, kind)
            if found.inputs == inputs:
                return found
    return None


def result_bytes(value: Any, digits: int = DIGITS) -> bytes:
    """The line of sealed JSON that stands for a dataclass or a dict."""
    return sealed(_unsealed_json(value, digits).encode() + b"\n")


def _unsealed_json(value: Any, digits: int = DIGITS) -> str:
    seal = f"sha256:{'0' * digits}"
    return json.dumps({**result_plain(value), SEAL_FIELD: seal}, allow_nan=False)


# Arrays.


def arrays_bytes(arrays: dict[str, np.ndarray], content: Any) -> bytes:
    """A sealed safetensors file of ``arrays``, with ``content`` (see `result_plain`)."""
    from safetensors.numpy import save

    # One key alone: safetensors writes several in any order.
    return sealed(save(arrays, metadata={CONTENT_KEY: _unsealed_json(content)}))


def read_arrays(path: Path, kind: type[T]) -> tuple[dict[str, np.ndarray], T]:
    """The arrays in a sealed safetensors file, and its content as a ``kind``.

    Raises `UserError` for a file that is missing, damaged or something else.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = read_sealed(path)
    try:
        arrays = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        text = header["__metadata__"][CONTENT_KEY]
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not an optdyn checkpoint ({first_line(error)})") from None
    return arrays, parse(text, kind, str(path))


def table_bytes(table: pyarrow.Table, content: Any) -> bytes:
    """A sealed Parquet file of ``table``, with ``content`` (see `result_plain`)."""
    import pyarrow.parquet

    described = table.replace_schema_metadata({CONTENT_KEY: _unsealed_json(content)})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(described, buffer)
    return sealed(buffer.getvalue())


def read_table(path: Path, kind: type[T]) -> tuple[pyarrow.Table, T]:
    """The table in a sealed Parquet file, and its content as a ``kind``.

    Raises `UserError` for a file that is missing, damaged or something else.
    """
    import pyarrow
    import pyarrow.parquet

    content = read_sealed(path)
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
        text = (table.schema.metadata or {})[CONTENT_KEY.encode()]
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: not an optdyn table ({first_line(error)})") from None
    return table, parse(text, kind, str(path))


def _write_flushed(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        remaining = memoryview(content)
        while remaining:
            remaining = remaining[os.write(descriptor, remaining) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
