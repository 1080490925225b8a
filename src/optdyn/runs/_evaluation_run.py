"""Every optimizer of a run folder on the same test problems (Fig. 9)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Float32, Float64, Int64

from optdyn.errors import UserError
from optdyn.evaluation import (
    EVALUATION_STREAM,
    Evaluation,
    MeanAndError,
    ProblemSet,
    evaluate_on,
    paired_difference,
)
from optdyn.optimizers._baselines import BASELINES, Baseline
from optdyn.runs._checkpoints import analysis_checkpoints, fingerprint, load_optimizer
from optdyn.runs._plain import result_plain, to_plain
from optdyn.runs._progress import progress
from optdyn.runs._results import HeldOut
from optdyn.runs._run_folder import RunFolder, first_difference
from optdyn.runs._store import read_if_sound, read_result, remove, safe_name, write_result
from optdyn.runs._training_run import CHECKPOINTS, load_trained
from optdyn.runs._tuning_run import LINEAR, LinearReferencesResult, table_path, tuned_values
from optdyn.tasks import Task, describe_task

LEARNED = "learned"
"""The name of the learned optimizer among those of an evaluation."""
EVALUATION = "evaluation"
SUMMARY = "evaluation.json"
LOSSES = "losses_at_steps.json"
STEPS_SHOWN = (0, 10, 50, 100, 200)
UNFINISHED = ".unfinished.json"
EARLIER = "earlier_evaluations"
"""Where results go whose place others take."""
DISTILLATION = "distillation.json"
"""Judged problem by problem against these evaluations."""


@dataclasses.dataclass(frozen=True)
class Score(MeanAndError[float]):
    """An optimizer's meta-objective on the test problems, and which optimizer it was.

    ``exploded``: how many problems blew up. A learned one has a ``meta_step`` and a
    ``fingerprint``, a baseline ``hyperparameters``.
    """

    exploded: int
    meta_step: int | None = None
    fingerprint: str | None = None
    hyperparameters: dict[str, float] | None = None


@dataclasses.dataclass(frozen=True)
class EvaluationSummary:
    """``evaluation.json``: the score of each optimizer on the same problems.

    ``learned_minus``: by baseline, the paired difference of the learned optimizer's
    meta-objective and the baseline's.
    """

    optimizers: dict[str, Score]
    learned_minus: dict[str, MeanAndError[float]]


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationResult(Evaluation):
    """``evaluation/<optimizer>.json``: an `Evaluation`, and in ``origin`` of which optimizer."""

    origin: dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class UnfinishedEvaluation:
    """``evaluation/<optimizer>.unfinished.json``: the losses on the first problems."""

    origin: dict[str, Any]
    losses: Float32[np.ndarray, "problems steps"]


@dataclasses.dataclass(frozen=True, eq=False)
class LossesRow:
    """An optimizer's loss at some steps: its mean and median over problems."""

    mean: Float64[np.ndarray, " steps"]
    median: Float64[np.ndarray, " steps"]


@dataclasses.dataclass(frozen=True, eq=False)
class LossesAtSteps:
    """``losses_at_steps.json``: losses along the way, as they are whatever the objective.

    A mean is infinite where a problem diverged; a median is not so easily.
    """

    steps: Int64[np.ndarray, " steps"]
    problems: int
    optimizers: dict[str, LossesRow]


Stored = TypeVar("Stored", EvaluationResult, UnfinishedEvaluation)


@dataclasses.dataclass(frozen=True)
class Contender:
    """An optimizer to evaluate: ``origin`` says exactly which one it is."""

    name: str
    tx: optax.GradientTransformation
    origin: dict[str, Any]


def contenders(
    run: RunFolder,
    task: Task,
    checkpoint: Path | None = None,
    baselines: Mapping[str, Baseline] = BASELINES,
) -> list[Contender]:
    """The learned optimizer (``checkpoint``, or the folder's last) and its rivals.

    These are the tuned ones of ``baselines`` and, where they have been tuned, the best linear
    optimizers. Raises `UserError` when there is none, or a file of one is damaged.
    """
    folder = run.task_folder(task)
    found = []
    stored = analysis_checkpoints(folder / CHECKPOINTS)
    if checkpoint is not None or stored:
        optimizer, card = (
            load_trained(run, task, stored[-1])
            if checkpoint is None
            else load_optimizer(checkpoint)
        )
        origin = {"meta_step": card.meta_step, "fingerprint": fingerprint(optimizer)}
        found.append(Contender(LEARNED, optimizer.as_optax(), origin))
    for name, baseline in baselines.items():
        if table_path(folder, name).exists():
            values = tuned_values(folder, name)
            found.append(Contender(name, baseline.factory(**values), {"hyperparameters": values}))
    path = folder / LINEAR
    for linear in read_result(path, LinearReferencesResult).rows if path.exists() else []:
        columns = {"alpha": linear.alpha, "beta": linear.beta}
        values = {f"{n}_{i}": x for n, column in columns.items() for i, x in enumerate(column, 1)}
        name = f"linear_{linear.num_modes}"
        found.append(Contender(name, linear.as_optax(), {"hyperparameters": values}))
    if not found:
        raise UserError(
            f"--out: {folder} holds nothing to evaluate (run optdyn train or optdyn tune "
            "first, or give --checkpoint)"
        )
    return found


def evaluate_all(
    run: RunFolder,
    task: Task,
    held_out: HeldOut,
    *,
    checkpoint: Path | None = None,
    baselines: Mapping[str, Baseline] = BASELINES,
    mesh: Mesh | None = None,
) -> dict[str, Evaluation]:
    """Evaluate each of the folder's `contenders` that has no evaluation yet.

    Each evaluation goes to the task's ``evaluation/<optimizer>.json``. Until it is finished,
    the losses so far are in ``….unfinished.json``, and it goes on from there.
    ``evaluation.json`` sums up (`EvaluationSummary`); ``losses_at_steps.json`` holds the loss
    along the way (`losses_at_steps`). An evaluation with another ``held_out`` takes the place
    of the folder's, and of what was distilled by it. Raises `UserError` for options of the task
    that differ from the folder's.
    """
    folder = run.task_folder(task)
    chosen = contenders(run, task, checkpoint, baselines)
    _make_way(run, task, held_out)
    name = run.settle_work("evaluate", task, held_out)
    problems = held_out.problems(task, EVALUATION_STREAM)
    evaluations = {}
    with progress(f"evaluating on {name}", len(chosen)) as advance:
        for count, contender in enumerate(chosen, start=1):
            path = folder / EVALUATION / f"{safe_name(contender.name)}.json"
            show = functools.partial(advance, count - 1)
            evaluation = _evaluated(contender, path, problems, mesh, show)
            evaluations[contender.name] = evaluation
            advance(count, f"{contender.name}: {evaluation.mean:.4g}")
    write_result(folder / SUMMARY, _summary(chosen, evaluations))
    write_result(folder / LOSSES, losses_at_steps(evaluations))
    return evaluations


def _make_way(run: RunFolder, task: Task, held_out: HeldOut) -> None:
    """Put evaluations with another ``held_out`` aside, so that no two are mixed."""
    described, folder = describe_task(task), run.task_folder(task)
    part = f"evaluate/{described.name}"
    options, settings = {"task_options": described.options}, to_plain(held_out)
    known = run.settings().get(part, settings)
    other = first_difference(known, {**known, **settings})
    if other is None or first_difference(known, {**known, **options}):
        return
    aside = _new_folder(folder / EARLIER)
    for path in (folder / place for place in (EVALUATION, SUMMARY, LOSSES, DISTILLATION)):
        if path.exists():
            path.rename(aside / path.name)
    run.record(part, {**options, **settings})
    name, there, here = other
    print(
        f"{described.name}: evaluating anew, with {name} = {here!r}; the results of {there!r} "
        f"are now in {aside}",
        flush=True,
    )


def _new_folder(parent: Path) -> Path:
    number = 1 + sum(1 for _ in parent.glob("*"))
    folder = parent / str(number)
    folder.mkdir(parents=True)
    return folder


def _evaluated(
    contender: Contender,
    path: Path,
    problems: ProblemSet,
    mesh: Mesh | None,
    show: Callable[[str], None],
) -> Evaluation:
    """The evaluation in ``path``, else made, from where an interrupted one was left."""
    origin, unfinished = contender.origin, path.with_suffix(UNFINISHED)
    number, length = problems.number, problems.objective.num_steps + 1
    found = load_evaluation(path, origin)
    if found is None or found.losses.shape != (number, length):

        def save(losses: np.ndarray) -> None:
            if len(losses) < number:
                write_result(unfinished, UnfinishedEvaluation(origin, losses))
                show(f"{contender.name}: {len(losses)} of {number} problems")

        begun = _stored(unfinished, UnfinishedEvaluation, origin)
        done = None if begun is None else begun.losses
        if done is not None and (len(done) >= number or done.shape[1] != length):
            done = None  # of other settings
        found = evaluate_on(contender.tx, problems, mesh=mesh, on_chunk=save, done=done)
        write_result(path, EvaluationResult(**vars(found), origin=origin))
    remove(unfinished)
    return found


def losses_at_steps(evaluations: dict[str, Evaluation]) -> LossesAtSteps:
    """Each optimizer's loss after the steps `STEPS_SHOWN` and the last one."""
    curves = {name: np.asarray(e.losses, float) for name, e in evaluations.items()}
    last = min(losses.shape[1] for losses in curves.values()) - 1
    steps = np.array(sorted({*(step for step in STEPS_SHOWN if step < last), last}))
    rows = {}
    for name, losses in curves.items():
        some = np.where(np.isfinite(losses), losses, np.inf)[:, steps]
        rows[name] = LossesRow(np.mean(some, axis=0), np.median(some, axis=0))
    return LossesAtSteps(steps, min(len(losses) for losses in curves.values()), rows)


def load_evaluation(path: Path, origin: dict[str, Any] | None = None) -> Evaluation | None:
    """A stored evaluation; None if it is missing or damaged, or not of ``origin`` (if given)."""
    return _stored(path, EvaluationResult, origin)


def _stored(path: Path, kind: type[Stored], origin: dict[str, Any] | None) -> Stored | None:
    found = read_if_sound(path, kind, "evaluating again")
    fits = found is not None and (origin is None or found.origin == result_plain(origin))
    return found if fits else None


def _summary(chosen: list[Contender], evaluations: dict[str, Evaluation]) -> EvaluationSummary:
    scores = {}
    for contender in chosen:
        found = evaluations[contender.name]
        numbers = found.mean, found.standard_error, found.exploded
        scores[contender.name] = Score(*numbers, **contender.origin)
    learned = evaluations.get(LEARNED)
    differences = {
        name: paired_difference(learned, other)
        for name, other in evaluations.items()
        if learned is not None and name != LEARNED
    }
    return EvaluationSummary(scores, differences)
