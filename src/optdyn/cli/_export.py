"""``optdyn export``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from optdyn.cli._options import STUDY, Output, OutputOptions, TaskName
from optdyn.cli._output import Result, present
from optdyn.cli._reading import one_of
from optdyn.cli._settings import option_texts
from optdyn.errors import UserError
from optdyn.runs._plain import to_plain
from optdyn.runs._run_folder import open_run
from optdyn.tasks import TASKS

if TYPE_CHECKING:
    from optdyn.runs._cards import Card
    from optdyn.search import SearchSettings


def export(
    *,
    out: Path = STUDY,
    task: Annotated[TaskName, one_of(TASKS)] = "linear_regression",
    to: Path | None = None,
    output: Output = OutputOptions(),
) -> None:
    """Copy what ships, and print each file's size.

    Args:
        out: run folder to copy from
        task: the task whose weights and tables are copied
        to: folder to copy into (none: the package's own, in a source checkout)
        output: what is printed
    """
    from optdyn.pretrained import export_task

    folder = (to or _own_folder()) / task

    def work() -> Result:
        sizes = export_task(run, task, folder.parent, train_command, tune_command)
        lines = [f"{size / 1e3:10.1f} kB  {folder / place}" for place, size in sizes.items()]
        return Result({"task": task, "folder": folder, "bytes": sizes}, lines)

    with open_run(out, create=False) as run:
        present(output, work)


def train_command(card: Card) -> str:
    """The ``optdyn train`` whose training the checkpoint of ``card`` belongs to."""
    plain = to_plain(card)
    initial = {} if card.initial is None else {"initial": "initial.safetensors"}
    settings = {name: plain[name] for name in ("task_options", "architecture", "protocol")}
    return _command("train", card.task, {**settings, "seed": card.seed}, initial)


def tune_command(search: SearchSettings) -> str:
    """The ``optdyn tune`` that gives the search of these settings."""
    names = ("baseline", "seed", "task_options", "num_steps", "normalization", "num_samples")
    more = ("num_problems", "rescore_top", "rescore_problems", "stand_in")
    return _command("tune", search.task, {n: getattr(search, n) for n in (*names, *more)}, {})


def _command(name: str, task: str, settings: dict[str, Any], more: dict[str, str]) -> str:
    """A command line that says every setting, so that no default matters."""
    words = ["optdyn", name, "--task", task, "--out", f"runs/{task}"]
    for option, values in [*option_texts(settings), *((k, (v,)) for k, v in more.items())]:
        words += [word for value in values for word in (f"--{option}", value)]
    return shlex.join(words)


def _own_folder() -> Path:
    """The package's own folder of weights, in a source checkout."""
    from optdyn.pretrained._shipped import FOLDER

    if not (FOLDER.parents[2] / "pyproject.toml").is_file():
        raise UserError("--to: give a folder (this optdyn is not a source checkout)")
    return FOLDER
