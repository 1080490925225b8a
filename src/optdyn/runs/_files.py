"""The one place that writes files: atomically, and with errors of one line.

A file is written beside its final name, flushed to the disk, then renamed, so
that a reader (or a run that was killed) finds the old content or the new,
never a part of either.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

from optdyn.errors import UserError

SIGNATURE = "sha256"
LARGEST_SIGNED = 2**30
"""Bytes: the losses of some 200,000 problems."""
TEMPORARY = ".tmp"
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MOST_NESTED = 32
LONGEST_INTEGER = 300
"""Digits; with more it would be too large for a float."""


def safe_name(name: str) -> str:
    """``name``, when it can only name something inside the folder it is joined to.

    Raises `UserError` for separators, leading dots, and anything else unusual.
    """
    if not isinstance(name, str) or not SAFE_NAME.fullmatch(name):
        raise UserError(f"name: {name!r} is not allowed (letters, digits, '.', '_', '-')")
    return name


def temporary_beside(path: Path) -> Path:
    """Where the content of ``path`` lies while it is being written.

    The name is fixed, so that what a killed process left behind is overwritten
    by the next attempt; the run folder's lock keeps two writers apart.
    """
    return path.with_name(f".{path.name}{TEMPORARY}")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, atomically and durably; parents are made.

    Raises `UserError` when the disk refuses (full, read-only, …); ``path`` is
    whole all the same, and as it was unless only the last flush failed.
    """
    make_folder(path.parent)
    temporary = temporary_beside(path)
    try:
        _write_flushed(temporary, content)
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot(path, "write", error) from None


def require_file(path: Path) -> int:
    """The size in bytes of the file at ``path``.

    Raises `UserError` where there is none, or something else, such as a pipe, which
    would keep its reader waiting.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise cannot(path, "read", error) from None
    except ValueError:
        raise UserError(f"{path}: cannot read (no name of a file)") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: cannot read (not a file)")
    return status.st_size


def read_bytes(path: Path, limit: int = 2**31) -> bytes:
    """The content of ``path``; raises `UserError` if absent, unreadable or over ``limit`` bytes."""
    if require_file(path) > limit:
        raise UserError(f"{path}: too large (at most {limit} bytes)")
    try:
        return path.read_bytes()
    except OSError as error:
        raise cannot(path, "read", error) from None


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` (see `to_plain`) as indented JSON, atomically."""
    text = json.dumps(to_plain(value), indent=2, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def write_json_if_changed(path: Path, value: Any) -> None:
    """`write_json`, leaving alone a file that says the same already."""
    with contextlib.suppress(UserError):
        if read_json(path) == to_plain(value):
            return
    write_json(path, value)


def read_json(path: Path, limit: int = 2**26) -> dict[str, Any]:
    """The JSON object in ``path``; raises `UserError` naming the first fault."""
    try:
        value = parse_json(read_bytes(path, limit))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object (found {type(value).__name__})")
    return value


def is_version(found: object, known: int) -> bool:
    """Whether ``found`` in a file is the format version ``known``, and not true or 1.0."""
    return type(found) is int and found == known


def write_signed_json(path: Path, value: Any) -> None:
    """Write the object ``value`` as one line of JSON with a SHA-256 of itself, atomically."""
    plain = to_plain(value)
    write_bytes(path, json.dumps({**plain, SIGNATURE: _signature(plain)}).encode())


def read_signed_json(path: Path) -> dict[str, Any]:
    """What `write_signed_json` wrote; raises `UserError` if a bit of it has changed."""
    value = read_json(path, LARGEST_SIGNED)
    if value.pop(SIGNATURE, None) != _signature(value):
        raise UserError(f"{path}: damaged (its content does not match its SHA-256)")
    return value


def write_signed_json_if_changed(path: Path, value: Any) -> None:
    """`write_signed_json`, leaving alone a file that says the same already."""
    with contextlib.suppress(UserError):
        if read_signed_json(path) == to_plain(value):
            return
    write_signed_json(path, value)


def _signature(plain: dict[str, Any]) -> str:
    canonical = json.dumps(plain, sort_keys=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def parse_json(text: bytes | str) -> Any:
    """Strict JSON, in UTF-8.

    Raises `ValueError` on NaN, infinities and what overflows to them, on a name that an
    object has twice, on endless nesting, and on bytes that are not UTF-8.
    """
    try:
        value = json.loads(
            text.decode() if isinstance(text, bytes) else text,
            parse_constant=_refused,
            parse_float=_finite,
            parse_int=_integer,
            object_pairs_hook=_object,
        )
    except RecursionError:
        value = None
    else:
        if _nested_within(value, MOST_NESTED):
            return value
    raise ValueError("nested too deeply")


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is too large")
    return value


def _integer(text: str) -> int:
    if len(text) > LONGEST_INTEGER:
        raise ValueError(f"{text[:20]}... is too large")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise ValueError(f"{twice[:40]!r} is there twice")
    return found


def _nested_within(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    items = value.values() if isinstance(value, dict) else value
    inner = (item for item in items if isinstance(item, dict | list))
    return levels > 0 and all(_nested_within(item, levels - 1) for item in inner)


def to_plain(value: Any) -> Any:
    """``value`` as JSON can hold it.

    Dataclasses become objects, tuples and arrays lists, paths strings, and
    numbers that are not finite null (JSON has no word for them).
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: to_plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return to_plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def make_folder(path: Path) -> None:
    """Make ``path`` and its parents, durably; raises `UserError` where that is impossible."""
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            flush_folder(folder.parent)
    except OSError as error:
        raise cannot(path, "make the folder", error) from None


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left anywhere below ``folder``, which no one else may write to.

    Raises `UserError` where the disk refuses.
    """
    for path in folder.rglob(f".*{TEMPORARY}"):
        try:
            path.unlink()
        except OSError as error:
            raise cannot(path, "remove", error) from None


def cannot(path: Path, act: str, error: OSError) -> UserError:
    """The one-line error for an operating system that refused to ``act`` on ``path``."""
    return UserError(f"{path}: cannot {act} ({error.strerror or error})")


def _write_flushed(path: Path, content: bytes) -> None:
    # A link in the place of a temporary file would lead out of the folder.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o644)
    try:
        remaining = memoryview(content)
        while remaining:
            remaining = remaining[os.write(descriptor, remaining) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Make names in ``folder`` durable: new and renamed ones live in its own data."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
