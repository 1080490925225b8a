"""Read what a run folder holds, taking what is there and noting what is missing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from optdyn.errors import UserError
from optdyn.figures._registry import FIGURES
from optdyn.runs._evaluation_run import LOSSES, read_losses
from optdyn.runs._metrics_log import read_metrics
from optdyn.runs._plain import to_plain
from optdyn.runs._results import TIMINGS, Timings
from optdyn.runs._search_run import SEARCHES, read_searches
from optdyn.runs._store import read_json
from optdyn.study._claims import LEDGER, read_ledger

PICTURES = (".svg", ".png")


@dataclasses.dataclass(frozen=True)
class Contents:
    """A run folder's parts; ``faults`` says of each missing or unreadable one why.

    ``figures`` are names (files without suffix) under ``figures/``; ``training``
    maps a task to the rows of its training log, ``losses`` to its losses at some
    steps (see `optdyn.runs._evaluation_run.losses_at_steps`), ``searches`` to
    the searches of its meta learning rate.
    """

    path: Path
    config: dict[str, Any]
    claims: list[dict[str, Any]]
    timings: dict[str, Any]
    figures: list[str]
    training: dict[str, list[dict[str, Any]]]
    losses: dict[str, dict[str, Any]]
    searches: dict[str, list[dict[str, Any]]]
    tasks: list[str]
    faults: dict[str, str]


def read_contents(path: Path) -> Contents:
    """Everything in the run folder ``path`` that the report shows.

    Raises `UserError` when there is no such folder; parts that are missing or
    damaged are empty and noted in ``faults``.
    """
    if not path.is_dir():
        raise UserError(f"run folder: {path} does not exist (expected the --out of a finished run)")
    faults: dict[str, str] = {}

    def attempt(part: str, read: Any, default: Any) -> Any:
        try:
            return read()
        except UserError as error:
            faults[part] = str(error)
            return default

    config = attempt("settings", lambda: read_json(path / "config.json", dict), {})
    claims = attempt("claims", lambda: read_ledger(path / LEDGER), [])
    timings = attempt("timings", lambda: read_json(path / TIMINGS, Timings), {})
    training = {
        log.parent.name: attempt("training", lambda log=log: to_plain(read_metrics(log)), [])
        for log in sorted(path.glob("*/training.jsonl"))
    }
    losses = {
        told.parent.name: attempt("losses", lambda told=told: to_plain(read_losses(told)), {})
        for told in sorted(path.glob(f"*/{LOSSES}"))
    }
    searches = {
        folder.parent.name: attempt(
            "searches",
            lambda at=folder.parent: [dataclasses.asdict(found) for found in read_searches(at)],
            [],
        )
        for folder in sorted(path.glob(f"*/{SEARCHES}"))
    }
    pictures = [p for p in (path / "figures").glob("*") if p.suffix in PICTURES]
    figures = sorted({picture.stem for picture in pictures})
    if not figures:
        faults["figures"] = f"{path / 'figures'} holds no figure"
    tasks = _tasks(claims, {**training, **losses, **searches})
    training, losses, searches = (
        {task: found[task] for task in tasks if task in found}
        for found in (training, losses, searches)
    )
    return Contents(
        path, config, claims, timings, figures, training, losses, searches, tasks, faults
    )


def _tasks(claims: list[dict[str, Any]], found: dict[str, Any]) -> list[str]:
    """Tasks of the ledger and those ``found``, in the figures' order, then others by name."""
    home = [figure.task for figure in FIGURES.values() if figure.task]
    named = [str(claim["task"]) for claim in claims if claim.get("task")]
    return list(dict.fromkeys([*home, *sorted({*named, *found})]))
