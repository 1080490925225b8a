"""Put the page together from a run's results, claims and figures."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from optdyn.errors import UserError
from optdyn.figures._style import readable
from optdyn.runs._cards import describe
from optdyn.runs._run_folder import read_config
from optdyn.runs._store import write_bytes
from optdyn.search._learning_rate import ranked
from optdyn.study._claims import APPENDIX_A
from optdyn.study._drawing import FINAL
from optdyn.study._ledger import Claim, Verdict
from optdyn.study._results import HERE, SHIPPED, TaskResults
from optdyn.study._stories import FIGURES, STORIES, Placed, Story
from optdyn.study._timings import read_timings
from optdyn.study.page._explorer_data import as_script, explorer_data
from optdyn.study.page._findings import findings
from optdyn.study.page._pictures import Album, Picture
from optdyn.study.page._scripts import STYLES, asset, packed, packed_scripts, page_scripts, policy

REPORT = "report.html"
LARGEST = 5_800_000
"""Characters of a page; figures for which no room is left are linked."""
MARKUP_ROOM = 300_000
FIRST_SCREEN = (("fig09", ""), ("fig07b", APPENDIX_A[0]))
SIGNS = {
    Verdict.HOLDS: ("✓", "good"),
    Verdict.DISAGREES: ("✗", "bad"),
    Verdict.UNDERTRAINED: ("…", "open"),
    Verdict.ROUNDING: ("≈", "open"),
    Verdict.BEYOND: ("○", "open"),
    Verdict.UNMEASURED: ("?", "open"),
}
"""A verdict's sign and the class of its colour."""


def write_page(
    folder: Path, results: Sequence[TaskResults], claims: Sequence[Claim], figures: Sequence[Placed]
) -> Path:
    """Write the page of the run in ``folder``; returns its path.

    One file that needs no other and no network: findings, Fig. 9 and Fig. 7b and every verdict
    first, then the explorer, the figures under the paper's numbers, and folded the ledger, tables
    and settings. Raises `UserError` where it cannot be written.
    """
    config = read_config(folder)
    try:
        timings: Mapping[str, Any] = read_timings(folder)
    except UserError:  # a single command leaves none
        timings = {}
    data = explorer_data(results)
    scripts, later = page_scripts(data), packed_scripts(data)
    told = as_script(data)
    small = [packed(script) for script in later]
    room = LARGEST - MARKUP_ROOM - len(told) - sum(map(len, small))
    counts = Counter(claim.verdict for claim in claims)
    first, chapters = _illustrations(figures, Album(folder / FIGURES, room))
    page = (
        _environment()
        .get_template("page.html")
        .render(
            title=f"optdyn report: {folder.resolve().name}",
            policy=policy([*scripts, *later]),
            style="\n".join(map(asset, STYLES)),
            data=told if data["tasks"] else "",
            packed=small,
            scripts=scripts,
            results=results,
            findings=findings(results, claims),
            verdicts=[(verdict, counts[verdict]) for verdict in Verdict if counts[verdict]],
            origins=((HERE, False), (SHIPPED, True)),
            overview=_overview(claims),
            first=first,
            chapters=chapters,
            ledger=_ledger(claims),
            figure_of=functools.partial(_figure_of, figures),
            claim_id=lambda claim: re.sub(r"[^A-Za-z0-9_.-]+", "-", f"claim-{claim.id}"),
            signs=SIGNS,
            numbers={story.key: story.number for story in STORIES},
            settings=config.settings,
            versions=config.versions,
            timings=timings,
        )
    )
    # JSON can spell half a surrogate pair, which no file can hold.
    write_bytes(folder / REPORT, page.encode(errors="replace"))
    return folder / REPORT


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("optdyn.study.page", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number,
        readable=readable,
        flat=_flat,
        described=describe,
        ranked=ranked,
        best_first=lambda found: sorted(found, key=lambda s: ranked(s.rows)[0].meta_objective),
    )
    return environment


def number(value: Any) -> str:
    """A measured or allowed value as text: numbers to four digits, lists and objects flat."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "diverged"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {number(item)}" for key, item in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(number(item) for item in value)
    return str(value)


def _overview(claims: Sequence[Claim]) -> dict[str, Any]:
    """The grid of tasks and claims: a row of the table of claims under each task."""
    tasks = list(dict.fromkeys(claim.task for claim in claims))
    rows: dict[str, dict[str, Any]] = {}
    for claim in claims:
        row = rows.setdefault(claim.row, {"label": claim.label, "cells": {t: [] for t in tasks}})
        row["cells"][claim.task].append(claim)
    return {"tasks": tasks, "rows": list(rows.values())}


def _ledger(claims: Sequence[Claim]) -> list[tuple[str, str, list[Claim]]]:
    """By task: its name, where its weights came from if every claim says the same, its claims."""
    groups = []
    for task, group in itertools.groupby(claims, lambda claim: claim.task):
        own = list(group)
        origins = {claim.origin for claim in own}
        groups.append((readable(task), origins.pop() if len(origins) == 1 else "", own))
    return groups


def _figure_of(figures: Sequence[Placed], key: str, task: str) -> str:
    """The id of the figure ``key`` of a task, or of all tasks; "" where there is none."""
    own = [one for one in figures if one.key == key]
    found = [one for one in own if one.task in ("", task)] or ([] if task else own)
    return found[0].name if found else ""


def _illustrations(
    figures: Sequence[Placed], album: Album
) -> tuple[list[tuple[Story, Picture]], list[dict[str, Any]]]:
    """The first screen's figures, and the chapters of all the others."""
    stories = {story.key: story for story in STORIES}
    placed = [one for one in figures if one.key in stories]
    chosen = [
        next((one for one in placed if (one.key, one.task) == (key, task)), None)
        or next((one for one in placed if one.key == key), None)
        for key, task in FIRST_SCREEN
    ]
    first = [one for one in chosen if one is not None]
    shown = [(stories[one.key], album.picture(one, stories[one.key])) for one in first]
    chapters = []
    for story in STORIES:
        own = [one for one in placed if one.key == story.key and one not in first]
        own.sort(key=lambda one: one.variant == FINAL)
        pictures = [album.picture(one, story) for one in own]
        above = next((picture for other, picture in shown if other is story), None)
        if pictures:
            chapters.append({"story": story, "pictures": pictures, "above": above})
    return shown, chapters


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested object as (dotted name, text) rows."""
    if not isinstance(value, Mapping):
        return [(prefix or "value", number(value))]
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        rows += _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return rows
