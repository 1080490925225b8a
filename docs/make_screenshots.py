"""Make the pictures of a report's first screen: `python docs/make_screenshots.py REPORT`.

REPORT is the report.html of a study. Needs Chromium (``CHROME`` names it, else it is looked for
on the path).
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
SCREENS = {
    "report": (1280, 900, "light"),
    "report_dark": (1280, 900, "dark"),
    "report_phone": (400, 800, "light"),
}
SETTLED = 2500
"""Milliseconds after which the page has drawn itself."""


def main(report: Path) -> None:
    """Write docs/images/report*.png."""
    chrome = os.environ.get("CHROME") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chrome, args=["--no-sandbox"])
        for name, (width, height, colours) in SCREENS.items():
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme=colours
            )
            page.goto(report.resolve().as_uri())
            page.wait_for_timeout(SETTLED)
            page.screenshot(path=str(IMAGES / f"{name}.png"))
            page.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
