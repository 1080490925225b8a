"""The user's folder for what can be made again: compiled programs, native code."""

from __future__ import annotations

import os
from pathlib import Path

from optdyn.errors import UserError


def cache_folder() -> Path:
    """``optdyn`` under `XDG_CACHE_HOME`, else under ``~/.cache``.

    Raises `UserError` for a user without a home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "optdyn"
    try:
        return Path.home() / ".cache" / "optdyn"
    except RuntimeError:
        raise UserError("HOME: is not set (a folder, or set XDG_CACHE_HOME)") from None
