"""Truncated files and flipped bits: refused by name, or nothing that is read has changed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from damage import damaged, require_one_line
from optdyn.errors import UserError
from optdyn.pretrained import load_pretrained
from optdyn.pretrained._shipped import MANIFEST, Manifest, ShippedFile
from optdyn.runs import RerunsResult, read_result
from optdyn.runs._checkpoints import (
    fingerprint,
    load_optimizer,
    load_state,
)
from optdyn.runs._evaluation_run import (
    EVALUATION,
    load_evaluation,
)
from optdyn.runs._metrics_log import read_metrics
from optdyn.runs._plain import to_plain
from optdyn.runs._run_folder import open_run
from optdyn.runs._search_run import SEARCHES, SearchInputs, SearchResult
from optdyn.runs._store import write_result
from optdyn.runs._training_run import METRICS
from optdyn.runs._tuning_run import load_table, rerun_tables, table_path
from optdyn.search._learning_rate import LearningRateSearch, Row
from optdyn.tasks import Rosenbrock
from tiny_runs import ARCHITECTURE, PROTOCOL, TASK, run_evaluation, run_training, run_tuning

FULL, SMALL = 2400, 120

Reader = Callable[[Path], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with every kind of file, and one with weights that ship."""
    run = tmp_path_factory.mktemp("damage") / "run"
    run_training(run, dataclasses.replace(PROTOCOL, num_meta_steps=3))
    run_tuning(run)
    run_evaluation(run)
    with open_run(run) as opened:
        rerun_tables(opened, Rosenbrock())
    inputs = SearchInputs(TASK, {}, ARCHITECTURE, vars(PROTOCOL), 0, LearningRateSearch())
    write_result(_search(run), SearchResult(inputs, [Row(0.1, 3, 0, 0.5)] * 3))
    shipped = run.parent / "shipped" / TASK / "final.safetensors"
    shipped.parent.mkdir(parents=True)
    content = _step(run).read_bytes()
    shipped.write_bytes(content)
    listed = ShippedFile(len(content), hashlib.sha256(content).hexdigest(), "optdyn train")
    write_result(shipped.with_name(MANIFEST), Manifest(TASK, {shipped.name: listed}))
    return run


def _step(run: Path) -> Path:
    return run / TASK / "checkpoints" / "step-000003.safetensors"


def _search(run: Path) -> Path:
    return run / TASK / SEARCHES / "rnn-3-0.json"


def _bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def _weights(path: Path) -> Any:
    optimizer, card = load_optimizer(path)
    return fingerprint(optimizer), card


def _state(path: Path) -> Any:
    state, card = load_state(path)
    return _bits(state), card


def _table(path: Path) -> Any:
    table = load_table(path)
    return table.settings, table.grid, _bits([table.indices, table.scores, table.rescores])


def _evaluation(path: Path) -> Any:
    found = load_evaluation(path)
    if found is None:
        raise UserError(f"{path} will be made again")
    return to_plain(found)


def _settings(path: Path) -> Any:
    with open_run(path.parent) as run:
        return run.settings()


def _pretrained(path: Path) -> Any:
    return fingerprint(load_pretrained(TASK, folder=path.parents[1]))


def _readers(run: Path) -> dict[str, tuple[Path, Reader]]:
    shipped = run.parent / "shipped" / TASK / "final.safetensors"
    return {
        "weights": (_step(run), _weights),
        "training states": (_step(run).with_name("resume-000003.safetensors"), _state),
        "search tables": (table_path(run / TASK, "momentum"), _table),
        "evaluations": (run / TASK / EVALUATION / "learned.json", _evaluation),
        "tuning reruns": (
            run / TASK / "tuning_reruns.json",
            lambda path: read_result(path, RerunsResult),
        ),
        "learning rates": (_search(run), lambda path: read_result(path, SearchResult)),
        "shipped weights": (shipped, _pretrained),
        "shipped manifests": (shipped.with_name(MANIFEST), _pretrained),
    }


def test_no_damaged_file_is_taken_for_a_sound_one(
    folder: Path, full: bool, figures: dict[str, object]
) -> None:
    chance, counts = random.Random(0), {"refused": 0, "nothing that is read had changed": 0}
    readers = _readers(folder)
    for name, (path, read) in readers.items():
        content, sound = path.read_bytes(), read(path)
        for _ in range((FULL if full else SMALL) // (len(readers) + 2)):
            path.write_bytes(damaged(content, chance))
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                try:
                    found = read(path)
                except UserError as error:
                    require_one_line(error, folder.parent)
                    counts["refused"] += 1
                else:
                    assert found == sound, name
                    counts["nothing that is read had changed"] += 1
        path.write_bytes(content)
        assert read(path) == sound
    _count_settings(folder, chance, full, counts)
    _count_logs(folder, chance, full, counts)
    figures["damaged files"] = f"{sum(counts.values())} ({counts}), none taken for a sound one"


def _count_settings(
    folder: Path, chance: random.Random, full: bool, counts: dict[str, int]
) -> None:
    """A run folder's settings are refused, the same, or others, which no run then accepts."""
    path = folder / "config.json"
    content, sound = path.read_bytes(), _settings(path)
    for _ in range((FULL if full else SMALL) // 10):
        path.write_bytes(damaged(content, chance))
        try:
            with open_run(folder) as run:
                same = all(run.check(part, settings) for part, settings in sound.items())
        except UserError as error:
            require_one_line(error, folder.parent)
            same = False
        counts["nothing that is read had changed" if same else "refused"] += 1
    path.write_bytes(content)


def _count_logs(folder: Path, chance: random.Random, full: bool, counts: dict[str, int]) -> None:
    """The rows that are still read of a damaged log are rows that it had."""
    path = folder / TASK / METRICS
    content, sound = path.read_bytes(), read_metrics(path)
    for _ in range((FULL if full else SMALL) // 10):
        path.write_bytes(damaged(content, chance))
        rows = read_metrics(path)
        assert all(row in sound for row in rows)
        counts["nothing that is read had changed" if rows == sound else "refused"] += 1
    path.write_bytes(content)
