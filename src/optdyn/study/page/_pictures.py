"""The figures of a run, embedded in the page as data."""

from __future__ import annotations

import base64
import dataclasses
import io
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from optdyn.errors import UserError
from optdyn.figures._style import STYLE, readable
from optdyn.runs._store import read_bytes
from optdyn.study._stories import Placed, Story

LEVELS = 32
"""Of each of red, green and blue in the copies that the page holds: no step between two shows."""
CSS_PIXELS_PER_INCH = 96
SIZES = ((900, "widest"), (700, "wide"))
"""The classes of pictures from so many CSS pixels on, which take more of the page's width."""
FILES = ((".json", "numbers"), (".svg", "SVG"), (".png", "PNG"), (".gif", "GIF"))


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure of one task (or of all), as the page shows it.

    ``address``: the picture as data, "" where there is none or no room is left. ``size``: its
    class, one of `SIZES`.
    """

    id: str
    alt: str
    words: str
    address: str
    width: int | None
    size: str
    files: list[tuple[str, str]]


class Album:
    """Embeds pictures until ``room`` characters are used up; those beyond it are linked."""

    def __init__(self, folder: Path, room: int) -> None:
        self._folder = folder
        self._room = room

    def picture(self, placed: Placed, story: Story) -> Picture:
        """One picture of a story, with the addresses of its files in the run folder."""
        address, width = _embedded(self._folder, placed.name)
        if len(address) > self._room:
            address = ""
        self._room -= len(address)
        words = ", ".join(filter(None, (readable(placed.task), placed.note)))
        title = f"{story.number}. {story.title}" if story.number else story.title
        return Picture(
            id=placed.name,
            alt=f"{title}: {words}" if words else title,
            words=words,
            address=address,
            width=width,
            size=next((name for least, name in SIZES if (width or 0) >= least), ""),
            files=[
                (f"{self._folder.name}/{quote(placed.name)}{suffix}", label)
                for suffix, label in FILES
                if (self._folder / f"{placed.name}{suffix}").is_file()
            ],
        )


def _embedded(folder: Path, name: str) -> tuple[str, int | None]:
    """The figure as a ``data:`` address, and its width in CSS pixels where that is known.

    A copy of the PNG with few levels of each colour; the SVG where that is smaller or
    there is no PNG.
    """
    svg, png = folder / f"{name}.svg", folder / f"{name}.png"
    drawing = read_bytes(svg) if svg.is_file() else None
    try:
        copy, pixels = _few_colours(read_bytes(png))
    except (UserError, OSError):  # absent, unreadable or no picture
        return (_address("image/svg+xml", drawing) if drawing else ""), None
    width = round(pixels * CSS_PIXELS_PER_INCH / STYLE["savefig.dpi"])
    if drawing is not None and len(drawing) < len(copy):
        return _address("image/svg+xml", drawing), width
    return _address("image/webp", copy), width


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
