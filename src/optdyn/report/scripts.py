"""The page's own files, and the only scripts that it may run."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import zlib
from collections.abc import Sequence
from typing import Any

from optdyn.report.explorer_data import as_script

STYLES = ("page.css", "explorer.css")
THEME = "theme.js"
EXPLORER = (
    "unpack.js", "modal.js", "charts.js", "training.js", "mechanisms.js", "searches.js",
    "explorer.js",
)  # fmt: skip


def asset(name: str) -> str:
    """The text of a file in ``assets/``."""
    return _text("optdyn.report", "assets", name)


def page_scripts(data: dict[str, Any]) -> list[str]:
    """The scripts of a page that shows ``data``, in the order in which they run."""
    return [asset(THEME), *(map(asset, EXPLORER) if data["tasks"] else ())]


def packed_scripts(data: dict[str, Any]) -> list[str]:
    """Scripts that others unpack and run: Plotly, where there is something to draw."""
    return [_text("plotly", "package_data", "plotly.min.js")] if data["tasks"] else []


def policy(scripts: Sequence[str]) -> str:
    """A content security policy: these scripts and no others, and nothing from any network."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in map(_enclosed, scripts)
    )
    return (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src {hashes}; base-uri 'none'; form-action 'none'"
    )


def script(text: str) -> str:
    """``text`` as an element that runs it."""
    return f"<script>{_enclosed(text)}</script>"


def packed(text: str) -> str:
    """``text`` as an element from which ``unpack.js`` makes a script."""
    content = _enclosed(text).encode()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    small = base64.b64encode(deflate.compress(content) + deflate.flush()).decode()
    return f'<script type="text/plain" data-size="{len(content)}">{small}</script>'


def data_script(data: dict[str, Any]) -> str:
    """``data`` as an element that the explorer reads."""
    if not data["tasks"]:
        return ""
    return f'<script type="application/json" id="explorer-data">{as_script(data)}</script>'


def _enclosed(text: str) -> str:
    return f"\n{text}\n"


def _text(package: str, *path: str) -> str:
    return importlib.resources.files(package).joinpath(*path).read_text(encoding="utf-8")
