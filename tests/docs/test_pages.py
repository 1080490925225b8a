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
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jax
import pytest

from optdyn.cli.main import main, parse

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
if importlib.util.find_spec("torch") is None:
    PAGES.remove(ROOT / "docs" / "pytorch.md")  # `make test-torch` runs it
FENCE = re.compile(r"^```(?P<kind>[a-z]*)(?P<options>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S)
SNIPPET = re.compile(r"^--8<--\n(?P<path>\S+)\n--8<--$")
SECONDS = "# seconds\n"
SHOWN = ("text", "yaml", "sql", "sh", "diff")
"""Languages of what is only shown: output, files for other programs, changes to this one."""
NOT_RUN = 'title="not run'
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
        monkeypatch.setattr(sys, "argv", rest)
        runpy.run_path(str(ROOT / rest[0]), run_name="__main__")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    printed, ran, shown = "", set(), set()
    # A user's session is not strict about rank promotion.
    with jax.numpy_rank_promotion("allow"):
        for kind, options, code in blocks(page):
            assert kind in ("python", "bash", *SHOWN), f"a block of {kind or 'no'} language"
            if options.startswith(NOT_RUN):
                continue
            if options == 'title="prints"':
                assert printed.split() == code.split()
            elif kind == "python" and (snippet := SNIPPET.match(code.strip())):
                shown.add(snippet["path"])
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


def test_what_the_readme_says_in_comments() -> None:
    first = next(code for kind, _, code in blocks(ROOT / "README.md") if kind == "python")
    captured = io.StringIO()
    with contextlib.redirect_stdout(captured):
        exec(first, {})
    assert f"# {captured.getvalue().strip()}" in first


def test_the_pages_are_all_there() -> None:
    assert len(PAGES) >= 12
    assert sum(len(blocks(page)) for page in PAGES) >= 40
    own = (ROOT / "examples" / "own_task.py").read_text(encoding="utf-8")
    assert len(own.splitlines()) < 40
