"""Copy a finished run's weights, training log and search tables to where they ship from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from optdyn.errors import UserError
from optdyn.pretrained._shipped import (
    CHECKPOINT_SUFFIX,
    MANIFEST,
    Manifest,
    ShippedFile,
    load_pretrained,
    load_shipped,
    read_manifest,
    shipped_searches,
)
from optdyn.runs._analysis_run import SUMMARY
from optdyn.runs._cards import Card
from optdyn.runs._checkpoints import analysis_path, load_optimizer
from optdyn.runs._distillation_fit import FITTED, FittedResult
from optdyn.runs._results import AnalysisResult
from optdyn.runs._run_folder import RunFolder, read_task_result
from optdyn.runs._store import read_bytes, read_result, write_bytes, write_result
from optdyn.runs._training_run import CHECKPOINTS, METRICS, load_trained, require_checkpoints
from optdyn.runs._tuning_run import load_tables, table_path
from optdyn.search import SearchSettings, SearchTable, is_finished

SEARCH_COMMAND = "optdyn search-lr"


def export_task(
    run: RunFolder,
    task: str,
    to: Path,
    train_command: Callable[[Card], str],
    tune_command: Callable[[SearchSettings], str],
) -> dict[str, int]:
    """Write what ships of ``task`` into ``to``; returns each file's size in bytes, by its place.

    The weights are those of the last checkpoint (``final``) and of the stage that
    the analysis names (``momentum``). Searches of the meta learning rate and
    fitted readable optimizers, where there are any, go with them. The two functions
    give the command lines of the training and of a search, for the manifest. The
    same run gives the same bytes; files of the same names are replaced.

    Raises `UserError`, before it writes anything, for a run whose training, a
    search or the analysis is not finished.
    """
    folder = run.task_folder(task)
    stages, tables = _finished_stages(run, task), _finished_tables(folder)
    contents: dict[str, tuple[bytes, str]] = {}
    for stage, (path, card) in stages.items():
        contents[f"{stage}{CHECKPOINT_SUFFIX}"] = (read_bytes(path), train_command(card))
    contents[METRICS] = (read_bytes(folder / METRICS), train_command(stages["final"][1]))
    for baseline, table in tables.items():
        content = read_bytes(table_path(folder, baseline))
        contents[str(table_path(Path(), baseline))] = (content, tune_command(table.settings))
    for place, content in shipped_searches(folder).items():
        contents[place] = (content, SEARCH_COMMAND)
    if (folder / FITTED).exists():
        command = read_result(folder / FITTED, FittedResult).command
        contents[FITTED] = (read_bytes(folder / FITTED), command)
    source = to / folder.name
    for place, (content, _) in contents.items():
        write_bytes(source / place, content)
    listed = {place: _listed(*content) for place, content in contents.items()}
    write_result(source / MANIFEST, Manifest(task, listed))
    load_shipped(folder.name, to)
    return {place: file.bytes for place, file in listed.items()}


def export_checkpoint(
    checkpoint: Path, name: str, stage: str, to: Path, train_command: Callable[[Card], str]
) -> None:
    """Ship one checkpoint as a stage of ``name``, such as ``linear_regression/paper``.

    For weights of another training than those that `export_task` writes. What is listed in the
    folder's manifest already stays. Raises `UserError` for a damaged checkpoint or manifest.
    """
    _, card = load_optimizer(checkpoint)
    content, source = read_bytes(checkpoint), to / name
    place = f"{stage}{CHECKPOINT_SUFFIX}"
    listed = read_manifest(source).files if (source / MANIFEST).exists() else {}
    command = train_command(card)
    write_bytes(source / place, content)
    files = {**listed, place: _listed(content, command)}
    write_result(source / MANIFEST, Manifest(card.task, files))
    load_pretrained(name, stage, to)


def _listed(content: bytes, command: str) -> ShippedFile:
    return ShippedFile(len(content), hashlib.sha256(content).hexdigest(), command)


def _finished_stages(run: RunFolder, task: str) -> dict[str, tuple[Path, Card]]:
    """The two checkpoints that ship, with their cards."""
    folder = run.task_folder(task)
    checkpoints = require_checkpoints(folder, "export")
    last = load_trained(run, task, checkpoints[-1])[1]
    if last.meta_step < last.protocol.num_meta_steps:
        raise UserError(
            f"--out: {folder}: training has done {last.meta_step} of "
            f"{last.protocol.num_meta_steps} meta-steps (run optdyn train to the end)"
        )
    if not (folder / SUMMARY).exists():
        raise UserError(f"--out: {folder} has no {SUMMARY} (run optdyn analyze first)")
    analysis = read_task_result(folder / SUMMARY, AnalysisResult)
    if sorted(analysis.inputs.checkpoints) != [path.name for path in checkpoints]:
        raise UserError(f"--out: {folder / SUMMARY} is of other checkpoints (run optdyn analyze)")
    chosen = analysis_path(folder / CHECKPOINTS, analysis.momentum_stage)
    return {
        "final": (checkpoints[-1], last),
        "momentum": (chosen, load_trained(run, task, chosen)[1]),
    }


def _finished_tables(folder: Path) -> dict[str, SearchTable]:
    tables = load_tables(folder)
    for name, table in tables.items():
        if not is_finished(table):
            raise UserError(
                f"--out: {table_path(folder, name)} is not finished (run optdyn tune "
                f"--baseline {name} to the end)"
            )
    return tables
