"""The pages of the site that are made from the code, at each build.

The registries, the commands, the API's public names and the notebooks are written once, where
they are used; mkdocs calls `on_files` (``hooks`` in mkdocs.yml), which adds a page for each.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import io
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optdyn
from optdyn.cli._commands import COMMANDS
from optdyn.cli.main import main
from optdyn.dynamics._candidates import CANDIDATES
from optdyn.optimizers import CELLS, ENCODINGS
from optdyn.optimizers._baselines import BASELINES
from optdyn.pretrained import PRETRAINED
from optdyn.study._stories import STORIES
from optdyn.tasks import TASKS

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
API = {
    "distillation": ("distillation",),
    "distributed": ("distributed",),
    "dynamics": ("dynamics",),
    "evaluation": ("evaluation", "random_streams", "errors"),
    "figures": ("figures",),
    "inner_loop": ("inner_loop",),
    "mechanisms": ("mechanisms",),
    "meta_training": ("meta_training",),
    "optimizers": ("optimizers",),
    "pretrained": ("pretrained",),
    "runs": ("runs",),
    "search": ("search",),
    "study": ("study",),
    "tasks": ("tasks",),
}
"""The modules that each page of the API shows."""
HELP_WIDTH = "92"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages made here to those that lie in docs/ (called by mkdocs)."""
    from mkdocs.structure.files import File

    for place, text in pages().items():
        files.append(File.generated(config, place, content=text))
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        for number, picture in enumerate(notebook_pictures(path), 1):
            place = f"notebooks/{path.stem}-{number}.png"
            files.append(File.generated(config, place, content=picture))
    return files


def pages() -> dict[str, str]:
    """Every generated page, by its place in the site."""
    made = {f"api/{name}.md": api_page(name) for name in API}
    made |= {
        f"notebooks/{path.stem}.md": notebook_page(path)
        for path in sorted(NOTEBOOKS.glob("*.ipynb"))
    }
    return made | {
        "api/index.md": api_index(),
        "commands.md": commands_page(),
        "registries.md": registries_page(),
    }


def public_names(module_name: str) -> list[str]:
    """The public names of a module of the package: ``__all__``, else what it defines."""
    module = importlib.import_module(f"optdyn.{module_name}")
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isroutine(value))
        and value.__module__ == module.__name__
    ]


def api_page(name: str) -> str:
    """One page of the API: every public name of its modules, from the docstrings."""
    parts = [f"# optdyn.{name}"]
    for module in API[name]:
        if module != name:
            parts.append(f"## `optdyn.{module}` {{ #optdyn.{module} }}")
        level = 2 if module == name else 3
        shadowed = [n for n in public_names(module) if place_of(module, n) != f"{module}.{n}"]
        members = [n for n in public_names(module) if n not in shadowed]
        parts.append(_directive(module, {"members": members, "heading_level": level}))
        options = {"show_root_heading": True, "show_root_toc_entry": True, "heading_level": level}
        parts += [_directive(place_of(module, n), options) for n in shadowed]
    return "\n\n".join(parts) + "\n"


def place_of(module: str, name: str) -> str:
    """Where the documentation finds a name: inside the submodule that is called the same."""
    spec = importlib.util.find_spec(f"optdyn.{module}")
    is_package = spec is not None and spec.submodule_search_locations is not None
    shadowed = is_package and importlib.util.find_spec(f"optdyn.{module}.{name}") is not None
    return f"{module}.{name}.{name}" if shadowed else f"{module}.{name}"


def _directive(place: str, options: dict[str, Any]) -> str:
    lines = [f"      {key}: {json.dumps(value)}" for key, value in options.items()]
    return "\n".join([f"::: optdyn.{place}", "    options:", *lines])


def homes() -> dict[str, str]:
    """The room of each name that ``import optdyn`` offers, as its stub has it."""
    stub = ast.parse(Path(optdyn.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom) and node.module]
    return dict(sorted((alias.name, str(node.module)) for node in imports for alias in node.names))


def api_index() -> str:
    """The names that ``import optdyn`` offers, each with its line and its place."""
    page_of = {module: page for page, modules in API.items() for module in modules}
    rows = []
    for name, home in homes().items():
        link = f"{page_of[home]}.md#optdyn.{place_of(home, name)}"
        value = getattr(optdyn, name)
        line = "The stages that ship with the package, by task."
        if not isinstance(value, dict):
            line = first_line(value)
        rows.append((f"[`optdyn.{name}`]({link})", line))
    introduction = (
        "# API\n\nArrays are described by their axes: `losses [problems, T + 1]`. Nothing has a "
        "unit of its own: losses, gradients and curvatures are in the units of the task, times "
        "are in inner steps. Bad input raises `UserError`; other errors are named where they "
        "can occur. These names are at the top of the package; the pages beside this one "
        "describe the rest.\n\n"
    )
    return introduction + table(("name", "what it is"), rows)


def notebook_page(path: Path) -> str:
    """A notebook's text, code, printed outputs and pictures."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts, number = [], 0
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", []):
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            if "image/png" in output.get("data", {}):
                number += 1
                parts.append(f"![Picture {number} of the notebook]({path.stem}-{number}.png)")
    parts.insert(1, f"*This page is `notebooks/{path.name}`; open it in Jupyter to run it.*")
    return "\n\n".join(parts) + "\n"


def notebook_pictures(path: Path) -> list[bytes]:
    """The pictures in a notebook, in order."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    data = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    return [base64.b64decode(each["image/png"]) for each in data if "image/png" in each]


def commands_page() -> str:
    """What ``--help`` says, command by command."""
    parts = ["# Commands", "What `optdyn` and each of its commands print for `--help`."]
    variants: list[list[str]] = [[], *([name] for name in COMMANDS)]
    for words in variants:
        title = " ".join(["optdyn", *words])
        parts.append(f"## `{title}`\n\n```text\n{help_text(words)}\n```")
    return "\n\n".join(parts) + "\n"


def help_text(words: list[str]) -> str:
    """What a command prints for ``--help``."""
    printed, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = HELP_WIDTH
    try:
        with contextlib.redirect_stdout(printed):
            main([*words, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return printed.getvalue().strip()


def registries_page() -> str:
    """Everything that can be named on the command line or in Python, from the registries."""
    parts = [
        "# Registries",
        "What can be chosen by name. The tables are made from the registries that the command "
        "line and the tests read.",
        "## Tasks",
        "`--task NAME`, `--task-option OPTION=VALUE`, `optdyn.make_task(name, **options)`.",
        table(("name", "what it is", "options and defaults"), map(_task_row, TASKS.items())),
        "## Learned optimizers: cells",
        "`--cell NAME`; with `--units n` the state of a parameter has the given size.",
        table(("name", "what it is", "state size"), map(_cell_row, CELLS)),
        "## Learned optimizers: encodings",
        "`--encoding NAME` with `--gain` and `--input-scale`: " + ", ".join(_code(ENCODINGS)) + ". "
        "Their formulas are on the page on the [method](method.md#the-learned-optimizer).",
        "## Baselines and their grids",
        "`optdyn tune --baseline NAME`. *Log*: spaced evenly in log x; *log of 1 − x*: spaced "
        "evenly in log(1 − x), as suits decay rates.",
        table(("name", "what it does", "grid"), map(_baseline_row, BASELINES.values())),
        "## Hand-designed optimizers that `identify` knows",
        table(("name", "hyperparameters"), map(_candidate_row, CANDIDATES.values())),
        "## Pretrained optimizers",
        "`optdyn.load_pretrained(name, stage)`. `optdyn analyze NAME --stage STAGE` takes "
        "`final` and `momentum`.",
        table(("name", "stages"), ((f"`{k}`", ", ".join(_code(v))) for k, v in PRETRAINED.items())),
        "## Figures",
        "Files in a run's `figures` folder begin with these names; each has its numbers beside "
        "it, in a JSON file.",
        table(
            ("name", "title", "what it shows"),
            ((f"`{story.key}`", story.title, story.caption) for story in STORIES),
        ),
    ]
    return "\n\n".join(parts) + "\n"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(_cell(c) for c in line)} |" for line in lines) + "\n"


def first_line(value: Any) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = (inspect.getdoc(value) or "").split("\n\n")[0]
    return re.sub(r"``(.+?)``", r"`\1`", " ".join(paragraph.split()))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _code(names: Iterable[str]) -> list[str]:
    return [f"`{name}`" for name in names]


def _task_row(item: tuple[str, Callable[..., Any]]) -> tuple[str, str, str]:
    name, task = item
    options = [f"`{field.name}={field.default!r}`" for field in dataclasses.fields(task)]
    return f"`{name}`", first_line(task), ", ".join(options) or "none"


def _cell_row(name: str) -> tuple[str, str, str]:
    cell = CELLS[name](8)
    told = first_line(type(cell))
    if name.endswith("_reset_after"):
        told += " Here the reset gate is applied after the matrix product."
    size = {8: "n", 16: "2n"}[cell.state_size]
    return f"`{name}`", told, size


def _baseline_row(baseline: Any) -> tuple[str, str, str]:
    spacing = {"log": "log", "one_minus_log": "log of 1 − x"}
    axes = [
        f"`{a.name}`: {a.points} from {a.low:g} to {a.high:g}, {spacing[a.kind]}"
        for a in baseline.grid
    ]
    return f"`{baseline.name}`", first_line(baseline.factory), "; ".join(axes)


def _candidate_row(candidate: Any) -> tuple[str, str]:
    return f"`{candidate.name}`", ", ".join(_code([*candidate.rates, *candidate.shape]))
