"""What ships: round trips, and any fault refused by its name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optdyn
from helpers import TINY_RECIPE, small_task
from optdyn.cli._export import train_command, tune_command
from optdyn.cli.main import main, parse
from optdyn.errors import UserError
from optdyn.pretrained import (
    PRETRAINED,
    export_task,
    load_pretrained,
    load_shipped,
    other_trainings,
    pretrained_card,
    shipped_stages,
)
from optdyn.pretrained import _shipped as shipped
from optdyn.pretrained._shipped import FOLDER, MANIFEST, Manifest, read_manifest
from optdyn.runs import FittedResult, SearchResult
from optdyn.runs._checkpoints import (
    analysis_checkpoints,
    fingerprint,
    load_optimizer,
    save_optimizer,
)
from optdyn.runs._distillation_fit import FITTED
from optdyn.runs._run_folder import RunFolder, open_run
from optdyn.runs._search_run import search
from optdyn.runs._store import read_result, write_result
from optdyn.runs._tuning_run import load_table, load_tables, save_table
from optdyn.search._learning_rate import LearningRateSearch
from optdyn.study._recipes import LAPTOP
from optdyn.study._results import read_results
from optdyn.study.page import write_page
from optdyn.tasks import Rosenbrock

TASK = "rosenbrock"
SIZE_LIMIT = 20e6


def export(run: Path, to: Path) -> Path:
    export_task(RunFolder(run), TASK, to, train_command, tune_command)
    return to


@pytest.fixture(scope="session")
def exported(tiny_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_study, tmp_path_factory.mktemp("exported"))


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def test_weights_come_back_as_they_were(tiny_study: Path, exported: Path) -> None:
    checkpoints = analysis_checkpoints(tiny_study / TASK / "checkpoints")
    last, card = load_optimizer(checkpoints[-1])
    found = load_pretrained(TASK, folder=exported)
    assert fingerprint(found) == fingerprint(last)
    tx = found.as_optax()
    updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    assert np.all(np.isfinite(updates))

    told = pretrained_card(TASK, folder=exported)
    content = (exported / TASK / "final.safetensors").read_bytes()
    assert told.sha256 == hashlib.sha256(content).hexdigest()
    assert told.bytes == len(content)
    assert (told.training.task, told.stage, told.training.meta_step) == (TASK, "final", 3)
    assert told.training.meta_objective == card.meta_objective
    assert told.training.versions["jax"] == jax.__version__
    analysis = json.loads((tiny_study / TASK / "analysis.json").read_text())
    momentum = pretrained_card(TASK, "momentum", exported)
    assert momentum.training.meta_step == analysis["momentum_stage"]


def test_the_commands_on_cards_give_the_same_settings(tiny_study: Path, exported: Path) -> None:
    card = load_shipped(TASK, exported).card
    words = shlex.split(pretrained_card(TASK, folder=exported).command)
    assert words[:2] == ["optdyn", "train"]
    train = parse(words[1:])[1].arguments
    assert train["protocol"] == card.protocol
    assert train["architecture"] == card.architecture
    assert (train["task"].task, train["run"].seed) == (TASK, card.seed)
    assert "start" not in train

    search = load_table(tiny_study / "linear_regression" / "tuning" / "rmsprop.parquet").settings
    tune = parse(shlex.split(tune_command(search))[1:])[1].arguments
    assert tune["objective"] == search.objective
    assert tune["search"].num_samples == search.num_samples
    assert tune["search"].rescore_top == search.rescore_top
    assert tune["task"].make() == small_task("linear_regression")
    fine_tuned = dataclasses.replace(card, initial="0" * 64)
    assert "--initial initial.safetensors" in train_command(fine_tuned)


def test_the_same_run_gives_the_same_bytes(
    tiny_study: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    assert main(["export", "--out", str(tiny_study), "--task", TASK, "--to", str(again)]) == 0
    assert "final.safetensors" in capsys.readouterr().out

    def contents(folder: Path) -> dict[Path, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder): path.read_bytes() for path in files}

    assert contents(again) == contents(exported)
    assert len(contents(again)) == 7


def test_everything_that_ships_is_listed_and_read(tiny_study: Path, exported: Path) -> None:
    assert shipped_stages(exported) == {TASK: ("final", "momentum")}
    found = load_shipped(TASK, exported)
    tables = load_tables(tiny_study / TASK)
    assert set(found.tables) == set(tables) == {"momentum", "rmsprop"}
    for name, table in tables.items():
        assert found.tables[name].settings == table.settings
        np.testing.assert_array_equal(found.tables[name].rescores, table.rescores)
    run = tiny_study / TASK
    assert all((run / place).read_bytes() == content for place, content in found.files.items())


def test_unknown_names_tell_what_is_there(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"name: unknown value 'foo' \(allowed: rosenbrock\)"):
        load_pretrained("foo", folder=exported)
    with pytest.raises(
        UserError, match=r"unknown value 'last' \(allowed: final, momentum, readable\)"
    ):
        pretrained_card(TASK, "last", exported)
    with pytest.raises(UserError, match="no weights are in"):
        load_pretrained(TASK, folder=tmp_path)
    (exported.parent / "partial" / TASK).mkdir(parents=True)
    shutil.copy(exported / TASK / "final.safetensors", exported.parent / "partial" / TASK)
    assert shipped_stages(exported.parent / "partial") == {TASK: ("final",)}
    with pytest.raises(UserError, match="cannot read"):
        load_pretrained(TASK, folder=exported.parent / "partial")


def test_a_path_names_a_checkpoint(tiny_study: Path, tmp_path: Path) -> None:
    path = analysis_checkpoints(tiny_study / TASK / "checkpoints")[-1]
    expected, _ = load_optimizer(path)
    for name in (path, str(path)):
        loaded = load_pretrained(name)
        assert loaded.architecture == expected.architecture
        for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(UserError, match=r"absent\.safetensors: cannot read"):
        load_pretrained("absent.safetensors")
    (tmp_path / "weights").write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="weights: "):
        load_pretrained(tmp_path / "weights")


def truncate(folder: Path) -> None:
    path = folder / "final.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


def flip(folder: Path, file: str = "final.safetensors") -> None:
    path = folder / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def swap(folder: Path) -> None:
    """Sound weights, but not those of the manifest."""
    optimizer, card = load_optimizer(folder / "final.safetensors")
    save_optimizer(folder / "final.safetensors", optimizer, dataclasses.replace(card, seed=7))


def unlist(folder: Path) -> None:
    manifest = read_manifest(folder)
    files = {n: f for n, f in manifest.files.items() if n != "final.safetensors"}
    write_result(folder / MANIFEST, Manifest(manifest.task, files))


@pytest.mark.parametrize(
    ("tamper", "fault"),
    [
        (truncate, r"final\.safetensors: damaged \(\d+ bytes; not the file in its manifest"),
        (flip, r"final\.safetensors: damaged"),
        (lambda f: flip(f, MANIFEST), r"manifest\.json: damaged"),
        (swap, r"final\.safetensors: damaged .*not the file in its manifest"),
        (unlist, r"manifest\.json: final\.safetensors is not listed"),
        (lambda f: (f / MANIFEST).unlink(), r"manifest\.json: cannot read"),
        (lambda f: (f / MANIFEST).write_text("{"), r"manifest\.json: damaged"),
    ],
)
def test_a_fault_is_refused_by_its_name(
    copy: Path, tamper: Callable[[Path], None], fault: str
) -> None:
    tamper(copy / TASK)
    for refuse in (load_pretrained, pretrained_card):
        with pytest.raises(UserError, match=fault):
            refuse(TASK, folder=copy)


def test_stages_of_two_trainings_are_refused(copy: Path) -> None:
    path = copy / TASK / "momentum.safetensors"
    optimizer, card = load_optimizer(path)
    save_optimizer(path, optimizer, dataclasses.replace(card, seed=7))
    content = path.read_bytes()
    manifest = read_manifest(copy / TASK)
    listed = dataclasses.replace(
        manifest.files[path.name],
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    files = {**manifest.files, path.name: listed}
    write_result(copy / TASK / MANIFEST, Manifest(TASK, files))
    with pytest.raises(UserError, match=r"its stages are of two trainings \(seed differs\)"):
        load_shipped(TASK, copy)


def test_weights_of_another_task_are_refused(copy: Path) -> None:
    (copy / TASK).rename(copy / "digits")
    with pytest.raises(UserError, match="was trained on 'rosenbrock', not on 'digits'"):
        load_pretrained("digits", folder=copy)


def test_damaged_tables_and_logs_are_refused(copy: Path) -> None:
    for place in ("tuning/momentum.parquet", "training.jsonl"):
        path = copy / TASK / place
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(UserError, match=f"{path.name}: damaged"):
            load_shipped(TASK, copy)
        path.write_bytes(content)
    load_shipped(TASK, copy)


def test_readable_optimizers_ship_as_they_were_fitted(tiny_study: Path, exported: Path) -> None:
    found = load_shipped(TASK, exported).fitted
    assert found == read_result(tiny_study / TASK / FITTED, FittedResult)
    assert found is not None
    words = shlex.split(found.command)
    given = parse(words[1:])[1].arguments
    assert (words[:2], given["scale"]) == (["optdyn", "distill"], "smoke")
    assert given["task"].task == TASK


def test_damaged_readable_optimizers_are_refused(copy: Path) -> None:
    path = copy / TASK / FITTED
    content = path.read_bytes()
    for damaged in (content.replace(b"0.", b"1.", 1), content[:-1], b"{"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"fitted\.json: damaged"):
            load_shipped(TASK, copy)
        with pytest.raises(UserError, match=r"fitted\.json: damaged"):
            read_result(path, FittedResult)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"values": {"momenta": {}}}, r"sizes\[0\]: distilled optimizer: bad values"),
        ({"added": "schedule"}, "sizes: not the sizes of readable optimizers"),
        ({"numbers": "many"}, r"sizes\[0\]\.numbers: Expected `int`, got `str`"),
    ],
)
def test_readable_optimizers_of_another_form_are_refused(
    copy: Path, change: dict[str, Any], fault: str
) -> None:
    path = copy / TASK / FITTED
    plain = read_result(path, dict)
    plain["sizes"] = [{**plain["sizes"][0], **change}, *plain["sizes"][1:]]
    write_result(path, plain)
    with pytest.raises(UserError, match=rf"fitted\.json: {fault}") as caught:
        read_result(path, FittedResult)
    assert "\n" not in str(caught.value)


def unfinished_table(run: Path) -> None:
    path = run / TASK / "tuning" / "rmsprop.parquet"
    table = load_table(path)
    scores = np.where(np.arange(table.scores.size) == 1, np.nan, table.scores)
    save_table(path, dataclasses.replace(table, scores=scores))


@pytest.mark.parametrize(
    ("undo", "fault"),
    [
        (lambda r: analysis_checkpoints(r / TASK / "checkpoints")[-1].unlink(), "done 2 of 3"),
        (lambda r: (r / TASK / "analysis.json").unlink(), "run optdyn analyze first"),
        (
            lambda r: analysis_checkpoints(r / TASK / "checkpoints")[1].unlink(),
            "is of other checkpoints",
        ),
        (unfinished_table, r"rmsprop\.parquet is not finished \(run optdyn tune --baseline rmsp"),
        (lambda r: shutil.rmtree(r / TASK), r"has no checkpoints to export \(run optdyn train"),
        (lambda r: (r / TASK / "training.jsonl").unlink(), r"training\.jsonl: cannot read"),
    ],
)
def test_an_unfinished_run_is_not_exported(
    tiny_study: Path, tmp_path: Path, undo: Callable[[Path], None], fault: str
) -> None:
    run = Path(shutil.copytree(tiny_study, tmp_path / "run"))
    undo(run)
    with pytest.raises(UserError, match=fault):
        export(run, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_export_needs_a_folder_outside_a_checkout(
    tiny_study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shipped, "FOLDER", tiny_study / "a" / "b" / "c")
    assert main(["export", "--out", str(tiny_study), "--task", TASK]) == 2
    assert "--to: give a folder" in capsys.readouterr().err


def test_the_package_ships_what_it_lists() -> None:
    assert optdyn.PRETRAINED == PRETRAINED
    for task, stages in PRETRAINED.items():
        readable = (FOLDER / task / FITTED).is_file()
        assert stages == (*shipped_stages()[task], *(["readable"] if readable else []))
        for stage in stages:
            optdyn.load_pretrained(task, stage)
    assert "readable" in PRETRAINED["digits"]
    for task, recipe in LAPTOP.items():
        found = load_shipped(task)
        assert set(found.tables) >= set(recipe.baselines)
        at_stage = found.card if recipe.stage is None else recipe.stage
        for stage, of in (("final", found.card), ("momentum", at_stage)):
            assert optdyn.load_pretrained(task, stage).architecture == of.architecture
    assert other_trainings().keys() == {
        "digits/stochastic",
        "linear_regression/small",
        "linear_regression/small_gain",
        "rosenbrock/paper",
    }
    for name in other_trainings():
        assert pretrained_card(name).training.meta_step == (60 if "digits" in name else 5000)
        assert optdyn.load_pretrained(name).as_optax()
    files = [path for path in shipped.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < SIZE_LIMIT


def test_searches_of_the_meta_learning_rate_ship_too(tiny_study: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_study, tmp_path / "run"))
    what = LearningRateSearch(num_draws=2, horizon=2, num_finalists=1, num_problems=2)
    recipe = TINY_RECIPE
    with open_run(run) as folder:
        rows = search(folder, Rosenbrock(), recipe.architecture, recipe.protocol, 0, what)
    to = export(run, tmp_path / "to")
    (path,) = (to / TASK / "searches").iterdir()
    assert read_result(path, SearchResult).rows == rows
    place = str(path.relative_to(to / TASK))
    assert load_shipped(TASK, to).files[place] == path.read_bytes()
    with open_run(run) as folder:
        found = read_results(folder, TASK)
    page = write_page(run, [found], [], []).read_text()
    assert "Architectures and meta learning rates tried" in page
    assert f"{min(row.meta_objective for row in rows[2:]):.4g}" in page

    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    with pytest.raises(UserError, match=path.name):
        load_shipped(TASK, to)
