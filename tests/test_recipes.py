"""What CONTRIBUTING says is enough to add a task, a cell, a baseline, a figure or a claim, is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import optdyn

ROOT = Path(__file__).parents[1]
LONGEST = 15
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"^```diff\n(.*?)^```$", CONTRIBUTING, re.M | re.S)
COMMANDS = [
    ["train", "--task", "bowl", "--cell", "leaky", "--units", "2", "--meta-steps", "1",
     "--batch-size", "2", "--unroll-length", "3", "--devices", "1", "--out", "run", "--quiet"],
    ["tune", "--task", "bowl", "--baseline", "signs", "--samples", "4", "--rescore-top", "2",
     "--rescore-problems", "2", "--problems", "2", "--unroll-length", "3", "--out", "run",
     "--quiet"],
    ["report", "--out", "run", "--quiet"],
]  # fmt: skip
SCRIPT = """
import json, sys
import optdyn
from optdyn.cli.main import main
assert optdyn.__file__.startswith(sys.argv[1]), optdyn.__file__
for command in json.loads(sys.argv[2]):
    assert main(command) == 0, command
"""


def carry_out(recipe: str, package: Path) -> None:
    """Put a recipe's lines where it says: behind the line shown before them, else at the end."""
    for section in recipe.split("+++ ")[1:]:
        name, *lines = section.splitlines()
        file = package / name
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        place = len(text)
        for line in lines:
            mark, rest = line[0], f"{line[1:]}\n"
            assert mark in "+ ", line
            if mark == " ":
                assert text.count(rest) == 1, rest
                place = text.index(rest) + len(rest)
            else:
                text = text[:place] + rest + text[place:]
                place += len(rest)
        file.write_text(text, encoding="utf-8")


def test_each_recipe_is_short_and_enough(tmp_path: Path) -> None:
    assert len(RECIPES) == 5
    assert max(recipe.count("\n+") for recipe in RECIPES) <= LONGEST
    package = tmp_path / "optdyn"
    shutil.copytree(Path(optdyn.__file__).parent, package)
    for recipe in RECIPES:
        carry_out(recipe, package)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), json.dumps(COMMANDS)],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert list(run.glob("bowl/tuning/signs.parquet"))
    assert list(run.glob("**/meta_gradients_bowl.svg"))
    claims = json.loads((run / "claims.json").read_text(encoding="utf-8"))
    assert "bowl.nothing_explodes" in [claim["id"] for claim in claims]


def test_the_table_of_rooms_lists_the_folders_in_the_order_of_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = project["tool"]["importlinter"]["contracts"]
    folders = {path.parent.name for path in Path(optdyn.__file__).parent.glob("*/__init__.py")}
    layers = [layer.removeprefix("optdyn.") for layer in reversed(contract["layers"])]
    listed = re.findall(r"^\| `(\w+)/`", CONTRIBUTING, re.M)
    assert listed == [layer for layer in layers if layer in folders]
    assert set(listed) == folders
