"""Settings that a command line leaves out: as in the run folder, else as in the task's recipe."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Token

from optdyn.cli._reading import option_name
from optdyn.errors import UserError

if TYPE_CHECKING:
    from cyclopts import App, ArgumentCollection

    from optdyn.study._recipes import Recipe

SHARED = ("unroll-length", "normalization", "task-option")
"""What is the same in all of a task's work in a folder, unless the user wants otherwise."""
PAIRS = {"task_options": "task-option", "stand_in": "stand-in"}
"""Settings by name and value, and the options that take them as NAME=VALUE."""
NOT_OPTIONS = ("task", "initial")
"""Recorded under the name of an option, with another meaning."""
SCALE = "laptop"
ONLY_OF_TARGETS = ("--stage", "--gradient-scale", "--count", "--params", "--leaf", "--index")
ONLY_OF_RUNS = ("--problems", "--devices", "--unroll-length", "--normalization")
"""Options of one form of optdyn analyze."""

Texts = dict[str, tuple[str, ...]]
"""What an option is given, by its name without dashes."""


def complete(app: App, commands: tuple[str, ...], options: ArgumentCollection) -> None:
    """Add to ``options`` what the command line leaves out (a config function of cyclopts)."""
    del app
    command = commands[0] if commands else ""
    if command not in PARTS:
        return
    if command == "analyze":
        if options["TARGET"].tokens:
            why = "is not allowed with a TARGET (leave TARGET out to analyze a run)"
            _refuse(options, ONLY_OF_RUNS, why)
            return
        _refuse(options, ONLY_OF_TARGETS, "needs a TARGET (see optdyn analyze --help)")
    if command == "search-lr":
        why = "is what the search draws (give its range by --lowest and --highest)"
        _refuse(options, ("--learning-rate",), why)
    usual = "runs/reproduce" if command == "distill" else "runs/default"
    given = _text(options, "out")
    out = Path(usual if given is None else given)
    settings = _recorded(out)
    if not options["--task"].tokens:
        _fill(options, {"task": _only_task(settings)}, "the run folder")
    _fill(options, {"task": ("linear_regression",)}, "the default")
    task = options["--task"].tokens[-1].value
    own = PARTS[command].format(task=task, baseline=_text(options, "baseline") or "momentum")
    shared: Texts = {}
    for part, recorded in settings.items():
        if part != own and part.split("/")[1:2] == [task]:
            found = {name: texts for name, texts in option_texts(recorded) if name in SHARED}
            _say_differences(options, found, part)
            shared |= found
    _fill(options, shared | dict(option_texts(settings.get(own, {}))), "the run folder")
    if ":" not in task:
        _fill(
            options,
            {k: v for k, v in _recipe(command, task).items() if k not in shared},
            "its recipe",
        )
    _fill(options, {"seed": ("0",)}, "the default")
    trained = settings.get(f"train/{task}", {})
    if command == "train" and trained.get("initial"):
        _fill(options, _initial(out, task), "the run folder")
    _import_cells(trained, options)


PARTS = {
    "train": "train/{task}",
    "search-lr": "search-lr/{task}",
    "tune": "tune/{task}/{baseline}",
    "evaluate": "evaluate/{task}",
    "analyze": "analyze/{task}",
    "distill": "distill/{task}",
}
"""Under which name a run folder records what each command did."""


def _refuse(options: ArgumentCollection, names: Iterable[str], why: str) -> None:
    for name in names:
        if options[name].tokens:
            raise UserError(f"{name}: {why}")


def _recorded(out: Path) -> dict[str, Any]:
    from optdyn.runs._run_folder import read_config, require_own

    require_own(out)
    settings = read_config(out).settings
    return {part: plain for part, plain in settings.items() if isinstance(plain, dict)}


def _initial(out: Path, task: str) -> Texts:
    """Where a training of given meta-parameters, as Python's `meta_train` starts one, has them."""
    from optdyn.runs._checkpoints import analysis_path
    from optdyn.runs._run_folder import folder_name
    from optdyn.runs._training_run import CHECKPOINTS

    start = analysis_path(out / folder_name(task) / CHECKPOINTS, 0)
    return {"initial": (str(start),)} if start.is_file() else {}


def _import_cells(trained: dict[str, Any], options: ArgumentCollection) -> None:
    """Import what ``module:Cell`` names, so that an `Architecture` and a checkpoint find it."""
    from optdyn.cli._names import imported

    recorded = dict(option_texts(trained)).get("cell", ())
    for cell in (*recorded, _text(options, "cell") or ""):
        if ":" in cell:
            try:
                imported(cell)
            except UserError as error:
                raise UserError(f"--cell: {error}") from None


def _only_task(settings: dict[str, Any]) -> tuple[str, ...]:
    """The task of all that the folder holds; nothing if it holds none yet."""
    tasks = sorted({part.split("/")[1] for part in settings if "/" in part})
    if len(tasks) > 1:
        raise UserError(f"--task: the run folder holds several (give one: {', '.join(tasks)})")
    return tuple(tasks)


def _text(options: ArgumentCollection, name: str) -> str | None:
    argument = options.get(f"--{name}", None)
    return argument.tokens[-1].value if argument is not None and argument.tokens else None


def _fill(options: ArgumentCollection, texts: Texts, source: str) -> None:
    """Give each option without a value those of ``texts``."""
    for name, values in texts.items():
        argument = options.get(f"--{name}", None)
        if argument is not None and not argument.tokens:
            for index, value in enumerate(values):
                argument.append(Token(keyword=f"--{name}", value=value, source=source, index=index))


def _say_differences(options: ArgumentCollection, texts: Texts, part: str) -> None:
    quiet = options.get("--quiet", None)
    if quiet is not None and quiet.tokens:
        return
    for name, values in texts.items():
        argument = options.get(f"--{name}", None)
        given = tuple(t.value for t in argument.tokens if t.source == "cli") if argument else ()
        if given and name != "task-option" and given != values:
            print(
                f"optdyn: note: --{name} {given[-1]}, but this run's {part} has {values[-1]}",
                file=sys.stderr,
            )


def option_texts(plain: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Recorded settings as options would give them, nested ones too."""
    for field, value in plain.items():
        if field in PAIRS:
            yield PAIRS[field], tuple(f"{name}={_word(item)}" for name, item in value.items())
        elif field in NOT_OPTIONS:
            continue
        elif isinstance(value, dict):
            yield from option_texts(value)
        else:
            yield option_name(field), (_word(value),)


def _word(value: Any) -> str:
    """A value as an option is given it."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(str, value)) + "]"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _recipe(command: str, task: str) -> Texts:
    from optdyn.study._recipes import LAPTOP, recipe_for

    if task not in LAPTOP:
        return {}
    recipe = recipe_for(task, SCALE)
    plain = {
        "architecture": dataclasses.asdict(recipe.architecture),
        "protocol": dataclasses.asdict(recipe.protocol),
        "task_options": recipe.task_options,
        **_counts(command, recipe),
    }
    return dict(option_texts(plain))


def _counts(command: str, recipe: Recipe) -> dict[str, int]:
    if command == "tune":
        return {
            name: getattr(recipe.tuning, name)
            for name in ("num_samples", "num_problems", "rescore_top", "rescore_problems")
        }
    counts = {"evaluate": recipe.test_problems, "analyze": recipe.analysis_problems}
    return {"num_problems": counts[command]} if command in counts else {}
