"""Random search: against theory, its own direct evaluation, interruption and damage."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optdyn.errors import UserError
from optdyn.inner_loop import Objective, ProblemSet, meta_loss
from optdyn.inner_loop._unroll import unroll
from optdyn.optimizers._baselines import BASELINES
from optdyn.optimizers._search_space import LIMITS, Axis
from optdyn.random_streams import keys_at, stream
from optdyn.runs._tuning_run import load_table, save_table
from optdyn.search import (
    Execution,
    Grid,
    SearchProtocol,
    SearchTable,
    best,
    random_search,
    rerun_best,
    score,
    tuning_problems,
)
from optdyn.search._random_search import RESCORING_STREAM, TUNING_STREAM
from optdyn.tasks import Problem, Task, describe_task, make_task

COARSE = Grid((Axis("alpha", "log", 1e-5, 0.01, 20), Axis("beta", "one_minus_log", 0.0, 0.99, 15)))


@dataclasses.dataclass(frozen=True)
class LogQuadratic:
    """Gradients of ``q = ½ Σ λ x²``, losses log q: the mean log loss measures the rate."""

    smallest: float
    largest: float = 1.0

    def sample(self, key: jax.Array) -> Problem:
        signs = jax.random.rademacher(key, (2,)).astype(float)
        return Problem(params=signs, loss_fn=self.loss)

    def loss(self, x: jax.Array) -> jax.Array:
        q = 0.5 * (self.smallest * x[0] ** 2 + self.largest * x[1] ** 2)
        return q + jax.lax.stop_gradient(jnp.log(q) - q)


def search(
    grid: Grid = COARSE, num_steps: int = 10, seed: int = 0, **changes: object
) -> SearchTable:
    """A small search on Rosenbrock: three chunks, then two of rescoring, a round."""
    protocol = SearchProtocol(
        objective=Objective(num_steps),
        grid=grid,
        num_samples=25,
        num_problems=4,
        rescore_top=6,
        rescore_problems=8,
    )
    return random_search(
        BASELINES["momentum"],
        make_task("rosenbrock"),
        seed=seed,
        protocol=protocol,
        execution=Execution(runs_per_chunk=40),
        **changes,
    )


def problems(task: Task, number: int, objective: Objective = Objective()) -> ProblemSet:
    return ProblemSet(task, 0, number, objective, TUNING_STREAM)


@pytest.fixture(scope="module")
def table() -> SearchTable:
    return search()


def assert_same(a: SearchTable, b: SearchTable) -> None:
    assert a.settings == b.settings
    assert a.grid == b.grid
    assert a.earlier == b.earlier
    np.testing.assert_array_equal(a.indices, b.indices)
    np.testing.assert_array_equal(a.scores, b.scores)
    np.testing.assert_array_equal(a.rescores, b.rescores)


# The grid


def test_axes_are_spaced_as_declared() -> None:
    np.testing.assert_allclose(Axis("a", "log", 0.01, 10.0, 4).values(), [0.01, 0.1, 1, 10])
    decays = Axis("b", "one_minus_log", 0.0, 0.999, 4).values()
    np.testing.assert_allclose(decays, [0, 0.9, 0.99, 0.999], atol=1e-12)


@pytest.mark.parametrize(
    ("axis", "side", "expected"),
    [
        (Axis("a", "log", 0.01, 1.0, 3), "high", [0.01, 0.1, 1, 10, 100]),
        (Axis("a", "log", 0.01, 1.0, 3), "low", [1e-4, 1e-3, 0.01, 0.1, 1]),
        (Axis("b", "one_minus_log", 0.9, 0.999, 3), "high", [0.9, 0.99, 0.999, 0.9999, 0.99999]),
        (Axis("b", "one_minus_log", 0.9, 0.999, 3), "low", [0, 0.9, 0.99, 0.999]),
    ],
)
def test_widening_continues_the_spacing_up_to_the_limit(
    axis: Axis, side: str, expected: list[float]
) -> None:
    np.testing.assert_allclose(axis.widened(side).values(), expected, atol=1e-12, rtol=1e-9)


@given(
    low=st.floats(-6, 0),
    length=st.floats(0.1, 5),
    points=st.integers(3, 60),
    kind=st.sampled_from(["log", "one_minus_log"]),
    side=st.sampled_from(["low", "high"]),
)
def test_widening_keeps_what_was_there(
    low: float, length: float, points: int, kind: str, side: str
) -> None:
    if kind == "log":
        axis = Axis("a", kind, 10**low, 10 ** (low + length), points)
    else:
        axis = Axis("a", kind, 1 - 10 ** (low / 6), 1 - 10 ** (low / 6 - length * 0.9), points)
    wide = axis.widened(side)
    least, most = LIMITS[kind]
    assert least <= wide.low <= axis.low < axis.high <= wide.high <= most
    assert (wide.low, wide.high) != (axis.low, axis.high) or axis.at_limit(side)
    scale = np.log if kind == "log" else np.log1p
    sign = 1 if kind == "log" else -1
    gaps = [np.abs(np.diff(scale(sign * a.values()))).max() for a in (axis, wide)]
    assert gaps[1] <= gaps[0] * (1 + 1e-6)


def test_samples_are_distinct_points_spread_over_the_grid() -> None:
    indices = COARSE.sample(jax.random.key(0), 200)
    assert indices.shape == (200, 2)
    assert len({tuple(row) for row in indices.tolist()}) == 200
    for column, axis in zip(indices.T, COARSE.axes, strict=True):
        assert set(column.tolist()) == set(range(axis.points))
    np.testing.assert_array_equal(indices, COARSE.sample(jax.random.key(0), 200))
    assert len(COARSE.sample(jax.random.key(0), 10_000)) == COARSE.size == 300


def test_an_edge_is_an_end_that_can_be_moved() -> None:
    assert COARSE.on_edge(np.array([0, 14])) == {"alpha": "low", "beta": "high"}
    assert COARSE.on_edge(np.array([19, 0])) == {"alpha": "high"}  # beta = 0 is a limit
    assert COARSE.on_edge(np.array([1, 13])) == {}


@pytest.mark.parametrize(
    "fields",
    [
        ("linear", 0.1, 1.0, 5),
        ("log", 0.0, 1.0, 5),
        ("log", 1.0, 1.0, 5),
        ("log", 0.1, float("nan"), 5),
        ("one_minus_log", 0.0, 1.0, 5),
        ("log", 0.1, 1.0, 2),
    ],
)
def test_bad_axes_are_named(fields: tuple) -> None:
    with pytest.raises(UserError, match="axis alpha"):
        Axis("alpha", *fields)


# Scores


def test_scores_are_means_over_problems_of_the_meta_objective() -> None:
    task = make_task("rosenbrock")
    keys = keys_at(stream(0, TUNING_STREAM), jnp.arange(3))
    columns = {"alpha": np.array([1e-4, 2e-4, 1e-5]), "beta": np.array([0.5, 0.0, 0.9])}

    @jax.jit
    def alone(row: dict[str, float], key: jax.Array) -> jax.Array:
        tx = BASELINES["momentum"].factory(**row)
        return meta_loss(unroll(tx, task.sample(key), 15).losses, "first")

    rows = [{name: column[i] for name, column in columns.items()} for i in range(3)]
    expected = [np.mean([alone(row, key) for key in keys]) for row in rows]
    for at_once in (None, 1, 4):
        scores = score(
            BASELINES["momentum"],
            problems(task, 3, Objective(15, "first")),
            columns,
            at_once=at_once,
        )
        np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_diverged_combinations_score_infinity_and_spoil_no_other() -> None:
    some = problems(make_task("rosenbrock"), 4)
    scores = score(BASELINES["gradient_descent"], some, {"alpha": np.array([1e-4, 10.0])})
    alone = score(BASELINES["gradient_descent"], some, {"alpha": np.array([1e-4])})
    assert scores[1] == np.inf
    np.testing.assert_allclose(scores[0], alone[0], rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class NormAtZero:
    """‖b‖, whose gradient at b = 0 is not a number, where some of the problems start."""

    at_zero: float

    def sample(self, key: jax.Array) -> Problem:
        b = jnp.where(jax.random.uniform(key) < self.at_zero, 0.0, 1.0) * jnp.ones(2)
        return Problem(
            {"w": jnp.ones(2), "b": b}, lambda p: jnp.sum(p["w"] ** 4) + jnp.linalg.norm(p["b"])
        )


def test_a_gradient_that_is_not_finite_at_the_start_is_why_all_diverge() -> None:
    protocol = SearchProtocol(Objective(5), num_samples=4, num_problems=16, rescore_problems=2)
    kept: list[SearchTable] = []
    with pytest.raises(UserError) as raised:
        random_search(
            BASELINES["adam"], NormAtZero(0.5), seed=0, protocol=protocol, on_chunk=kept.append
        )
    starts = problems(NormAtZero(0.5), 16).problems.params["b"]
    number = int(np.sum(np.all(np.asarray(starts) == 0, axis=1)))
    assert 0 < number < 16
    assert (
        "every combination diverged, as the gradient along params['b'] is not finite at the "
        f"start of {number} of 16 problems" in str(raised.value)
    )
    with pytest.raises(UserError, match="as the gradient along"):
        random_search(BASELINES["adam"], NormAtZero(0.5), seed=0, protocol=protocol, done=kept[-1])


def test_learning_rates_are_why_all_diverge_where_the_start_is_sound() -> None:
    grid = Grid((Axis("alpha", "log", 1e3, 1e4, 4),))
    protocol = SearchProtocol(Objective(20), num_samples=4, num_problems=2, grid=grid)
    with pytest.raises(UserError, match=r"diverged \(give a grid with smaller learning rates\)"):
        random_search(BASELINES["gradient_descent"], NormAtZero(0.0), seed=0, protocol=protocol)


# The search


def test_tuned_momentum_approaches_theory(x64: None) -> None:
    """For curvatures in [m, L]: α* = 4/(√L + √m)², β* = ((√L − √m)/(√L + √m))²."""
    m = 0.03
    task = LogQuadratic(m)
    grid = Grid((Axis("alpha", "log", 0.5, 8.0, 81), Axis("beta", "one_minus_log", 0.0, 0.9, 41)))
    table = random_search(
        BASELINES["momentum"],
        task,
        seed=0,
        protocol=SearchProtocol(
            Objective(400), grid=grid, num_samples=2500, num_problems=2, rescore_problems=2
        ),
    )
    found = best(table)
    alpha = 4 / (1 + np.sqrt(m)) ** 2
    beta = ((1 - np.sqrt(m)) / (1 + np.sqrt(m))) ** 2
    assert found.edges == {}
    assert abs(found.hyperparameters["alpha"] / alpha - 1) < 0.1
    assert abs(found.hyperparameters["beta"] - beta) < 0.05
    theory = {"alpha": np.array([alpha]), "beta": np.array([beta])}
    at_theory = score(BASELINES["momentum"], problems(task, 2, Objective(400)), theory)[0]
    assert at_theory < 0
    assert abs(at_theory / found.score - 1) < 0.06


def test_a_best_on_an_edge_widens_the_grid_until_it_is_interior() -> None:
    low = Grid((Axis("alpha", "log", 1e-3, 1e-2, 9),))
    protocol = SearchProtocol(Objective(20), grid=low, num_problems=2, rescore_problems=2)

    def run(protocol: SearchProtocol) -> SearchTable:
        task = LogQuadratic(0.1)
        return random_search(BASELINES["gradient_descent"], task, seed=0, protocol=protocol)

    stopped = run(dataclasses.replace(protocol, max_rounds=1))
    assert best(stopped).edges == {"alpha": "high"}
    assert stopped.earlier == ()
    table = run(protocol)
    found = best(table)
    assert found.edges == {}
    assert 0.1 < found.hyperparameters["alpha"] < 10
    assert table.round >= 2
    assert table.earlier[0].grid == low
    assert all(finished.edges == {"alpha": "high"} for finished in table.earlier)
    assert table.grid.axes[0].low == 1e-3
    assert len(table.scores) == table.grid.size  # every point of a grid this small


def test_the_same_seed_gives_the_same_table(table: SearchTable) -> None:
    assert_same(table, search())
    assert not np.array_equal(table.indices, search(seed=1).indices)


def test_an_interrupted_search_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    narrow = Grid((Axis("alpha", "log", 1e-5, 1e-4, 8), Axis("beta", "one_minus_log", 0.0, 0.5, 8)))
    partial: list[SearchTable] = []
    whole = search(grid=narrow, on_chunk=partial.append)
    assert whole.round >= 1
    assert len(partial) >= 10
    for number, stopped in enumerate(partial):
        path = tmp_path / f"{number}.parquet"
        save_table(path, stopped)
        assert_same(search(grid=narrow, done=load_table(path)), whole)
    afterwards: list[SearchTable] = []
    search(grid=narrow, done=whole, on_chunk=afterwards.append)
    assert afterwards == []


def test_a_search_of_other_settings_is_not_continued(table: SearchTable) -> None:
    with pytest.raises(UserError, match="num_steps is 10, not 11"):
        search(done=table, num_steps=11)


def test_scores_are_recovered_from_the_stored_table(tmp_path: Path, table: SearchTable) -> None:
    save_table(tmp_path / "momentum.parquet", table)
    table = load_table(tmp_path / "momentum.parquet")
    stored = table.settings
    scores = score(
        BASELINES[stored.baseline],
        tuning_problems(make_task(stored.task, **stored.task_options), stored),
        table.hyperparameters(),
    )
    np.testing.assert_allclose(scores, table.scores, rtol=1e-5)


def test_the_rows_with_the_best_scores_are_rescored_and_the_best_of_them_wins(
    table: SearchTable,
) -> None:
    top = set(np.argsort(table.scores)[:6].tolist())
    assert set(np.flatnonzero(~np.isnan(table.rescores)).tolist()) == top
    found = best(table)
    assert found.row == int(np.nanargmin(table.rescores))
    assert found.score == np.nanmin(table.rescores)
    assert found.tuning_score == table.scores[found.row]


def test_a_stand_in_scores_all_and_the_task_itself_the_best() -> None:
    task, cheap = make_task("linear_regression", n=4), make_task("linear_regression", n=2)
    momentum, objective = BASELINES["momentum"], Objective(10)
    protocol = SearchProtocol(
        objective, 10, 3, rescore_top=2, rescore_problems=4, max_rounds=1, stand_in={"n": 2}
    )
    table = random_search(momentum, task, seed=0, protocol=protocol)
    assert table.settings.task_options == describe_task(task).options
    assert table.settings.stand_in == {"n": 2}
    rows = table.hyperparameters()
    expected = score(momentum, problems(cheap, 3, objective), rows)
    np.testing.assert_allclose(table.scores, expected, rtol=1e-5)
    fresh = ProblemSet(task, 0, 4, objective, RESCORING_STREAM)
    top = np.argsort(table.scores)[:2]
    expected = score(momentum, fresh, {name: column[top] for name, column in rows.items()})
    np.testing.assert_allclose(table.rescores[top], expected, rtol=1e-5)
    np.testing.assert_allclose(
        rerun_best(table, momentum, task), best(table).tuning_score, rtol=1e-5
    )


def test_a_stand_in_that_the_task_does_not_take_is_refused() -> None:
    with pytest.raises(UserError, match="task rosenbrock: unknown option 'points'"):
        random_search(
            BASELINES["momentum"],
            make_task("rosenbrock"),
            seed=0,
            protocol=SearchProtocol(stand_in={"points": 8}),
        )


def test_a_search_in_which_everything_diverges_says_so() -> None:
    huge = Grid((Axis("alpha", "log", 1e20, 1e25, 5),))
    with pytest.raises(UserError, match="tuning gradient_descent on rosenbrock: every combination"):
        random_search(
            BASELINES["gradient_descent"],
            make_task("rosenbrock"),
            seed=0,
            protocol=SearchProtocol(grid=huge),
        )


# Files


def test_tables_survive_storage(tmp_path: Path, table: SearchTable) -> None:
    path = tmp_path / "new" / "momentum.parquet"
    save_table(path, table)
    assert_same(load_table(path), table)
    assert [p.name for p in path.parent.iterdir()] == ["momentum.parquet"]


def test_a_table_is_plain_parquet(tmp_path: Path, table: SearchTable) -> None:
    import pyarrow.parquet as pq

    save_table(tmp_path / "t.parquet", table)
    columns = pq.read_table(tmp_path / "t.parquet").to_pydict()
    assert list(columns) == [
        "alpha",
        "beta",
        "alpha_index",
        "beta_index",
        "score",
        "rescore",
        "round",
    ]
    np.testing.assert_array_equal(columns["score"], table.scores)


def test_other_files_are_refused(tmp_path: Path, table: SearchTable) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(UserError, match="No such file"):
        load_table(tmp_path / "none.parquet")
    pq.write_table(pa.table({"score": [1.0]}), tmp_path / "foreign.parquet")
    (tmp_path / "text.parquet").write_text("score\n1.0\n")
    for name in ("foreign.parquet", "text.parquet"):
        with pytest.raises(UserError, match="damaged"):
            load_table(tmp_path / name)
    with pytest.raises(UserError, match=r"text\.parquet: cannot make the folder"):
        save_table(tmp_path / "text.parquet" / "t.parquet", table)


@pytest.fixture(scope="module")
def stored(
    tmp_path_factory: pytest.TempPathFactory, table: SearchTable
) -> tuple[Path, SearchTable, bytes]:
    path = tmp_path_factory.mktemp("damage") / "t.parquet"
    save_table(path, table)
    return path, table, path.read_bytes()


@settings(deadline=None, max_examples=40)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(stored: tuple[Path, SearchTable, bytes], share: float) -> None:
    path, _, content = stored
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="damaged"):
        load_table(path)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused(
    stored: tuple[Path, SearchTable, bytes], share: float, bit: int
) -> None:
    path, _, content = stored
    damaged = bytearray(content)
    damaged[int(share * len(content))] ^= 1 << bit
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="damaged"):
        load_table(path)
