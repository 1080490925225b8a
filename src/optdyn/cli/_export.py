"""``optdyn export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optdyn.cli._options import command_line, parse_settings
from optdyn.cli._output import Result, present
from optdyn.cli._settings import ExportSettings, TrainSettings, TuneSettings
from optdyn.errors import UserError
from optdyn.runs._run_folder import open_run
from optdyn.search._search_table import SearchSettings
from optdyn.tasks import describe_task, make_task

if TYPE_CHECKING:
    from optdyn.runs._cards import Card


def command(argv: list[str]) -> None:
    """Parse ``argv``, copy what ships, and print each file's size."""
    settings = parse_settings(ExportSettings, "export", argv)
    from optdyn.pretrained import export_task

    to = settings.to or _own_folder()

    def work() -> Result:
        sizes = export_task(run, settings.task, to, train_command, tune_command)
        lines = [
            f"{size / 1e3:10.1f} kB  {to / settings.task / place}" for place, size in sizes.items()
        ]
        folder = to / settings.task
        return Result({"task": settings.task, "folder": folder, "bytes": sizes}, lines)

    with open_run(settings.out, create=False) as run:
        present(settings, work)


def train_command(card: Card) -> str:
    """The ``optdyn train`` whose training the checkpoint of ``card`` belongs to."""
    protocol, architecture = vars(card.protocol), card.architecture
    settings = TrainSettings(
        out=Path("runs") / card.task,
        seed=card.seed,
        task=card.task,
        task_option=_task_option(card.task, card.task_options),
        cell=architecture.cell_name,
        units=architecture.units,
        encoding=architecture.encoding.kind,
        gain=architecture.encoding.gain,
        input_scale=architecture.encoding.scale,
        output_scale=architecture.output_scale,
        initial=None if card.initial is None else Path("initial.safetensors"),
        meta_steps=card.protocol.num_meta_steps,
        **{name: value for name, value in protocol.items() if name != "num_meta_steps"},
    )
    return command_line("train", settings)


def tune_command(search: SearchSettings) -> str:
    """The ``optdyn tune`` that gives the search of these settings."""
    settings = TuneSettings(
        out=Path("runs") / search.task,
        seed=search.seed,
        task=search.task,
        task_option=_task_option(search.task, search.task_options),
        unroll_length=search.num_steps,
        normalization=search.normalization,
        baseline=search.baseline,
        samples=search.num_samples,
        problems=search.num_problems,
        rescore_top=search.rescore_top,
        rescore_problems=search.rescore_problems,
        stand_in=tuple(search.stand_in.items()),
    )
    return command_line("tune", settings)


def _task_option(task: str, options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The options that are not the task's defaults."""
    usual = describe_task(make_task(task)).options
    return tuple((name, value) for name, value in options.items() if value != usual.get(name))


def _own_folder() -> Path:
    """The package's own folder of weights, in a source checkout."""
    from optdyn.pretrained._shipped import FOLDER

    if not (FOLDER.parents[2] / "pyproject.toml").is_file():
        raise UserError("--to: give a folder (this optdyn is not a source checkout)")
    return FOLDER
