"""Claims, figures and the page, from whatever results a run folder holds."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import optdyn
from optdyn.errors import UserError
from optdyn.runs._run_folder import RunFolder, folder_name
from optdyn.runs._store import read_json, write_json
from optdyn.study._claims import ROWS
from optdyn.study._ledger import LEDGER, Claim, judge, read_ledger, unmeasured
from optdyn.study._recipes import LAPTOP, NOTHING_SHIPS, Recipe
from optdyn.study._results import read_results
from optdyn.study._stories import FIGURES, Placed, draw_study
from optdyn.study.page import REPORT, write_page

DRAWN = "drawn.json"
RESULTS = ("*.json*", "evaluation/*", "tuning/*", "searches/*")


@dataclasses.dataclass(frozen=True)
class DrawnFrom:
    """``figures/drawn.json``: what the figures were drawn from, and which there are."""

    inputs: dict[str, str]
    figures: list[Placed]


def conclude(run: RunFolder, absent: Sequence[Recipe] | None) -> Path:
    """What `optdyn.study.report` does."""
    tasks = _tasks(run)
    left_out = _left_out(run, tasks, absent)
    inputs = {**_fingerprint(run, tasks), **{claim.id: claim.why for claim in left_out}}
    before = _drawn(run)
    page, ledger = run.path / REPORT, run.path / LEDGER
    unchanged = before.inputs == inputs
    if unchanged and page.exists() and ledger.exists():
        return page
    results = [read_results(run, task) for task in tasks]
    claims = [claim for result in results for claim in judge(ROWS, result)] + left_out
    write_json(ledger, claims)
    placed = before.figures if unchanged else draw_study(run, results)
    print("writing the report", flush=True)
    write_page(run.path, results, claims, placed)
    write_json(run.path / FIGURES / DRAWN, DrawnFrom(inputs, placed))
    return page


def _tasks(run: RunFolder) -> list[str]:
    """The tasks whose results the folder holds, those of the paper first."""
    parts = (part.split("/") for part in run.settings())
    names = {folder_name(part[1]): part[1] for part in parts if len(part) > 1}
    folders = [path for path in sorted(run.path.iterdir()) if path.is_dir()]
    there = [
        names.get(path.name, path.name)
        for path in folders
        if path.name != FIGURES and any(any(path.glob(pattern)) for pattern in RESULTS)
    ]
    return [task for task in LAPTOP if task in there] + [t for t in there if t not in LAPTOP]


def _left_out(run: RunFolder, tasks: list[str], absent: Sequence[Recipe] | None) -> list[Claim]:
    """Fig. 9's claims on tasks that could not be looked at."""
    if absent is None:
        try:
            return [c for c in read_ledger(run.path / LEDGER) if c.task not in tasks]
        except UserError:  # none yet, or damaged: it is written anew
            return []
    row = ROWS[0]
    return [
        unmeasured(row, recipe.name, baseline, NOTHING_SHIPS)
        for recipe in absent
        for baseline in recipe.baselines
    ]


def _fingerprint(run: RunFolder, tasks: list[str]) -> dict[str, str]:
    """What claims, figures and report are made from: a hash of every result, and the version."""
    hashes = {"version": optdyn.__version__}
    for task in tasks:
        for pattern in RESULTS:
            for path in sorted((run.path / folder_name(task)).glob(pattern)):
                name = str(path.relative_to(run.path))
                hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def _drawn(run: RunFolder) -> DrawnFrom:
    try:
        return read_json(run.path / FIGURES / DRAWN, DrawnFrom)
    except UserError:
        return DrawnFrom({}, [])
