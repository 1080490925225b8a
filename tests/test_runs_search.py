"""The meta learning rate's search: reproducible, resumable, and ranked."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from optdyn.errors import UserError
from optdyn.meta_training._trainer import INIT_STREAM, MetaTraining, make_meta_step, start_training
from optdyn.optimizers._componentwise_rnn import Architecture, ComponentwiseRNN
from optdyn.random_streams import stream
from optdyn.runs import _search_run as search_run
from optdyn.runs import read_result
from optdyn.runs._run_folder import open_run
from optdyn.runs._search_run import SearchResult
from optdyn.runs._store import write_result
from optdyn.search import _learning_rate as search
from optdyn.search._learning_rate import (
    LearningRateSearch,
    Row,
    ranked,
    search_learning_rate,
)
from optdyn.tasks import Rosenbrock

TASK = Rosenbrock()
ARCHITECTURE = Architecture(units=4)
PROTOCOL = MetaTraining(num_meta_steps=6, unroll_length=8, batch_size=2)
SEARCH = LearningRateSearch(num_draws=3, horizon=2, num_finalists=1, num_problems=4)


@pytest.fixture(autouse=True, scope="module")
def compile_once() -> Iterator[None]:
    """Searches of one protocol share their compiled programs."""
    patch = pytest.MonkeyPatch()
    for name in ("make_meta_step", "make_validator"):
        patch.setattr(search, name, functools.cache(getattr(search, name)))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def rows(compile_once: None) -> list[Row]:
    with jax.numpy_rank_promotion("raise"):  # as in every test, or JAX compiles anew
        return search_learning_rate(TASK, ARCHITECTURE, PROTOCOL, 0, SEARCH)


def test_draws_then_finalists(rows: list[Row]) -> None:
    assert [row.num_meta_steps for row in rows] == [2, 2, 2, 6]
    assert [row.num_meta_steps for row in rows] == SEARCH.training_lengths(PROTOCOL)
    best = min(rows[:3], key=lambda row: row.meta_objective)
    assert rows[3].learning_rate == best.learning_rate
    assert ranked(rows)[0] is rows[3]


def test_a_row_is_what_training_at_its_rate_gives(rows: list[Row]) -> None:
    row = rows[3]
    protocol = dataclasses.replace(PROTOCOL, learning_rate=row.learning_rate)
    step = make_meta_step(TASK, protocol, 0)
    state = start_training(ComponentwiseRNN.init(stream(0, INIT_STREAM), ARCHITECTURE), protocol)
    for _ in range(6):
        state, _ = step(state)
    objective = search.make_validator(TASK, ARCHITECTURE, protocol, 0, 4)(state.optimizer)
    np.testing.assert_allclose(row.meta_objective, objective, rtol=1e-5)


def test_draws_are_log_uniform_and_independent_of_their_number() -> None:
    many = LearningRateSearch(num_draws=400, low=1e-4, high=1e-2).learning_rates(3)
    few = LearningRateSearch(num_draws=5, low=1e-4, high=1e-2).learning_rates(3)
    assert many[:5] == few
    exponents = np.log10(many)
    assert exponents.min() >= -4
    assert exponents.max() <= -2
    quarters = np.histogram(exponents, bins=4, range=(-4, -2))[0]
    assert np.all(np.abs(quarters - 100) < 4 * math.sqrt(100 * 0.75))


def test_an_interrupted_search_goes_on(tmp_path: Path, rows: list[Row]) -> None:
    def found() -> list[Row]:
        with open_run(tmp_path) as run:
            return search_run.search(run, TASK, ARCHITECTURE, PROTOCOL, 0, SEARCH)

    assert found() == rows
    (path,) = (tmp_path / "rosenbrock" / search_run.SEARCHES).iterdir()
    before = path.stat().st_mtime_ns
    assert found() == rows
    assert path.stat().st_mtime_ns == before
    settings = read_result(path, SearchResult).settings
    assert path == search_run.search_path(tmp_path / "rosenbrock", settings)
    write_result(path, SearchResult(settings, rows[:2]))
    assert found() == rows
    path.write_bytes(b"torn")
    assert found() == rows


def test_bad_ranges_are_refused() -> None:
    with pytest.raises(UserError, match="low"):
        LearningRateSearch(low=1.0, high=0.1)
    with pytest.raises(UserError, match="num_draws"):
        LearningRateSearch(num_draws=0)
