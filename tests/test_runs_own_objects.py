"""A task and a cell of the user's own go through every kind of run."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optdyn.errors import UserError
from optdyn.evaluation import evaluate
from optdyn.inner_loop import Objective
from optdyn.meta_training import MetaTraining
from optdyn.optimizers import Architecture, ComponentwiseRNN
from optdyn.optimizers._baselines import BASELINES
from optdyn.runs import (
    AnalysisResult,
    EvaluationSummary,
    HeldOut,
    Watch,
    analyze_task,
    evaluate_all,
    load,
    open_run,
    read_result,
    read_task_result,
    rerun_tables,
    save,
    train,
    tune,
)
from optdyn.runs._evaluation_run import load_evaluation
from optdyn.search import SearchProtocol, best
from optdyn.tasks import Problem, describe_task

PROTOCOL = MetaTraining(num_meta_steps=3, unroll_length=6, batch_size=2, learning_rate=1e-2)


@dataclasses.dataclass(frozen=True)
class Bowl:
    """``Σ cᵢ xᵢ²`` with curvatures of ``steepness``, from a normal start."""

    steepness: float = 1.0

    def sample(self, key: jax.Array) -> Problem:
        curvatures = self.steepness * jnp.array([0.1, 0.5, 1.0])
        return Problem(jax.random.normal(key, (3,)), self.loss, (curvatures,))

    def loss(self, x: jax.Array, curvatures: jax.Array) -> jax.Array:
        return jnp.sum(curvatures * x**2)


@dataclasses.dataclass(frozen=True)
class Leaky:
    """``h' = h/2 + tanh(V u)``."""

    units: int

    @property
    def state_size(self) -> int:
        return self.units

    def init(self, key: jax.Array, inputs: int) -> dict[str, jax.Array]:
        return {"V": 0.3 * jax.random.normal(key, (inputs, self.units))}

    def step(self, weights: dict[str, jax.Array], h: jax.Array, u: jax.Array) -> jax.Array:
        return 0.5 * h + jnp.tanh(u @ weights["V"])


ARCHITECTURE = Architecture(cell=Leaky, units=3, output_scale=0.3)


def test_a_task_and_a_cell_of_ones_own_are_run_from_start_to_end(tmp_path: Path) -> None:
    task, name = Bowl(0.5), f"{__name__}:Bowl"
    assert describe_task(task).name == name
    rnn = ComponentwiseRNN.init(jax.random.key(0), ARCHITECTURE)
    held_out = HeldOut(0, 4, PROTOCOL.objective)
    with open_run(tmp_path / "run") as run:
        folder = run.task_folder(task)
        assert folder == tmp_path / "run" / f"{__name__}.Bowl"
        for steps in (2, 3):
            protocol = dataclasses.replace(PROTOCOL, num_meta_steps=steps)
            state = train(run, task, rnn, protocol, seed=0, watch=Watch(progress=False))
        searching = SearchProtocol(Objective(6), num_samples=20, num_problems=2, rescore_top=4)
        tune(run, task, BASELINES["momentum"], searching, seed=0)
        assert rerun_tables(run, task).baselines["momentum"].rerun > 0
        scores = evaluate_all(run, task, held_out)
        assert set(scores) == {"learned", "momentum"}
        analysis = analyze_task(run, task, held_out)
        assert analysis.final == 3
        with pytest.raises(UserError, match=r"task_options\.steepness = 0\.5, not 2\.0"):
            train(run, Bowl(2.0), rnn, PROTOCOL, seed=0)
    assert read_task_result(folder / "analysis.json", AnalysisResult).inputs.task == name
    loaded = load(folder / "checkpoints" / "step-000003.safetensors")
    assert loaded.architecture == ARCHITECTURE
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(state.optimizer), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_evaluation_with_other_settings_takes_the_place_of_the_last(tmp_path: Path) -> None:
    """Problems of another seed have results of the same shape, and are others all the same."""
    task, objective = Bowl(0.5), Objective(6)
    searching = SearchProtocol(objective, num_samples=20, num_problems=2, rescore_top=4)
    with open_run(tmp_path) as run:
        table = tune(run, task, BASELINES["momentum"], searching, seed=0)
        tx = BASELINES["momentum"].factory(**best(table).hyperparameters)
        folder = run.task_folder(task)
        for seed in (0, 1):
            (folder / "distillation.json").touch()
            evaluate_all(run, task, HeldOut(seed, 4, objective))
            expected = evaluate(tx, task, seed=seed, num_problems=4, num_steps=6)
            stored = load_evaluation(folder / "evaluation" / "momentum.json")
            assert stored is not None
            np.testing.assert_array_equal(stored.losses, expected.losses)
            scores = read_result(folder / "evaluation.json", EvaluationSummary).optimizers
            assert scores["momentum"].mean == expected.mean
            assert (folder / "distillation.json").exists() == (seed == 0)
        earlier = load_evaluation(folder / "earlier_evaluations" / "1" / "evaluation/momentum.json")
        assert earlier is not None
        first = evaluate(tx, task, seed=0, num_problems=4, num_steps=6)
        np.testing.assert_array_equal(earlier.losses, first.losses)
        with pytest.raises(UserError, match=r"task_options\.steepness = 0\.5, not 2\.0"):
            evaluate_all(run, Bowl(2.0), HeldOut(0, 4, objective))
        assert (folder / "evaluation.json").exists()


def test_a_cell_is_read_back_only_where_its_module_has_been_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rnn = ComponentwiseRNN.init(jax.random.key(0), ARCHITECTURE)
    assert rnn.architecture.cell_name == f"{__name__}:Leaky"
    path = tmp_path / "a.safetensors"
    save(path, rnn)
    assert load(path).architecture == ARCHITECTURE
    monkeypatch.delitem(sys.modules, __name__)
    with pytest.raises(UserError, match=r"a\.safetensors: .*Leaky' is not known here \(import"):
        load(path)
    assert __name__ not in sys.modules


@pytest.mark.parametrize("cell", ["os:system", "json:JSONEncoder", dict, len, 3, None, "nothing"])
def test_what_is_no_cell_is_refused(cell: object) -> None:
    with pytest.raises(UserError, match=r"cell: unknown value .*allowed: gru"):
        Architecture(cell=cell)
