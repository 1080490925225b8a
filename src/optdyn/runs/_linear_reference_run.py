"""The best linear optimizers of a task, tuned by gradient, in a run folder."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from optdyn.distillation import Fitting, LinearReference, Momenta, tune_linear_references
from optdyn.errors import UserError
from optdyn.evaluation import VALIDATION_STREAM
from optdyn.meta_training import MetaTraining
from optdyn.runs._results import HeldOut
from optdyn.runs._run_folder import RunFolder
from optdyn.runs._store import read_result, write_result
from optdyn.runs._tuning_run import load_tuned
from optdyn.search import best
from optdyn.tasks import Task

LINEAR = "linear_references.json"
BATCH = 64
"""Problems a meta-step: a few numbers have a cheap gradient, which should be precise."""

SMALLEST_BETA = 1e-3
"""A momentum of 0 has no logit to start from."""


@dataclasses.dataclass(frozen=True)
class LinearReferenceRow:
    """A `LinearReference`, the slowest mode first."""

    alpha: list[float]
    beta: list[float]
    meta_objective: float

    @property
    def name(self) -> str:
        """What the optimizer is called beside the tuned baselines."""
        return f"linear_{len(self.beta)}"

    def reference(self) -> LinearReference:
        """The optimizer."""
        return LinearReference(tuple(self.alpha), tuple(self.beta), self.meta_objective)

    def hyperparameters(self) -> dict[str, float]:
        """Every number, by name."""
        named = {"alpha": self.alpha, "beta": self.beta}
        return {
            f"{n}_{i + 1}": value for n, column in named.items() for i, value in enumerate(column)
        }


@dataclasses.dataclass(frozen=True)
class LinearReferencesResult:
    """``linear_references.json``: with one mode, with two and with four.

    ``momentum``: the tuned momentum that they start from.
    """

    momentum: dict[str, float]
    rows: list[LinearReferenceRow]


def tune_linear(
    run: RunFolder, task: Task, held_out: HeldOut, protocol: MetaTraining, fitting: Fitting
) -> LinearReferencesResult:
    """`tune_linear_references` from the folder's tuned momentum, judged on ``held_out``.

    The task's ``linear_references.json`` holds them; `evaluate_all` runs them beside the tuned
    baselines. Where they are there already nothing is done. ``protocol``: the learned
    optimizer's, of which the unroll and the containment count.

    Raises `UserError` for settings that differ from the folder's.
    """
    settings = {"held_out": held_out, "protocol": protocol, "fitting": fitting}
    run.settle_work("linear", task, settings)
    folder = run.task_folder(task)
    tuned = best(load_tuned(folder, "momentum")).hyperparameters
    with contextlib.suppress(UserError):
        found = read_linear(folder / LINEAR)
        if found.momentum == tuned:
            return found
    problems = held_out.problems(task, VALIDATION_STREAM)
    curves = problems.curves(lambda momenta: momenta.as_optax())
    references = tune_linear_references(
        task,
        dataclasses.replace(protocol, batch_size=BATCH, chunk=None),
        Momenta.of([tuned["alpha"]], [max(tuned["beta"], SMALLEST_BETA)]),
        held_out.seed,
        lambda momenta: problems.score(curves(momenta)),
        fitting=fitting,
    )
    rows = [
        LinearReferenceRow(list(r.alpha), list(r.beta), r.meta_objective)
        for r in references.values()
    ]
    result = LinearReferencesResult(tuned, rows)
    write_result(folder / LINEAR, result)
    return result


def read_linear(path: Path) -> LinearReferencesResult:
    """The linear references. Raises `UserError` if missing, damaged or of another form."""
    return read_result(path, LinearReferencesResult)
