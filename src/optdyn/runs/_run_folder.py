"""A run folder: whose it is, with which settings, and one process at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from optdyn.errors import UserError
from optdyn.runs import _store as files
from optdyn.runs._cards import versions
from optdyn.runs._plain import to_plain
from optdyn.tasks import Task, describe_task

T = TypeVar("T")

FORMAT = "optdyn run"
FORMAT_VERSION = 2
CONFIG = "config.json"
LOCK = ".lock"


@dataclasses.dataclass(frozen=True)
class Config:
    """``config.json``: the versions a folder was begun with, and the settings of its parts."""

    format: str
    format_version: int
    versions: dict[str, str]
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        if (self.format, self.format_version) != (FORMAT, FORMAT_VERSION):
            raise UserError(
                f"format {self.format!r}, version {self.format_version} is unknown (this is "
                f"{FORMAT!r}, version {FORMAT_VERSION}; choose another folder)"
            )


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A folder whose lock this process holds; see `open_run`."""

    path: Path

    def task_folder(self, task: Task | str) -> Path:
        """The folder for what belongs to one task: an object, or its name (`describe_task`)."""
        name = task if isinstance(task, str) else describe_task(task).name
        return self.path / folder_name(name)

    def settings(self) -> dict[str, Any]:
        """The settings of each part settled so far, by name."""
        return read_config(self.path).settings

    def check(self, part: str, settings: Any) -> bool:
        """Whether ``part`` has been settled before, with these very settings.

        Raises `UserError`, naming the setting and both values, when it was
        settled with others.
        """
        known = self.settings().get(part)
        if known is not None:
            self.require_same(part, known, to_plain(settings))
        return known is not None

    def require_same(self, part: str, known: Any, settings: Any) -> None:
        """Raise `UserError`, naming the first setting of ``part`` that differs."""
        difference = first_difference(known, settings)
        if difference:
            name, there, here = difference
            raise UserError(
                f"--out: {self.path} holds {part} with {name} = {there!r}, not {here!r} "
                "(give the same settings to resume it, or choose another folder)"
            )

    def settle(self, part: str, settings: Any) -> None:
        """Record the settings of ``part`` on first use; afterwards the same as `check`."""
        if not self.check(part, settings):
            self.record(part, settings)

    def settle_work(self, work: str, task: Task, settings: Any, detail: str = "") -> str:
        """`settle` some work on ``task`` with its options; returns the task's name."""
        described = describe_task(task)
        part = "/".join(filter(None, (work, described.name, detail)))
        self.settle(part, {"task_options": described.options, **to_plain(settings)})
        return described.name

    def record(self, part: str, settings: Any) -> None:
        """Record the settings of ``part``, whatever was recorded before."""
        config = read_config(self.path)
        changed = {**config.settings, part: to_plain(settings)}
        files.write_json(self.path / CONFIG, dataclasses.replace(config, settings=changed))


def folder_name(task: str) -> str:
    """The name of the folder for the task called ``task``, which can be ``module:Class``."""
    return files.safe_name(re.sub(r"[^A-Za-z0-9._-]", ".", task).lstrip("._-"))


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
    with contextlib.ExitStack() as held:
        with _about_out():
            files.make_folder(path)
            held.enter_context(files.locked(path / LOCK))
        require_own(path)
        files.remove_temporaries(path)
        yield RunFolder(path)


@contextlib.contextmanager
def _about_out() -> Iterator[None]:
    """Errors in the block begin with the option that they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"--out: {error}") from None


def require_own(path: Path) -> None:
    """Raise `UserError` unless ``path`` is a run folder, empty or absent."""
    with _about_out(), files.refusals(path, "read"):
        if not path.exists():
            return
        if not path.is_dir():
            raise UserError(f"{path} is not a folder")
        present = {entry.name for entry in path.iterdir()}
    if CONFIG in present:
        read_config(path)
    elif present - {LOCK, files.temporary_beside(path / CONFIG).name}:
        raise UserError(f"--out: {path} holds other files and no {CONFIG} (choose another folder)")


def read_task_result(path: Path, kind: type[T]) -> T:
    """The result of some work on a task, from its file in the task's folder.

    Raises `UserError` for a file that is missing, damaged, of another form or another task.
    """
    result: Any = files.read_result(path, kind)
    if folder_name(result.inputs.task) != path.parent.name:
        raise UserError(f"{path}: is of task {result.inputs.task!r}, not of {path.parent.name!r}")
    return result


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


def read_config(path: Path) -> Config:
    """What ``config.json`` in the run folder ``path`` holds, or of a new one.

    Raises `UserError` if it is damaged, or was not written by this version.
    """
    if not (path / CONFIG).exists():
        return Config(FORMAT, FORMAT_VERSION, versions(), {})
    with _about_out():
        return files.read_json(path / CONFIG, Config)
