"""The page's own files, and the only scripts that it may run."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import zlib
from collections.abc import Sequence
from typing import Any

from optdyn.study.page._explorer_data import as_script

STYLES = ("page.css", "explorer.css")
THEME = "theme.js"
UNPACK = "unpack.js"
EXPLORER = ("modal.js", "charts.js", "training.js", "mechanisms.js", "searches.js", "explorer.js")


def asset(name: str) -> str:
    """The text of a file in ``assets/``."""
    return _text("optdyn.study.page", "assets", name)


def page_scripts(data: dict[str, Any]) -> list[str]:
    """The scripts that a page which shows ``data`` runs as they stand, in this order."""
    return [asset(THEME), *([asset(UNPACK)] if data["tasks"] else [])]


def packed_scripts(data: dict[str, Any]) -> list[str]:
    """Those that ``unpack.js`` then runs, in this order, where there is something to draw."""
    plotly = _text("plotly", "package_data", "plotly.min.js")
    return [plotly, *map(asset, EXPLORER)] if data["tasks"] else []


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
    small = base64.b64encode(zlib.compress(_enclosed(text).encode(), 9)).decode()
    return f'<script type="text/plain" data-packed>{small}</script>'


def data_script(data: dict[str, Any]) -> str:
    """``data`` as an element that the explorer reads."""
    if not data["tasks"]:
        return ""
    return f'<script type="application/json" id="explorer-data">{as_script(data)}</script>'


def _enclosed(text: str) -> str:
    return f"\n{text}\n"


def _text(package: str, *path: str) -> str:
    return importlib.resources.files(package).joinpath(*path).read_text(encoding="utf-8")
