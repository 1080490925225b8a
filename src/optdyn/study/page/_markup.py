"""Small pieces of HTML; every text that comes from outside is escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from optdyn.figures._style import readable


def number(value: Any) -> str:
    """A measured or allowed value as text: numbers to four digits, lists and objects flat."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {number(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(number(item) for item in value)
    return str(value)


def anchor(name: str) -> str:
    """``name`` as an id that a link can point to."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)


def section(identifier: str, title: str, body: str) -> str:
    """A section with a heading."""
    return (
        f'<section id="{anchor(identifier)}" aria-labelledby="{anchor(identifier)}-title">\n'
        f'<h2 id="{anchor(identifier)}-title">{escape(title)}</h2>\n{body}\n</section>'
    )


def missing(what: str, why: str) -> str:
    """A note in place of a part that is not there."""
    return f'<p class="missing">Not available: {escape(what)} ({escape(why)}).</p>'


def table(caption: str, head: Sequence[str], bodies: Iterable[str]) -> str:
    """A captioned table that scrolls by keyboard where it is wider than the page."""
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0">\n'
        f"<table>\n<caption>{escape(caption)}</caption>\n"
        f"<thead><tr>{cells}</tr></thead>\n{''.join(bodies)}\n</table>\n</div>"
    )


def body(rows: Iterable[Sequence[str]], heading: str = "", columns: int = 0) -> str:
    """A group of rows of plain text, the first cell of each its header."""
    group = group_row(heading, columns) if heading else ""
    lines = (
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return f"<tbody>\n{group}{chr(10).join(lines)}\n</tbody>"


def group_row(heading: str, columns: int) -> str:
    """A row across all ``columns`` that names the rows below it."""
    return (
        f'<tr class="group"><th scope="rowgroup" colspan="{columns}">{escape(heading)}</th></tr>\n'
    )


def losses_table(task: str, told: dict[str, Any]) -> str:
    """``losses_at_steps.json`` as a table: an optimizer's mean and median under each step."""
    rows = [
        (readable(name), kind, *(_loss(value) for value in values))
        for name, kinds in told["optimizers"].items()
        for kind, values in kinds.items()
    ]
    head = ("Optimizer", "Over problems", *(f"Step {step}" for step in told["steps"]))
    caption = f"{task}: loss on the same {told['problems']} test problems"
    return table(caption, head, [body(rows)])


def _loss(value: float | None) -> str:
    return "diverged" if value is None else number(value)


def searches_rows(searches: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Searches of the meta learning rate as rows, the best architecture first."""
    rows = []
    for told in searches:
        settings, found = told["settings"], told["rows"]
        architecture, encoding = settings["architecture"], settings["architecture"]["encoding"]
        horizon = min(row["num_meta_steps"] for row in found)
        short = [row for row in found if row["num_meta_steps"] == horizon]
        full = [row for row in found if row["num_meta_steps"] > horizon]
        best = min(short, key=lambda row: row["meta_objective"])
        best_full = min(full, key=lambda row: row["meta_objective"]) if full else None
        cells = (
            f"{architecture['cell']}, {architecture['units']} units, {encoding['kind']} "
            f"(gain {encoding['gain']:g}), output scale {architecture['output_scale']:g}",
            number(settings["task_options"]) or "–",
            number(settings["protocol"]["batch_size"]),
            f"{len(short)} × {horizon}",
            number(best["meta_objective"]),
            number(best["learning_rate"]),
            f"{len(full)} × {full[0]['num_meta_steps']}" if full else "–",
            number(best_full["meta_objective"]) if best_full else "–",
            number(best_full["learning_rate"]) if best_full else "–",
        )
        rows.append(((best_full or best)["meta_objective"], cells))
    return [cells for _, cells in sorted(rows)]


def flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested object as (dotted name, text) rows."""
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        rows += flat(item, name) if isinstance(item, dict) and item else [(name, number(item))]
    return rows
