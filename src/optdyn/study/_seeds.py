"""Headline numbers of a recipe's training, and their spread over training seeds."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from optdyn.distillation import linear_account
from optdyn.dynamics import Eigenmodes, step_map
from optdyn.errors import UserError
from optdyn.evaluation import EVALUATION_STREAM, evaluate_on, paired_difference
from optdyn.inner_loop import ProblemSet
from optdyn.mechanisms._measurement import measure, visit
from optdyn.mechanisms._momentum_stage import operating_points
from optdyn.meta_training import MetaTraining
from optdyn.optimizers import Architecture, ComponentwiseRNN
from optdyn.optimizers._baselines import get_baseline
from optdyn.runs import HeldOut, RunFolder, open_run, train
from optdyn.runs._store import read_result, write_result
from optdyn.runs._training_run import load_trained, require_checkpoints
from optdyn.runs._tuning_run import tuned_values
from optdyn.study._recipes import Recipe

SEEDS = "seeds.json"
FOLDER = "seeds"
"""Where in a run folder the trainings with other seeds lie."""
EXPLAINED = 16
"""Problems, the first of the set, on which mechanisms are measured."""

Headlines = dict[str, float]
"""Numbers that decide headline claims, by name; NaN where one does not exist."""


@dataclasses.dataclass(frozen=True)
class SeedNumbers:
    """The headline numbers of one training."""

    seed: int
    numbers: Headlines


@dataclasses.dataclass(frozen=True)
class SeedsResult:
    """``seeds.json``: trainings of one recipe that differ in the seed alone.

    All are judged on the same ``held_out`` problems, so that the spread comes from training.
    """

    architecture: Architecture
    protocol: MetaTraining
    held_out: HeldOut
    rows: list[SeedNumbers]


def measure_seeds(
    run: RunFolder, recipe: Recipe, seed: int, count: int, mesh: Mesh | None = None
) -> SeedsResult:
    """Train a recipe with ``count`` seeds in a row, and measure each training.

    The first seed is the study's own training's, whose weights are taken from ``run``;
    the others are trained in run folders of their own, ``seeds/<seed>`` within it, which can be
    resumed. Needs the recipe's tuned baselines. Trainings measured before are not measured
    again. Writes and returns the task's ``seeds.json``.
    """
    folder, first = run.task_folder(recipe.name), recipe.training_seed + seed
    held_out = recipe.held_out(seed, recipe.test_problems)
    result = SeedsResult(recipe.architecture, recipe.protocol, held_out, [])
    known: dict[int, SeedNumbers] = {}
    with contextlib.suppress(UserError):  # none yet
        before = read_result(folder / SEEDS, SeedsResult)
        if dataclasses.replace(before, rows=[]) == result:
            known = {row.seed: row for row in before.rows}
    baselines = {
        name: get_baseline(name).factory(**tuned_values(folder, name)) for name in recipe.baselines
    }
    problems = held_out.problems(recipe.task, EVALUATION_STREAM)
    for each in range(first, first + count):
        if each not in known:
            optimizer = (
                _last_optimizer(run, recipe) if each == first else _trained(run, recipe, each, mesh)
            )
            numbers = headline_numbers(optimizer, problems, baselines)
            known[each] = SeedNumbers(each, numbers)
            result = dataclasses.replace(result, rows=[known[s] for s in sorted(known)])
            write_result(folder / SEEDS, result)
    return dataclasses.replace(result, rows=[known[s] for s in sorted(known)])


def _trained(run: RunFolder, recipe: Recipe, seed: int, mesh: Mesh | None) -> ComponentwiseRNN:
    with open_run(run.path / FOLDER / str(seed)) as own:
        train(own, recipe.task, recipe.architecture, recipe.protocol, seed=seed, devices=mesh)
        return _last_optimizer(own, recipe)


def _last_optimizer(run: RunFolder, recipe: Recipe) -> ComponentwiseRNN:
    stored = require_checkpoints(run.task_folder(recipe.name), "measure")
    return load_trained(run, recipe.task, stored[-1])[0]


def headline_numbers(
    optimizer: ComponentwiseRNN,
    problems: ProblemSet,
    baselines: Mapping[str, optax.GradientTransformation],
) -> Headlines:
    """What headline claims hang on, for one learned optimizer.

    Fig. 9, for each baseline: the relative ``advantage_over_…`` in meta-objective, and
    ``standard_errors_below_…`` (the paired difference). Appendix A, against the best of the
    baselines: the fractions of the advantage that ``linear_dynamics``, the
    ``initial_transient`` and ``nonlinearity`` explain. The main text's mechanisms:
    ``saturation`` (part of the linear update left at a problem's largest gradient),
    ``warm_up`` and ``decay`` of the learning rate without a gradient, and ``adaptation`` (the
    effective rate at large constant gradients over that at small ones).

    Raises `UserError` without a baseline, and where there is no fixed point.
    """
    if not baselines:
        raise UserError("baselines: none given (at least one to compare with)")
    learned = evaluate_on(optimizer.as_optax(), problems)
    numbers, best = {"meta_objective": learned.mean}, ("", np.inf)
    for name, baseline in baselines.items():
        other = evaluate_on(baseline, problems)
        difference = paired_difference(learned, other)
        numbers[f"advantage_over_{name}"] = 1.0 - learned.mean / other.mean
        numbers[f"standard_errors_below_{name}"] = -difference.mean / difference.standard_error
        if other.mean <= best[1]:
            best = name, other.mean
    point = operating_points(problems)(optimizer)
    account = linear_account(problems, optimizer, point, baselines[best[0]])
    for part in ("linear_dynamics", "initial_transient", "nonlinearity"):
        numbers[part] = getattr(account, part).fraction
    return {**numbers, **_mechanisms(optimizer, point.modes, problems)}


def _mechanisms(optimizer: ComponentwiseRNN, modes: Eigenmodes, problems: ProblemSet) -> Headlines:
    few = jax.tree.map(lambda leaf: leaf[:EXPLAINED], problems.problems)
    visited = visit(optimizer.as_optax(), few, problems.objective.num_steps)
    found = measure(step_map(optimizer), modes, visited)
    rate = found.schedule.rate
    start, peak, end = rate[0], np.max(rate), rate[-1]
    return {
        "saturation": found.update.largest_part.mean,
        "warm_up": float(peak / start) if start > 0 else float("nan"),
        "decay": float(end / peak) if peak > 0 else float("nan"),
        "adaptation": found.adaptation.ratio.mean,
    }
