"""Put the page together from a run's results, claims and figures."""

from __future__ import annotations

import dataclasses
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
from optdyn.runs._results import SearchResult
from optdyn.runs._run_folder import RunFolder, read_config
from optdyn.runs._store import write_bytes
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


@dataclasses.dataclass(frozen=True, eq=False)
class Contents:
    """What the page shows. ``settings``, ``versions`` and ``timings``: as the run has them."""

    path: Path
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    timings: Mapping[str, Any]
    results: Sequence[TaskResults]
    claims: Sequence[Claim]
    figures: Sequence[Placed]

    @classmethod
    def read(
        cls,
        run: RunFolder,
        results: Sequence[TaskResults],
        claims: Sequence[Claim],
        figures: Sequence[Placed],
    ) -> Contents:
        """These, with the run's settings, versions and timings."""
        config = read_config(run.path)
        try:
            timings: Mapping[str, Any] = read_timings(run.path)
        except UserError:  # a single command leaves none
            timings = {}
        return cls(run.path, config.settings, config.versions, timings, results, claims, figures)


def write_page(contents: Contents, path: Path) -> None:
    """Write the page to ``path``: one file that needs no other and no network.

    Findings, Fig. 9 and Fig. 7b and every verdict first, then the explorer, the figures under
    the paper's numbers, and folded the ledger, tables and settings.
    Raises `UserError` where it cannot be written.
    """
    data = explorer_data(contents.results)
    scripts, later = page_scripts(data), packed_scripts(data)
    told = as_script(data)
    small = [packed(script) for script in later]
    room = LARGEST - MARKUP_ROOM - len(told) - sum(map(len, small))
    counts = Counter(claim.verdict for claim in contents.claims)
    first, chapters = _illustrations(contents, Album(contents.path / FIGURES, room))
    page = (
        _environment()
        .get_template("page.html")
        .render(
            title=f"optdyn report: {contents.path.resolve().name}",
            policy=policy([*scripts, *later]),
            style="\n".join(map(asset, STYLES)),
            data=told if data["tasks"] else "",
            packed=small,
            scripts=scripts,
            findings=findings(contents.results, contents.claims),
            verdicts=[(verdict, counts[verdict]) for verdict in Verdict if counts[verdict]],
            origins=_origins(contents),
            overview=_overview(contents),
            first=first,
            chapters=chapters,
            ledger=_ledger(contents),
            figure_of=lambda key, task: _figure_of(contents.figures, key, task),
            claim_id=lambda claim: re.sub(r"[^A-Za-z0-9_.-]+", "-", f"claim-{claim.id}"),
            signs=SIGNS,
            numbers={story.key: story.number for story in STORIES},
            losses=[(r.title, r.losses) for r in contents.results if r.losses],
            training=[_training_row(r) for r in contents.results if r.training],
            searches=[
                (r.title, _searches_rows(r.searches)) for r in contents.results if r.searches
            ],
            settings=[(name, _flat(part)) for name, part in contents.settings.items()],
            versions=_flat(contents.versions),
            timings=_flat(contents.timings),
        )
    )
    # JSON can spell half a surrogate pair, which no file can hold.
    write_bytes(path, page.encode(errors="replace"))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("optdyn.study.page", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, readable=readable)
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


def _overview(contents: Contents) -> dict[str, Any]:
    """The grid of tasks and claims: a row of the table of claims under each task."""
    tasks = list(dict.fromkeys(claim.task for claim in contents.claims))
    rows: dict[str, dict[str, Any]] = {}
    for claim in contents.claims:
        row = rows.setdefault(claim.row, {"label": claim.label, "cells": {t: [] for t in tasks}})
        row["cells"][claim.task].append(claim)
    return {"tasks": tasks, "rows": list(rows.values())}


def _ledger(contents: Contents) -> list[tuple[str, str, list[Claim]]]:
    """By task: its name, where its weights came from if every claim says the same, its claims."""
    groups = []
    for task, group in itertools.groupby(contents.claims, lambda claim: claim.task):
        claims = list(group)
        origins = {claim.origin for claim in claims}
        groups.append((readable(task), origins.pop() if len(origins) == 1 else "", claims))
    return groups


def _figure_of(figures: Sequence[Placed], key: str, task: str) -> str:
    """The id of the figure ``key`` of a task, or of all tasks; "" where there is none."""
    own = [one for one in figures if one.key == key]
    found = [one for one in own if one.task in ("", task)] or ([] if task else own)
    return found[0].name if found else ""


def _illustrations(
    contents: Contents, album: Album
) -> tuple[list[tuple[Story, Picture]], list[dict[str, Any]]]:
    """The first screen's figures, and the chapters of all the others."""
    stories = {story.key: story for story in STORIES}
    placed = [one for one in contents.figures if one.key in stories]
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


def _origins(contents: Contents) -> str:
    """Which tasks were trained in this run, and which ship."""
    words = []
    for told, here in ((HERE, True), (SHIPPED, False)):
        tasks = [r.title for r in contents.results if r.card and r.shipped is not here]
        if tasks:
            words.append(f"{', '.join(tasks)}: {told}")
    return f"{'. '.join(words)}." if words else ""


def _training_row(result: TaskResults) -> tuple[Any, ...]:
    """How a task's meta-training went, how long it took and what was trained."""
    log = result.training or []
    values, seconds = [row.meta_objective for row in log], sum(row.seconds for row in log)
    return (
        result.title, len(log), values[0], values[-1], min(values),
        sum(row.exploded for row in log), f"{seconds:,.0f}",
        len(log) / seconds if seconds else None,
        result.card and result.card.architecture.units,
        result.card and result.card.protocol.batch_size,
        "shipped" if result.shipped else "this run",
    )  # fmt: skip


def _searches_rows(searches: Sequence[SearchResult]) -> list[tuple[Any, ...]]:
    """Searches of the meta learning rate as rows, the best architecture first."""
    rows = []
    for search in searches:
        settings, tried = search.settings, search.rows
        architecture, encoding = settings.architecture, settings.architecture.encoding
        horizon = min(row.num_meta_steps for row in tried)
        short = [row for row in tried if row.num_meta_steps == horizon]
        full = [row for row in tried if row.num_meta_steps > horizon]
        best = min(short, key=lambda row: row.meta_objective)
        winner = min(full, key=lambda row: row.meta_objective) if full else None
        cells = (
            f"{architecture.cell_name}, {architecture.units} units, {encoding.kind} "
            f"(gain {encoding.gain:g}), output scale {architecture.output_scale:g}",
            settings.task_options,
            settings.protocol["batch_size"],
            f"{len(short)} × {horizon}",
            best.meta_objective,
            best.learning_rate,
            f"{len(full)} × {full[0].num_meta_steps}" if full else None,
            winner and winner.meta_objective,
            winner and winner.learning_rate,
        )
        rows.append(((winner or best).meta_objective, cells))
    return [cells for _, cells in sorted(rows, key=lambda row: row[0])]


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested object as (dotted name, text) rows."""
    if not isinstance(value, Mapping):
        return [(prefix or "value", number(value))]
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        rows += _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return rows
