"""Every optimizer of a run folder on the same test problems (Fig. 9)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from optdyn.errors import UserError
from optdyn.evaluation import EVALUATION_STREAM, Evaluation, evaluate_on, paired_difference
from optdyn.optimizers._baselines import BASELINES
from optdyn.runs._checkpoints import analysis_checkpoints, fingerprint, load_optimizer
from optdyn.runs._linear_reference_run import LINEAR, read_linear
from optdyn.runs._plain import result_plain
from optdyn.runs._progress import progress
from optdyn.runs._results import (
    LEARNED,
    EvaluationResult,
    EvaluationSummary,
    LossesAtSteps,
    LossesRow,
    Score,
    UnfinishedEvaluation,
)
from optdyn.runs._run_folder import RunFolder
from optdyn.runs._store import read_if_sound, read_result, remove, safe_name, write_result
from optdyn.runs._training_run import CHECKPOINTS, load_trained
from optdyn.runs._tuning_run import load_tuned, table_path
from optdyn.search import best

if TYPE_CHECKING:
    import optax
    from jax.sharding import Mesh

    from optdyn.optimizers._baselines import Baseline
    from optdyn.runs._results import HeldOut
    from optdyn.tasks import Task

EVALUATION = "evaluation"
SUMMARY = "evaluation.json"
LOSSES = "losses_at_steps.json"
STEPS_SHOWN = (0, 10, 50, 100, 200)
UNFINISHED = ".unfinished.json"

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

    These are the tuned baselines and, where they have been tuned, the best linear optimizers.

    Only those of ``baselines``, by name, are looked for.

    Raises `UserError` when there is none, or a file of one is damaged.
    """
    task_folder = run.task_folder(task)
    found = []
    stored = analysis_checkpoints(task_folder / CHECKPOINTS)
    if checkpoint is not None or stored:
        optimizer, card = (
            load_trained(run, task, stored[-1])
            if checkpoint is None
            else load_optimizer(checkpoint)
        )
        origin = {"meta_step": card.meta_step, "fingerprint": fingerprint(optimizer)}
        found.append(Contender(LEARNED, optimizer.as_optax(), origin))
    for name, baseline in baselines.items():
        if table_path(task_folder, name).exists():
            hyperparameters = best(load_tuned(task_folder, name)).hyperparameters
            tx = baseline.factory(**hyperparameters)
            found.append(Contender(name, tx, {"hyperparameters": hyperparameters}))
    if (task_folder / LINEAR).exists():
        for row in read_linear(task_folder / LINEAR).rows:
            origin = {"hyperparameters": row.hyperparameters()}
            found.append(Contender(row.name, row.reference().as_optax(), origin))
    if not found:
        raise UserError(
            f"--out: {task_folder} holds nothing to evaluate (run optdyn train or optdyn tune "
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
    along the way (`losses_at_steps`). Raises `UserError` for settings that differ from the
    folder's.
    """
    folder = run.task_folder(task)
    chosen = contenders(run, task, checkpoint, baselines)
    name = run.settle_work("evaluate", task, held_out)
    problems = held_out.problems(task, EVALUATION_STREAM)
    shape = (problems.number, problems.objective.num_steps + 1)
    evaluations = {}
    with progress(f"evaluating on {name}", len(chosen)) as advance:
        for count, contender in enumerate(chosen, start=1):
            path = folder / EVALUATION / f"{safe_name(contender.name)}.json"
            evaluation = load_evaluation(path, contender.origin)
            if evaluation is None or evaluation.losses.shape != shape:
                unfinished = _Unfinished(path.with_suffix(UNFINISHED), contender, shape)
                evaluation = evaluate_on(
                    contender.tx,
                    problems,
                    mesh=mesh,
                    on_chunk=functools.partial(
                        unfinished.save, functools.partial(advance, count - 1)
                    ),
                    done=unfinished.losses(),
                )
                write_result(path, EvaluationResult(contender.origin, **vars(evaluation)))
            remove(path.with_suffix(UNFINISHED))
            evaluations[contender.name] = evaluation
            advance(count, f"{contender.name}: {evaluation.mean:.4g}")
    write_result(folder / SUMMARY, _summary(chosen, evaluations))
    write_result(folder / LOSSES, losses_at_steps(evaluations))
    return evaluations


@dataclasses.dataclass(frozen=True)
class _Unfinished:
    """The losses of an evaluation that is under way; ``shape``: when it is finished."""

    path: Path
    of: Contender
    shape: tuple[int, int]

    def save(self, show: Callable[[str], None], losses: np.ndarray) -> None:
        if len(losses) < self.shape[0]:
            write_result(self.path, UnfinishedEvaluation(self.of.origin, losses))
            show(f"{self.of.name}: {len(losses)} of {self.shape[0]} problems")

    def losses(self) -> np.ndarray | None:
        found = _stored(self.path, UnfinishedEvaluation, self.of.origin)
        if found is None or found.losses.shape[1] != self.shape[1]:
            return None
        return found.losses if len(found.losses) < self.shape[0] else None


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


def read_evaluations(path: Path) -> EvaluationSummary:
    """A task's summary; raises `UserError` for one that is missing, damaged or of another form."""
    return read_result(path, EvaluationSummary)


def read_losses(path: Path) -> LossesAtSteps:
    """A task's `losses_at_steps`, with the errors of `read_evaluations`."""
    return read_result(path, LossesAtSteps)


def load_evaluation(path: Path, origin: dict[str, Any] | None = None) -> Evaluation | None:
    """A stored evaluation; None if it is missing or damaged, or not of ``origin`` (if given)."""
    found = _stored(path, EvaluationResult, origin)
    if found is None:
        return None
    fields = dataclasses.fields(Evaluation)
    return Evaluation(**{field.name: getattr(found, field.name) for field in fields})


def _stored(path: Path, kind: type[Stored], origin: dict[str, Any] | None) -> Stored | None:
    found = read_if_sound(path, lambda path: read_result(path, kind), "evaluating again")
    fits = found is not None and (origin is None or found.origin == result_plain(origin))
    return found if fits else None


def _summary(chosen: list[Contender], evaluations: dict[str, Evaluation]) -> EvaluationSummary:
    scores = {}
    for contender in chosen:
        found = evaluations[contender.name]
        scores[contender.name] = Score(
            found.mean, found.standard_error, found.exploded, **contender.origin
        )
    learned = evaluations.get(LEARNED)
    differences = {
        name: paired_difference(learned, other)
        for name, other in evaluations.items()
        if learned is not None and name != LEARNED
    }
    return EvaluationSummary(scores, differences)
