"""The code on every page runs, prints what the page says, and its commands exist.

The conventions are told on docs/index.md: blocks of Python run page by page, from top to bottom;
a block titled ``prints`` holds what the block before it printed; blocks of commands are read by
the commands' own parsers, and run where they begin with ``# seconds``. What is only shown says so:
it is in another language, or its title begins with ``not run``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import operator
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import jax
import pytest

import optdyn
from helpers import FULL
from optdyn.cli.main import main, parse

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
if importlib.util.find_spec("torch") is None:
    PAGES.remove(ROOT / "docs" / "pytorch.md")  # `make test-torch` runs it
FENCE = re.compile(r"^```(?P<kind>[a-z]*)(?P<options>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S)
FILE = re.compile(r'title="(?P<path>examples/\S+\.py)"')
LINK = re.compile(r"\]\((?P<target>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")
SECONDS = "# seconds\n"
SHOWN = ("text", "yaml", "sql", "sh", "diff")
"""Languages of what is only shown: output, files for other programs, changes to this one."""
NOT_RUN = 'title="not run'
LONG = "examples/look_into_training.py"
"""A script of a minute: `tests/test_examples.py` runs it at a small size."""
# The shell splits the commands; each prints its words in place of running.
STUBS = "".join(
    f'{name}() {{ printf "%s\\x1f" {name} "$@"; echo; }}\n'
    for name in ("optdyn", "make", "pip", "python", "pre-commit")
)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(kind, options, code) of each fenced block."""
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [(m["kind"], m["options"].strip(), m["code"]) for m in found]


def commands(code: str) -> list[list[str]]:
    """The command lines of a block, as the shell splits them."""
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, "-eu", "-c", STUBS + code], env={"PATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [line.rstrip("\x1f").split("\x1f") for line in done.stdout.splitlines()]


def read(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a command line is one that the named program takes."""
    program, *rest = words
    if program == "optdyn":
        parse(rest)
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = [word for word in rest if "=" not in word]
        variables = [word.partition("=")[0] for word in rest if "=" in word]
        assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets), words
        assert all(f"$({name})" in makefile for name in variables), words
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert rest[0] == "install"
        for extra in re.findall(r"\[(\w+)\]", " ".join(rest)):
            assert extra in project["optional-dependencies"]
    elif program == "python":
        assert (ROOT / rest[0]).is_file()


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of a block that takes seconds."""
    program, *rest = words
    if program == "optdyn":
        assert main(rest) == 0
    else:
        assert program == "python"
        if FULL or rest[0] != LONG:
            monkeypatch.setattr(sys, "argv", rest)
            runpy.run_path(str(ROOT / rest[0]), run_name="__main__")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where classes of the page are found
    namespace: dict[str, Any] = vars(module)
    printed, ran, shown = "", set(), set()
    # A user's session is not strict about rank promotion.
    with jax.numpy_rank_promotion("allow"):
        for kind, options, code in blocks(page):
            assert kind in ("python", "bash", *SHOWN), f"a block of {kind or 'no'} language"
            if options.startswith(NOT_RUN):
                continue
            if options == 'title="prints"':
                assert printed.split() == code.split()
            elif kind == "python" and (file := FILE.match(options)):
                assert code == (ROOT / file["path"]).read_text(encoding="utf-8")
                shown.add(file["path"])
            elif kind == "python":
                captured = io.StringIO()
                with contextlib.redirect_stdout(captured):
                    exec(compile(code, f"{page.name}", "exec"), namespace)
                printed = captured.getvalue()
            elif kind == "bash":
                for words in commands(code):
                    read(words, monkeypatch)
                    if code.startswith(SECONDS):
                        run(words, monkeypatch)
                        ran.add(words[1])
    assert shown <= ran, "a script that is shown is also run"


def anchors(page: Path) -> set[str]:
    """The headings of a page, as a code host and the site turn them into anchors."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.stem
)
def test_a_page_can_be_read_on_a_code_host(page: Path) -> None:
    """Every link leads to a file of the repository, and nothing is included by the site alone."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    assert "--8<--" not in page.read_text(encoding="utf-8")
    assert ":::" not in text
    for link in LINK.finditer(text):
        if link["target"].startswith("https://"):
            continue
        target = page.parent / link["target"] if link["target"] else page
        assert target.is_file(), link[0]
        if link["anchor"]:
            assert link["anchor"] in anchors(target), link[0]


def test_the_names_on_the_page_by_task_exist() -> None:
    text = (ROOT / "docs" / "api_by_task.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`optdyn\.([\w.]+)`", text))
    assert len(names) >= 40
    for name in names - {"torch"}:
        if not name.startswith("torch."):
            operator.attrgetter(name)(optdyn)


def test_the_pages_are_all_there() -> None:
    assert len(PAGES) >= 12
    assert sum(len(blocks(page)) for page in PAGES) >= 40
    own = (ROOT / "examples" / "own_task.py").read_text(encoding="utf-8")
    assert len(own.splitlines()) < 40
