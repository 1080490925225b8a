"""Damaged and swapped results of a study: refused by name."""

from __future__ import annotations

import dataclasses
import functools
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from damage import damaged, require_one_line
from optdyn.errors import UserError
from optdyn.runs import (
    AnalysisResult,
    DistillationResult,
    ExplorerResult,
    LossesAtSteps,
    MechanismsResult,
    RerunsResult,
    read_result,
    read_task_result,
)
from optdyn.runs._checkpoints import load_optimizer, save_optimizer
from optdyn.runs._evaluation_run import contenders
from optdyn.runs._plain import to_plain
from optdyn.runs._run_folder import open_run
from optdyn.runs._training_run import load_trained
from optdyn.study._claims import ROWS
from optdyn.study._ledger import judge
from optdyn.study._results import read_results
from optdyn.tasks import Rosenbrock

FULL, SMALL = 120, 6
TASK, OTHER = "rosenbrock", "linear_regression"

KINDS: dict[str, type] = {
    "analysis.json": AnalysisResult,
    "mechanisms.json": MechanismsResult,
    "distillation.json": DistillationResult,
    "explorer.json": ExplorerResult,
}
READERS: dict[str, Callable[[Path], Any]] = {
    **{name: functools.partial(read_task_result, kind=kind) for name, kind in KINDS.items()},
    "losses_at_steps.json": functools.partial(read_result, kind=LossesAtSteps),
    "tuning_reruns.json": functools.partial(read_result, kind=RerunsResult),
}


@pytest.fixture(scope="module")
def studied(tiny_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny study that may be damaged."""
    run = tmp_path_factory.mktemp("studied") / "run"
    return Path(shutil.copytree(tiny_study, run, ignore=shutil.ignore_patterns("figures")))


def test_no_damaged_result_of_a_study_is_taken_for_a_sound_one(studied: Path, full: bool) -> None:
    chance = random.Random(2)
    for name, read in READERS.items():
        path = studied / TASK / name
        content, sound = path.read_bytes(), read(path)
        for _ in range(FULL if full else SMALL):
            path.write_bytes(damaged(content, chance))
            try:
                assert to_plain(read(path)) == to_plain(sound)
            except UserError as error:
                require_one_line(error, studied)
        path.write_bytes(content)


def test_a_study_with_a_damaged_result_is_still_judged(studied: Path, full: bool) -> None:
    chance = random.Random(3)
    for name in (*READERS, "evaluation.json"):
        path = studied / TASK / name
        content = path.read_bytes()
        for _ in range(FULL if full else 1):
            path.write_bytes(damaged(content, chance))
            with open_run(studied) as run:
                assert judge(ROWS, read_results(run, TASK))
            path.write_bytes(content)


SWAPPED = [
    ("checkpoints/step-000001.safetensors", "checkpoints/step-000003.safetensors"),
    ("checkpoints/step-000003.safetensors", f"../{OTHER}/checkpoints/step-000003.safetensors"),
    ("tuning/momentum.parquet", "tuning/rmsprop.parquet"),
    ("tuning/momentum.parquet", f"../{OTHER}/tuning/momentum.parquet"),
    *((name, f"../{OTHER}/{name}") for name in ("analysis.json", "mechanisms.json")),
    *((name, f"../{OTHER}/{name}") for name in ("distillation.json", "explorer.json")),
]


@pytest.mark.parametrize(("one", "other"), SWAPPED)
def test_a_sound_file_in_the_place_of_another_is_refused(
    tiny_study: Path, tmp_path: Path, one: str, other: str
) -> None:
    run = Path(shutil.copytree(tiny_study, tmp_path / "run"))
    path = run / TASK / one
    shutil.copy(run / TASK / other, path)
    with open_run(run) as opened:
        if path.suffix == ".json":
            with pytest.raises(UserError, match="is of task") as caught:
                READERS[one](path)
        elif path.suffix == ".parquet":
            with pytest.raises(UserError, match=r"is of .* on .*, not of") as caught:
                contenders(opened, Rosenbrock())
        else:
            with pytest.raises(UserError, match=r"is of meta-step|was trained on") as caught:
                load_trained(opened, TASK, path)
    require_one_line(caught.value, path)


def test_a_checkpoint_of_another_training_is_refused(tiny_study: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_study, tmp_path / "run"))
    path = run / TASK / "checkpoints" / "step-000003.safetensors"
    optimizer, card = load_optimizer(path)
    save_optimizer(path, optimizer, dataclasses.replace(card, seed=7))
    with open_run(run) as opened, pytest.raises(UserError, match="has seed = 7, this training"):
        load_trained(opened, TASK, path)
