"""The page's own files, and the only scripts that it may run."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import zlib
from collections.abc import Sequence
from typing import Any

STYLES = ("page.css", "explorer.css")
OWN = "page.js"
UNPACK = "unpack.js"
EXPLORER = ("modal.js", "charts.js", "training.js", "mechanisms.js", "searches.js", "explorer.js")


def asset(name: str) -> str:
    """The text of a file in ``assets/``."""
    return _text("optdyn.study.page", "assets", name)


def page_scripts(data: dict[str, Any]) -> list[str]:
    """The scripts that a page which shows ``data`` runs as they stand, in this order."""
    return [asset(name) for name in (OWN, *((UNPACK,) if data["tasks"] else ()))]


def packed_scripts(data: dict[str, Any]) -> list[str]:
    """Those that ``unpack.js`` then runs, in this order, where there is something to draw."""
    plotly = _text("plotly", "package_data", "plotly.min.js")
    return [plotly, *map(asset, EXPLORER)] if data["tasks"] else []


def policy(scripts: Sequence[str]) -> str:
    """A content security policy: these scripts and no others, and nothing from any network."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in scripts
    )
    return (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src {hashes}; base-uri 'none'; form-action 'none'"
    )


def packed(text: str) -> str:
    """``text`` as ``unpack.js`` makes a script of it."""
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _text(package: str, *path: str) -> str:
    return importlib.resources.files(package).joinpath(*path).read_text(encoding="utf-8")
