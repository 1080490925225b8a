"""Copy a finished run's weights, training log and search tables to where they ship from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optdyn.errors import UserError
from optdyn.pretrained._shipped import (
    FORMAT,
    FORMAT_VERSION,
    card_path,
    load_shipped,
    read_shipped_searches,
)
from optdyn.runs._analysis_run import SUMMARY, read_analysis
from optdyn.runs._cards import Card
from optdyn.runs._checkpoints import analysis_checkpoints, analysis_path
from optdyn.runs._files import read_bytes, write_bytes, write_json
from optdyn.runs._fitted_sizes import FITTED, read_fitted
from optdyn.runs._run_folder import RunFolder
from optdyn.runs._training_run import CHECKPOINTS, METRICS, load_trained
from optdyn.runs._tuning_run import load_tables, table_path
from optdyn.search import best, is_finished

if TYPE_CHECKING:
    from optdyn.search import SearchSettings, SearchTable


def export_task(
    run: RunFolder,
    task: str,
    to: Path,
    train_command: Callable[[Card], str],
    tune_command: Callable[[SearchSettings], str],
) -> dict[str, int]:
    """Write what ships of ``task`` into ``to``; returns each file's size in bytes, by its place.

    The weights are those of the last checkpoint (``final``) and of the stage that
    the analysis names (``momentum``); searches of the meta learning rate and
    fitted readable optimizers, where there are any, go with them. The two functions
    tell the command lines that give the training and a search, for the cards. The
    same run gives the same bytes; files of the same names are replaced.

    Raises `UserError`, before it writes anything, for a run whose training, a
    search or the analysis is not finished.
    """
    folder = run.task_folder(task)
    stages, tables = _finished_stages(run, task), _finished_tables(folder)
    signed = _signed(folder)
    contents: dict[str, tuple[bytes, dict[str, Any]]] = {}
    for stage, (path, card) in stages.items():
        told = {"stage": stage, "command": train_command(card), **vars(card)}
        contents[f"{stage}.safetensors"] = (read_bytes(path), told)
    log = {"task": task, "command": train_command(stages["final"][1])}
    contents[METRICS] = (read_bytes(folder / METRICS), log)
    for baseline, table in tables.items():
        winner = best(table)
        told = {
            "task": task,
            "baseline": baseline,
            "command": tune_command(table.settings),
            "rounds": table.round + 1,
            "best": {"hyperparameters": winner.hyperparameters, "score": winner.score},
        }
        contents[str(table_path(Path(), baseline))] = (
            read_bytes(table_path(folder, baseline)), told
        )  # fmt: skip
    for place, (content, told) in contents.items():
        _write_with_card(to / task / place, content, told)
    for place, content in signed.items():
        write_bytes(to / task / place, content)
    load_shipped(task, to)
    return {
        **{place: len(content) for place, (content, _) in contents.items()},
        **{place: len(content) for place, content in signed.items()},
    }


def _finished_stages(run: RunFolder, task: str) -> dict[str, tuple[Path, Card]]:
    """The two checkpoints that ship, with their cards."""
    folder = run.task_folder(task)
    checkpoints = analysis_checkpoints(folder / CHECKPOINTS)
    if not checkpoints:
        raise UserError(f"--out: {folder} has no checkpoints (run optdyn train first)")
    last = load_trained(run, task, checkpoints[-1])[1]
    if last.meta_step < last.protocol.num_meta_steps:
        raise UserError(
            f"--out: {folder}: training has done {last.meta_step} of "
            f"{last.protocol.num_meta_steps} meta-steps (run optdyn train to the end)"
        )
    if not (folder / SUMMARY).exists():
        raise UserError(f"--out: {folder} has no {SUMMARY} (run optdyn analyze first)")
    analysis = read_analysis(folder / SUMMARY)
    analysed = analysis["inputs"]["checkpoints"]
    if sorted(analysed) != [path.name for path in checkpoints]:
        raise UserError(f"--out: {folder / SUMMARY} is of other checkpoints (run optdyn analyze)")
    chosen = analysis_path(folder / CHECKPOINTS, analysis["momentum_stage"])
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


def _signed(folder: Path) -> dict[str, bytes]:
    """What carries its own SHA-256, checked, by its place."""
    found = read_shipped_searches(folder)
    if (folder / FITTED).exists():
        read_fitted(folder / FITTED)
        found[FITTED] = read_bytes(folder / FITTED)
    return found


def _write_with_card(path: Path, content: bytes, told: dict[str, Any]) -> None:
    write_bytes(path, content)
    sealed = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "file": path.name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_json(card_path(path), {**sealed, **told})
