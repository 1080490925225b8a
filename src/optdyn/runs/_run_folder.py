"""A run folder: whose it is, with which settings, and one process at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optdyn.errors import UserError
from optdyn.runs._files import (
    cannot,
    is_version,
    make_folder,
    read_json,
    remove_temporaries,
    safe_name,
    temporary_beside,
    to_plain,
    write_json,
)
from optdyn.runs._versions import versions

FORMAT = "optdyn run"
FORMAT_VERSION = 1
CONFIG = "config.json"
LOCK = ".lock"


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A folder that this process holds the lock of; see `open_run`.

    ``config.json`` in it lists the versions it was begun with and the resolved
    settings of every part of the work done there (`settle`).
    """

    path: Path

    def task_folder(self, task: str) -> Path:
        """The folder for what belongs to one task."""
        return self.path / safe_name(task)

    def settings(self) -> dict[str, Any]:
        """The settings of each part settled so far, by name."""
        return _read_config(self.path)["settings"]

    def check(self, part: str, settings: Any) -> bool:
        """Whether ``part`` has been settled before, with these very settings.

        Raises `UserError`, naming the setting and both values, when it was
        settled with others.
        """
        known = self.settings().get(part)
        if known is None:
            return False
        difference = first_difference(known, to_plain(settings))
        if difference:
            name, there, here = difference
            raise UserError(
                f"--out: {self.path} holds {part} with {name} = {there!r}, not {here!r} "
                "(repeat its settings to go on, or choose another folder)"
            )
        return True

    def settle(self, part: str, settings: Any) -> None:
        """Record the settings of ``part`` on first use; afterwards the same as `check`."""
        if self.check(part, settings):
            return
        config = _read_config(self.path)
        config["settings"][part] = to_plain(settings)
        write_json(self.path / CONFIG, config)


@contextlib.contextmanager
def open_run(path: Path, create: bool = True) -> Iterator[RunFolder]:
    """Hold the run folder at ``path`` for the length of the block.

    Unless ``create`` is false, the folder is made if need be.

    The lock is the kernel's: it goes when its process does, however that ends.
    What a killed writer left half-written in the folder is removed.
    Raises `UserError`, having changed nothing, when ``path`` holds other things
    than a run, cannot be written, or is held by another process.
    """
    require_own(path)
    if not create and not path.exists():
        raise UserError(f"--out: {path} does not exist (give a run folder)")
    try:
        make_folder(path)
    except UserError as error:
        raise UserError(f"--out: {error}") from None
    with _locked(path):
        require_own(path)
        remove_temporaries(path)
        yield RunFolder(path)


def require_own(path: Path) -> None:
    """Raise `UserError` unless ``path`` is a run folder, empty or absent."""
    try:
        if not path.exists():
            return
        if not path.is_dir():
            raise UserError(f"--out: {path} is not a folder")
        present = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise _refused(path, "read", error) from None
    if CONFIG in present:
        _read_config(path)
    elif present - {LOCK, temporary_beside(path / CONFIG).name}:
        raise UserError(f"--out: {path} holds other files and no {CONFIG} (choose another folder)")


def first_difference(there: Any, here: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The dotted name of the first setting that differs, and its two values."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(key for key in here if key not in there)]:
            dotted = f"{name}.{key}" if name else key
            found = first_difference(there.get(key), here.get(key), dotted)
            if found:
                return found
        return None
    # In Python, though not in JSON, true equals 1.
    same = there == here and isinstance(there, bool) == isinstance(here, bool)
    return None if same else (name, there, here)


def _read_config(path: Path) -> dict[str, Any]:
    if not (path / CONFIG).exists():
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "versions": versions(),
            "settings": {},
        }
    config = read_json(path / CONFIG)
    if config.get("format") != FORMAT or not isinstance(config.get("settings"), dict):
        raise UserError(f"--out: {path / CONFIG} was not written by optdyn (choose another folder)")
    if not is_version(config.get("format_version"), FORMAT_VERSION):
        raise UserError(
            f"{path / CONFIG}: format version {config.get('format_version')!r} is unknown "
            f"(this is version {FORMAT_VERSION})"
        )
    return config


def _refused(path: Path, act: str, error: OSError) -> UserError:
    return UserError(f"--out: {cannot(path, act, error)}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _refused(path, "write", error) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--out: {path} is in use by another process "
                "(wait for it, or choose another folder)"
            ) from None
        except OSError as error:
            raise _refused(path, "lock", error) from None
        yield
    finally:
        os.close(descriptor)
