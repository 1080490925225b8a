"""The user's folder for what can be made again: compiled programs, native code."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``optdyn`` under `XDG_CACHE_HOME`, else under ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "optdyn"
