"""The site builds without a warning, and opens without a request to elsewhere."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import optdyn
from generated_pages import generated_pages

ROOT = Path(__file__).parents[2]


def build(folder: Path) -> None:
    """Build the site into ``folder``; any warning is an error."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


class Requests(HTMLParser):
    """What a browser fetches for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.found.append(values.get("src") or "")
        if tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(values.get("href") or "")


def test_the_site_builds_complete_and_for_itself(tmp_path: Path) -> None:
    build(tmp_path)
    check_requests(tmp_path)
    check_names(tmp_path)


def check_requests(site: Path) -> None:
    """No page asks another host for anything."""
    pages = list(site.rglob("*.html"))
    assert len(pages) >= 25
    for page in pages:
        parser = Requests()
        parser.feed(page.read_text(encoding="utf-8"))
        assert len(parser.found) >= 3
        outside = [place for place in parser.found if re.match(r"(?:https?:)?//", place)]
        assert outside == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8"))


def check_names(site: Path) -> None:
    """What the registries, the commands and the package name is on the site."""
    registries = (site / "registries" / "index.html").read_text(encoding="utf-8")
    for name in ("linear_regression", "rmsprop", "fig07b", "gru_reset_after", "asinh"):
        assert f"<code>{name}</code>" in registries
    assert "--max-cotangent-norm" in (site / "commands" / "index.html").read_text(encoding="utf-8")
    index = (site / "api" / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'<a href="\.?/?(\w+)/#([\w.]+)"><code>optdyn\.(\w+)</code>', index)
    assert [name for *_, name in links] == list(generated_pages().homes())
    for page, anchor, name in links:
        assert anchor.startswith(f"optdyn.{generated_pages().homes()[name]}.")
        target = (site / "api" / page / "index.html").read_text(encoding="utf-8")
        assert f'id="{anchor}"' in target, name


def test_every_package_with_public_names_is_in_the_api() -> None:
    shown = {module for modules in generated_pages().API.values() for module in modules}
    for info in pkgutil.iter_modules(optdyn.__path__):
        if info.name == "torch":  # a page of its own: it needs PyTorch
            continue
        if info.ispkg and getattr(importlib.import_module(f"optdyn.{info.name}"), "__all__", []):
            assert info.name in shown, info.name
    assert set(generated_pages().homes().values()) <= shown
