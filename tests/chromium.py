"""Where a Chromium is, for the tests of pages."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
HOW_TO_INSTALL = (
    "no Chromium found: apt-get install chromium, or playwright install chromium, or set "
    "CHROME to its path"
)


def chromium_path() -> str | None:
    """``CHROME``, one on the path, or Playwright's own; None where there is none."""
    downloaded = Path.home().joinpath(".cache", "ms-playwright").glob("chromium-*/chrome-*/chrome")
    found = [os.environ.get("CHROME"), *map(shutil.which, NAMES), *map(str, downloaded)]
    return next((path for path in found if path and Path(path).exists()), None)
