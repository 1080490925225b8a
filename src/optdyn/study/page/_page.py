"""Put the page together from a run folder's contents."""

from __future__ import annotations

import contextlib
import string
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from optdyn.figures._style import readable
from optdyn.runs._store import write_bytes
from optdyn.study._shipped import shipped_part
from optdyn.study.page._contents import Contents, read_contents
from optdyn.study.page._explorer import explorer
from optdyn.study.page._explorer_data import explorer_data
from optdyn.study.page._markup import (
    anchor,
    body,
    flat,
    group_row,
    losses_table,
    missing,
    number,
    searches_rows,
    section,
    table,
)
from optdyn.study.page._pictures import figures_by_task
from optdyn.study.page._scripts import (
    STYLES,
    asset,
    data_script,
    packed,
    packed_scripts,
    page_scripts,
    policy,
    script,
)

REPORT = "report.html"
TRAINING_HEAD = (
    "Task",
    "Meta-steps",
    "First",
    "Last",
    "Lowest",
    "Exploded problems",
    "Seconds",
    "Meta-steps/s",
    "Units",
    "Batch",
    "Origin",
)
SEARCHES_HEAD = (
    "Architecture",
    "Task options",
    "Batch",
    "Draws × meta-steps",
    "Best meta-objective",
    "At learning rate",
    "Full length",
    "Best meta-objective",
    "At learning rate",
)
HERE = "Trained and tuned in this run"
SHIPPED = "Weights and search tables shipped with the package, evaluated in this run"
LEDGER_HEAD = ("Finding", "Result", "Measured", "Threshold", "Source")


def build_report(run: Path) -> Path:
    """Write ``report.html`` into the run folder and return its path.

    One page that needs no other file and no network: the claims ledger, an
    explorer (see `optdyn.study.page._explorer_data`), the figures of each task, settings,
    versions and timings, from ``config.json``, ``claims.json``, ``timings.json``,
    ``figures/`` and the tasks' training logs, losses, search tables, analysis and
    mechanisms. A part that is missing is named as such. Raises `UserError` when the
    folder does not exist or cannot be written.
    """
    contents = read_contents(run)
    data = explorer_data(run, contents.tasks)
    sections = _sections(contents, data)
    navigation = "\n".join(
        f'<li><a href="#{anchor(key)}">{escape(title)}</a></li>' for key, title, _ in sections
    )
    scripts, later = page_scripts(data), packed_scripts(data)
    page = string.Template(asset("template.html")).substitute(
        policy=policy([*scripts, *later]),
        style="\n".join(map(asset, STYLES)),
        scripts="\n".join([data_script(data), *map(packed, later), *map(script, scripts)]),
        title=escape(f"optdyn report: {run.resolve().name}"),
        summary=_summary(contents.claims),
        origins=_origins(contents),
        navigation=navigation,
        sections="\n".join(section(*each) for each in sections),
    )
    # JSON can spell half a surrogate pair, which no file can hold.
    write_bytes(run / REPORT, page.encode(errors="replace"))
    return run / REPORT


def _sections(contents: Contents, data: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Each section's id, title and HTML, in the order of the page."""
    figures = figures_by_task(contents)
    sections = [("claims", "Claims", _claims(contents)), ("explorer", "Explorer", explorer(data))]
    if not figures:
        sections.append(("figures", "Figures", missing("figures", contents.faults["figures"])))
    for task in (None, *contents.tasks):
        if task in figures:
            title = f"Figures: {readable(task)}" if task else "Figures: all tasks"
            made = _made_here(contents, task)
            note = "" if made is None else f'<p class="note">{HERE if made else SHIPPED}.</p>\n'
            sections.append((f"figures-{task or 'all'}", title, note + figures[task]))
    return [
        *sections,
        ("losses", "Loss along the way", _losses(contents)),
        ("training", "Meta-training", _training(contents)),
        ("searches", "Architectures and meta learning rates tried", _searches(contents)),
        ("settings", "Settings", _settings(contents)),
        ("versions", "Versions", _versions(contents)),
        ("timings", "Timings", _timings(contents)),
    ]


def _summary(claims: Sequence[dict[str, Any]]) -> str:
    """How many claims hold, and links to those that do not."""
    if not claims:
        return "This run has no claims ledger yet."
    passed = sum(claim.get("passed") is True for claim in claims)
    failed = [claim for claim in claims if claim.get("passed") is not True]
    links = ", ".join(
        f'<a href="#{_claim_id(claim)}">{escape(str(claim.get("id", "unnamed")))}</a>'
        for claim in failed
    )
    rest = f" Not passed or not measured: {links}." if failed else ""
    return f"<strong>{passed} of {len(claims)}</strong> claims passed.{rest}"


def _made_here(contents: Contents, task: str | None) -> bool | None:
    """Whether a task was trained in this run and not taken from the package; None if unknown."""
    settings = _settings_told(contents)
    return None if f"train/{task}" not in settings else shipped_part(str(task)) not in settings


def _settings_told(contents: Contents) -> dict[str, Any]:
    """The resolved settings; none where the run's file has no such object."""
    settings = contents.config.get("settings")
    return settings if isinstance(settings, dict) else {}


def _origins(contents: Contents) -> str:
    """A paragraph: which tasks were trained in this run, and which ship."""
    words = []
    for told, here in ((HERE, True), (SHIPPED, False)):
        tasks = [readable(t) for t in contents.tasks if _made_here(contents, t) is here]
        if tasks:
            words.append(f"{told}: {escape(', '.join(tasks))}.")
    return f"<p>{' '.join(words)}</p>" if words else ""


def _claims(contents: Contents) -> str:
    """The ledger, grouped by task."""
    if not contents.claims:
        return missing("the claims ledger", contents.faults.get("claims", "it is empty"))
    groups: dict[str, list[dict[str, Any]]] = {}
    for claim in contents.claims:
        groups.setdefault(str(claim.get("task") or ""), []).append(claim)
    named = len(groups) > 1 or "" not in groups
    bodies = []
    for task, claims in groups.items():
        heading = _heading(task, claims)
        group = group_row(heading, len(LEDGER_HEAD)) if named else ""
        bodies.append(f"<tbody>\n{group}{''.join(map(_claim, claims))}</tbody>\n")
    caption = "Each finding with the number measured in this run and what it was tested against"
    return table(caption, LEDGER_HEAD, bodies)


def _heading(task: str, claims: Sequence[dict[str, Any]]) -> str:
    """A task's name, and where its weights came from if every claim says the same."""
    found = {claim["origin"] for claim in claims if isinstance(claim.get("origin"), str)}
    origin = f": {found.pop()}" if len(found) == 1 else ""
    return (readable(task) if task else "all tasks") + origin


def _claim(claim: dict[str, Any]) -> str:
    """One row of the ledger; the result is told by symbol and word, not by colour alone."""
    kind, result = _result(claim)
    note = f'<p class="note">{escape(number(claim["note"]))}</p>' if claim.get("note") else ""
    return (
        f'<tr id="{_claim_id(claim)}"><th scope="row">{escape(number(claim.get("statement")))}'
        f"{note}<code>{escape(str(claim.get('id', '')))}</code></th>"
        f'<td class="{kind}">{result}</td>'
        f'<td data-label="Measured">{escape(number(claim.get("measured")))}</td>'
        f'<td data-label="Threshold">{escape(number(claim.get("threshold")))}</td>'
        f'<td data-label="Source">{escape(number(claim.get("source")))}</td></tr>\n'
    )


def _result(claim: dict[str, Any]) -> tuple[str, str]:
    """The class and the words of a claim's outcome."""
    if claim.get("passed") is True:
        return "passed", "✓ passed"
    if claim.get("passed") is False:
        return "failed", "✗ not passed"
    return "unknown", "? not measured"


def _claim_id(claim: dict[str, Any]) -> str:
    return anchor(f"claim-{claim.get('task') or 'general'}-{claim.get('id', '')}")


def _losses(contents: Contents) -> str:
    """A table a task: each optimizer's loss after some steps, mean and median over problems."""
    tables = [losses_table(readable(task), told) for task, told in contents.losses.items() if told]
    if not tables:
        return missing("losses", contents.faults.get("losses", "no task has been evaluated"))
    return "\n".join(tables)


def _training(contents: Contents) -> str:
    """One row a task: how its meta-training went, how long it took and what was trained."""
    settings = _settings_told(contents)
    rows = [
        (*_training_row(task, log), *_trained(settings, task))
        for task, log in contents.training.items()
    ]
    if not rows:
        return missing("training logs", "no task folder holds a training.jsonl")
    caption = "Meta-objective and wall-clock time of meta-training, from the training logs"
    return table(caption, TRAINING_HEAD, [body(rows)])


def _training_row(task: str, log: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    def column(name: str) -> list[float]:
        values = (row.get(name) for row in log)
        return [value for value in values if isinstance(value, int | float)]

    values, seconds = column("meta_objective"), sum(column("seconds"))
    ends = (values[0], values[-1], min(values)) if values else (None, None, None)
    rate = len(log) / seconds if seconds else None
    return (
        readable(task),
        str(len(log)),
        *map(number, ends),
        str(int(sum(column("exploded")))),
        f"{seconds:,.0f}",
        number(rate),
    )


def _trained(settings: dict[str, Any], task: str) -> tuple[str, str, str]:
    """Units and batch size of a task's meta-training, and whether it was done in this run."""
    units, batch = None, None
    with contextlib.suppress(KeyError, TypeError):
        training = settings[f"train/{task}"]
        units, batch = training["architecture"]["units"], training["protocol"]["batch_size"]
    shipped = shipped_part(task) in settings
    return number(units), number(batch), "shipped with the package" if shipped else "this run"


def _searches(contents: Contents) -> str:
    """One row a search of the meta learning rate, grouped by task."""
    bodies = [
        body(searches_rows(told), readable(task), columns=len(SEARCHES_HEAD))
        for task, told in contents.searches.items()
        if told
    ]
    if not bodies:
        return missing("searches", contents.faults.get("searches", "none was made or ships"))
    caption = (
        "Random searches of the meta learning rate, one row an architecture: the best of the "
        "short trainings, and the best of those trained at full length"
    )
    return table(caption, SEARCHES_HEAD, bodies)


def _settings(contents: Contents) -> str:
    """The resolved settings, a group of rows for each part of the run."""
    settings = _settings_told(contents)
    if not settings:
        return missing("settings", contents.faults.get("settings", "config.json lists none"))
    groups = [
        body(flat(part if isinstance(part, dict) else {"value": part}), name, columns=2)
        for name, part in settings.items()
    ]
    return table("Resolved settings, from config.json", ("Setting", "Value"), groups)


def _versions(contents: Contents) -> str:
    versions = contents.config.get("versions")
    if not isinstance(versions, dict) or not versions:
        return missing("versions", contents.faults.get("settings", "config.json lists none"))
    return table("Software that the run began with", ("Part", "Version"), [body(flat(versions))])


def _timings(contents: Contents) -> str:
    if not contents.timings:
        return missing("timings", contents.faults.get("timings", "timings.json is empty"))
    head = ("Part of the run", "Seconds")
    return table("Wall-clock time, from timings.json", head, [body(flat(contents.timings))])
