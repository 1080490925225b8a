"""A headless browser, and pages in it that nothing can leave."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, sync_playwright

from chromium import HOW_TO_INSTALL, chromium_path
from helpers import SMALL_MOONS
from optdyn.runs import explain_task, open_run
from optdyn.study import report as make_report

ARGUMENTS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
"""Containers have no sandbox; a machine without a GPU draws 3-D in software."""
VIEWPORT = {"width": 1100, "height": 900}
PATIENCE = 180_000
"""Milliseconds: a machine may be busy."""
Opener = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        path = chromium_path()
        if path is None:
            pytest.fail(HOW_TO_INSTALL, pytrace=False)
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tiny_study: Path, small_moons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study of three tasks, one of them with the weights that ship."""
    run = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(tiny_study, run)
    shutil.copytree(small_moons / "two_moons", run / "two_moons")
    with open_run(run) as opened:
        explain_task(opened, *SMALL_MOONS)
        return make_report(opened)


@pytest.fixture(scope="module")
def open_page(browser: Browser) -> Iterator[Opener]:
    """Opens a report; afterwards nothing may have left it, nor an error been told."""
    with contextlib.ExitStack() as stack:
        faults: list[str] = []

        def opened(report: Path, **context: Any) -> Page:
            where = browser.new_context(**{"viewport": VIEWPORT, **context})
            stack.callback(where.close)
            where.set_default_timeout(PATIENCE)

            def judge(route: Route) -> None:
                if route.request.url == report.as_uri():
                    route.continue_()
                else:
                    faults.append(f"request: {route.request.url[:200]}")
                    route.abort()

            def heard(message: ConsoleMessage) -> None:
                if message.type == "error":
                    faults.append(f"console: {message.text}")

            where.route(lambda url: not url.startswith(("data:", "blob:")), judge)
            page = where.new_page()
            page.on("console", heard)
            page.on("pageerror", lambda error: faults.append(f"error: {error}"))
            started = time.monotonic()
            page.goto(report.as_uri())
            page.locator("#explorer-body").wait_for()
            page.faults = faults  # type: ignore[attr-defined]
            page.seconds = time.monotonic() - started  # type: ignore[attr-defined]
            return page

        yield opened
        assert faults == []
