"""Sweeps: every combination once, in one dataset, and engines that are missing."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import pyarrow.dataset
import pyarrow.parquet
import pytest

from optdyn.cli import _devices as devices
from optdyn.cli.main import main
from optdyn.errors import UserError
from optdyn.runs import _search_run as sweep_run
from optdyn.runs._run_folder import open_run
from optdyn.runs._search_run import Base, Sweep, SweepRow, best_rows, run_sweep
from optdyn.runs._store import table_bytes
from optdyn.search._learning_rate import LearningRateSearch, search_learning_rate
from optdyn.study._recipes import recipe_for
from optdyn.tasks import LinearRegression

RECIPE = recipe_for("linear_regression", "laptop")
PROTOCOL = dataclasses.replace(RECIPE.protocol, num_meta_steps=2, unroll_length=3, batch_size=2)
TINY = Sweep(
    bases=(Base(LinearRegression(), RECIPE.architecture, PROTOCOL),),
    cells=("rnn",),
    units=(2,),
    seeds=(0, 1),
    learning_rates=(1e-3, 1e-2),
    num_problems=2,
)


@pytest.fixture(autouse=True)
def no_compilation_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "use_compilation_cache", lambda: None)


def test_a_sweep_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = []
    make_trainer = sweep_run.make_trainer

    def counted(task, architecture, protocol, seed, mesh):
        trained = make_trainer(task, architecture, protocol, seed, mesh)
        rates = []
        done.append((seed, rates))
        return lambda rate, steps: rates.append(rate) or trained(rate, steps)

    monkeypatch.setattr(sweep_run, "make_trainer", counted)
    with open_run(tmp_path / "run") as run:
        rows = run_sweep(run, TINY)
        assert done == [(0, [1e-3, 1e-2]), (1, [1e-3, 1e-2])]
        assert [(row.seed, row.learning_rate) for row in rows] == [
            (seed, rate) for seed in (0, 1) for rate in (1e-3, 1e-2)
        ]
        done.clear()
        more = dataclasses.replace(TINY, seeds=(1,), learning_rates=(1e-2, 3e-3))
        again = run_sweep(run, more)
        assert done == [(1, [3e-3])]
        assert {row.learning_rate for row in again} == {1e-2, 3e-3}
        assert rows[3] in again
        done.clear()
        file = sorted((run.path / "sweep").glob("*-2-0-*.parquet"))[0]
        file.write_bytes(file.read_bytes()[:-7])
        assert run_sweep(run, TINY) == rows
        assert done == [(0, [1e-3, 1e-2])]
        assert "doing trainings again" in capsys.readouterr().out
        longer = dataclasses.replace(PROTOCOL, num_meta_steps=3)
        other = dataclasses.replace(TINY.bases[0], protocol=longer)
        with pytest.raises(UserError, match="num_meta_steps = 2, not 3"):
            run_sweep(run, dataclasses.replace(TINY, bases=(other,)))

    table = pyarrow.dataset.dataset(tmp_path / "run" / "sweep").to_table()
    best = table.group_by(["task", "cell", "units"]).aggregate([("meta_objective", "min")])
    assert table.num_rows == 5
    assert best["meta_objective_min"].to_pylist() == [
        min(row.meta_objective for row in [*rows, *again])
    ]
    assert best_rows([*rows, *again])[0].meta_objective == best["meta_objective_min"][0].as_py()


def test_files_that_are_not_as_they_were_written_are_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("~root") / "sweep"  # a name that other readers take for a home folder
    folder.mkdir(parents=True)
    row = SweepRow("rosenbrock", "rnn", 2, seed=0, learning_rate=0.1, meta_objective=math.inf)
    path, sound = folder / "a.parquet", sweep_run._parquet([row])
    path.write_bytes(sound)
    assert sweep_run.read_rows(folder) == [row]
    table = pyarrow.parquet.read_table(pyarrow.BufferReader(sound))
    unsigned = table.replace_schema_metadata(None)
    other = table.set_column(5, "meta_objective", pyarrow.array([0.25]))
    for changed in (unsigned, other):
        pyarrow.parquet.write_table(changed, path.absolute())
        assert sweep_run.read_rows(folder) == []
        assert not path.exists()
    for changed in (sound[:-1], table_bytes(table.drop_columns("seed"), {})):
        path.write_bytes(changed)
        assert sweep_run.read_rows(folder) == []
        assert not path.exists()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(".parquet: ")[2].split()[0].strip(",") for line in lines] == [
        "damaged", "damaged", "damaged", "[0]:"
    ]  # fmt: skip


def test_a_row_is_what_the_learning_rate_search_finds(tmp_path: Path) -> None:
    sweep = dataclasses.replace(TINY, seeds=(1,), learning_rates=(1e-2,))
    with open_run(tmp_path / "run") as run:
        (row,) = run_sweep(run, sweep)
    (found,) = search_learning_rate(
        LinearRegression(),
        dataclasses.replace(RECIPE.architecture, cell="rnn", units=2),
        PROTOCOL,
        1,
        LearningRateSearch(num_draws=1, low=1e-2, high=1e-2, horizon=2, num_problems=2),
    )
    assert row.meta_objective == pytest.approx(found.meta_objective, rel=1e-6)


def test_the_command_sweeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--cells rnn --units 2 --learning-rates 0.001,0.01 --meta-steps 2 --unroll-length 3"
    argv = ["sweep", *words.split(), "--batch-size", "2", "--problems", "2", "--devices", "1"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    assert "best on linear_regression: cell rnn, 2 units, seed 0" in capsys.readouterr().out
    assert len(list((tmp_path / "run" / "sweep").glob("*.parquet"))) == 1


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["sweep", "--units", "4,,8"], "--units: '' is not allowed (an integer >= 1"),
        (["sweep", "--tasks", "rosenbrock,x"], "--tasks: unknown value 'x'"),
        (["tune", "--address", "auto"], "--address: needs --engine ray"),
        (["tune", "--address", "here"], "--address: 'here' is not allowed"),
    ],
)
def test_bad_values_are_refused(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert told in capsys.readouterr().err


def test_without_ray_one_line_tells_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["tune", "--engine", "ray"]) == 2
    assert "ray is not installed (pip install 'optdyn[ray]'" in capsys.readouterr().err
