"""The figures of a run, embedded in the page as data."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from urllib.parse import quote

from optdyn.experiments.files import read_bytes
from optdyn.figures.registry import FIGURES, Placed, place
from optdyn.figures.style import STYLE, readable
from optdyn.report.contents import Contents
from optdyn.report.markup import anchor

KINDS = {".svg": "image/svg+xml", ".png": "image/png"}
SVG_LIMIT = 250_000
"""Bytes up to which a figure is embedded as SVG even where the PNG is smaller."""
CSS_PIXELS_PER_INCH = 96
PAGE_LIMIT = 7_500_000
"""Bytes of embedded figures on a page; those beyond it are linked."""


def figures_by_task(contents: Contents) -> dict[str | None, str]:
    """The figures' HTML under each task, None for those that span the tasks."""
    order = {key: position for position, key in enumerate(FIGURES)}
    placed = [(place(name, contents.tasks), name) for name in contents.figures]
    placed.sort(key=lambda pair: (order.get(pair[0].figure, len(order)), pair[1]))
    grouped: dict[str | None, str] = {}
    room = PAGE_LIMIT
    for where, name in placed:
        address, width = _embedded(contents.path / "figures", name, room)
        room -= len(address)
        grouped[where.task] = grouped.get(where.task, "") + _figure(
            contents.path, name, where, address, width
        )
    return grouped


def _figure(run: Path, name: str, where: Placed, address: str, width: str) -> str:
    """One figure with its caption and links to its files in the run folder."""
    title = where.description.title + (f" ({where.variant})" if where.variant else "")
    links = ", ".join(
        f'<a href="figures/{quote(name)}{suffix}">{label}</a>'
        for suffix, label in ((".json", "numbers"), (".svg", "SVG"), (".png", "PNG"))
        if (run / "figures" / f"{name}{suffix}").is_file()
    )
    task = f", {readable(where.task)}" if where.task else ""
    image = (
        f'<img src="{address}"{width} alt="{escape(title + task)}">'
        if address
        else '<p class="missing">Not embedded, to keep this page small: see the files.</p>'
    )
    return (
        f'<figure id="{anchor(name)}">\n{image}\n<figcaption><strong>{escape(title)}.</strong> '
        f'{escape(where.description.caption)} <span class="files">Files: {links}.</span>'
        "</figcaption>\n</figure>\n"
    )


def _embedded(folder: Path, name: str, room: int) -> tuple[str, str]:
    """The figure as a ``data:`` address of at most ``room`` bytes, and its width attribute.

    SVG where it is small, else the smaller of the two; empty where there is no room.
    """
    sizes = {
        suffix: path.stat().st_size
        for suffix in KINDS
        if (path := folder / f"{name}{suffix}").is_file()
    }
    best = min(sizes, key=lambda suffix: sizes[suffix])
    suffix = ".svg" if sizes.get(".svg", SVG_LIMIT + 1) <= SVG_LIMIT else best
    if sizes[suffix] * 4 / 3 + 100 > room:
        return "", ""
    content = read_bytes(folder / f"{name}{suffix}")
    address = f"data:{KINDS[suffix]};base64,{base64.b64encode(content).decode()}"
    if suffix == ".svg":
        return address, ""
    # A PNG does not tell a browser its size on paper; its header has the width in pixels.
    pixels = int.from_bytes(content[16:20], "big")
    return address, f' width="{round(pixels * CSS_PIXELS_PER_INCH / STYLE["savefig.dpi"])}"'
