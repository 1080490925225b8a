"""The figures of a run, embedded in the page as data."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from optdyn.errors import UserError
from optdyn.figures._registry import FIGURES, Placed, place
from optdyn.figures._style import STYLE, readable
from optdyn.runs._store import read_bytes
from optdyn.study.page._contents import Contents
from optdyn.study.page._markup import anchor

FINAL = "final"
LEVELS = 32
"""Of each of red, green and blue in the copies that the page holds: no step between two shows."""
CSS_PIXELS_PER_INCH = 96
PAGE_LIMIT = 3_500_000
"""Characters of embedded figures on a page; those beyond it are linked."""


def figures_by_task(contents: Contents) -> dict[str | None, str]:
    """The figures' HTML under each task, None for those that span the tasks."""
    order = {key: position for position, key in enumerate(FIGURES)}
    placed = [(place(name, contents.tasks), name) for name in contents.figures]
    # The last checkpoint's after the stage's.
    placed.sort(
        key=lambda p: (order.get(p[0].figure, len(order)), p[0].variant == FINAL, p[1]),
    )
    grouped: dict[str | None, str] = {}
    room = PAGE_LIMIT
    for where, name in placed:
        address, width = _embedded(contents.path / "figures", name)
        if len(address) > room:
            address, width = "", ""
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
        else '<p class="missing">Not embedded (too large or not readable): see the files.</p>'
    )
    return (
        f'<figure id="{anchor(name)}">\n{image}\n<figcaption><strong>{escape(title)}.</strong> '
        f'{escape(where.description.caption)} <span class="files">Files: {links}.</span>'
        "</figcaption>\n</figure>\n"
    )


def _embedded(folder: Path, name: str) -> tuple[str, str]:
    """The figure as a ``data:`` address and its width attribute.

    A copy of the PNG with few levels of each colour; the SVG where that is smaller or
    there is no PNG.
    """
    svg, png = folder / f"{name}.svg", folder / f"{name}.png"
    drawing = read_bytes(svg) if svg.is_file() else None
    try:
        copy, pixels = _few_colours(read_bytes(png))
    except (UserError, OSError):  # absent, unreadable or no picture
        return (_address("image/svg+xml", drawing) if drawing else ""), ""
    if drawing is not None and len(drawing) < len(copy):
        return _address("image/svg+xml", drawing), ""
    # A bitmap does not tell a browser its size on paper.
    width = round(pixels * CSS_PIXELS_PER_INCH / STYLE["savefig.dpi"])
    return _address("image/webp", copy), f' width="{width}"'


def _few_colours(png: bytes) -> tuple[bytes, int]:
    """A PNG as lossless WebP with `LEVELS` of each colour, and its width in pixels."""
    step = 255 / (LEVELS - 1)
    with Image.open(io.BytesIO(png)) as image:
        flat = image.convert("RGB").point([round(round(v / step) * step) for v in range(256)] * 3)
    buffer = io.BytesIO()
    flat.save(buffer, "WEBP", lossless=True, quality=80, method=3)
    return buffer.getvalue(), flat.width


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
