"""A task's learned optimizer distilled into readable ones, and taken apart, in its run folder."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optdyn.analysis import Validation, operating_point
from optdyn.analysis.ablation import ABLATIONS, ablated
from optdyn.analysis.mechanisms import visit
from optdyn.distillation import (
    LADDER,
    Demonstration,
    Distilled,
    Fitting,
    Guess,
    advantage_kept,
    as_code,
    extended,
    fit,
    from_values,
    imitate,
    imitation_error,
    leading_momentum,
)
from optdyn.dynamics import step_map
from optdyn.dynamics.mechanisms import update_function
from optdyn.errors import UserError
from optdyn.evaluation import Evaluation, evaluate
from optdyn.experiments import forms
from optdyn.experiments.analysis_run import AnalysisSettings, require_own_task
from optdyn.experiments.checkpoints import analysis_checkpoints, fingerprint
from optdyn.experiments.evaluation_run import (
    EVALUATION,
    LEARNED,
    load_evaluation,
    read_evaluations,
)
from optdyn.experiments.evaluation_run import SUMMARY as EVALUATION_SUMMARY
from optdyn.experiments.files import read_signed_json, to_plain, write_bytes, write_signed_json
from optdyn.experiments.forms import require_form
from optdyn.experiments.mechanisms_run import HISTORIES, kept_result
from optdyn.experiments.progress import progress
from optdyn.experiments.run_folder import RunFolder
from optdyn.experiments.training_run import CHECKPOINTS, load_trained
from optdyn.optimizers.componentwise_rnn import ComponentwiseRNN
from optdyn.tasks import make_task

if TYPE_CHECKING:
    import optax

    from optdyn.analysis import OperatingPoint
    from optdyn.meta_training import MetaTraining
    from optdyn.tasks import Task

SUMMARY = "distillation.json"
FOLDER = "distillation"
CODE = "distilled.py"
KEPT = forms.fields(kept=forms.fields(fraction=forms.number, standard_error=forms.number))
SIZE = forms.fields(
    name=forms.text,
    added=forms.text,
    numbers=forms.count,
    values=forms.table(forms.table(forms.anything)),
    validation=forms.number,
    kept=forms.fields(fraction=forms.number, standard_error=forms.number),
)
DISTILLED = forms.fields(
    inputs=forms.fields(task=forms.text),
    baseline=forms.text,
    sizes=forms.rows(SIZE),
    chosen=forms.count,
    without=forms.table(KEPT),
    learned_without=forms.table(KEPT),
)
"""Of the summary."""
DEMONSTRATION_SEED_OFFSET = 1
"""Demonstrations come from validation problems of another seed than those that choose a size."""


@dataclasses.dataclass(frozen=True)
class DistillationSettings:
    """How much work to put in; see `Fitting`, whose steps are here for each part of a size.

    ``sizes``: how many of `LADDER`'s steps to take at most. ``problems``: the first of
    the test problems, on which what is kept is told.
    """

    seed: int
    imitation_steps: int = 0
    meta_steps: int = 150
    sizes: int = len(LADDER)
    problems: int = 64


def distill_task(
    run: RunFolder,
    task_name: str,
    task_options: dict[str, Any],
    protocol: MetaTraining,
    judged: AnalysisSettings,
    settings: DistillationSettings,
) -> dict[str, Any]:
    """Fit `LADDER`'s sizes one after the other, and tell what each keeps.

    Stops early at a size that does as well as the learned optimizer on validation
    problems; the best there is the one exported as ``distilled.py``. Its parts, and
    mechanisms of the learned optimizer, are then removed one at a time. Kept in
    ``distillation.json``, made again only where something it depends on has changed.

    Raises `UserError` when the folder's optimizers have not been evaluated.
    """
    folder = run.task_folder(task_name)
    checkpoints = analysis_checkpoints(folder / CHECKPOINTS)
    scores = read_evaluations(folder / EVALUATION_SUMMARY)["optimizers"]
    if not checkpoints or LEARNED not in scores:
        raise UserError(f"--out: {folder} has no evaluated optimizer to distill")
    baseline = min((n for n in scores if n != LEARNED), key=lambda n: _or_inf(scores[n]["mean"]))
    optimizer, card = load_trained(run, task_name, checkpoints[-1])
    inputs = to_plain(
        {
            "task": task_name,
            "task_options": task_options,
            "protocol": protocol,
            "judged": judged,
            "settings": settings,
            "learned": fingerprint(optimizer),
            "baseline": {baseline: scores[baseline]},
        }
    )
    path = folder / SUMMARY
    done = kept_result(path, inputs, DISTILLED)
    if done is not None and (folder / CODE).exists():
        return done

    task = make_task(task_name, **task_options)
    found = {n: load_evaluation(folder / EVALUATION / f"{n}.json") for n in (LEARNED, baseline)}
    if None in found.values():
        raise UserError(f"--out: an evaluation in {folder} is damaged (run optdyn evaluate again)")
    judge = _Judge(task, settings, judged, found[LEARNED], found[baseline])  # type: ignore[arg-type]
    point, guess, shown = _analysed(task, optimizer, judged)
    level = judge.validation_score(optimizer.as_optax())
    kept = _KeptSizes(folder / FOLDER, inputs)
    sizes = _climb(task, protocol, settings, judge, guess, shown, level, kept)
    chosen = min(range(len(sizes)), key=lambda i: _or_inf(sizes[i]["validation"]))
    best = from_values(sizes[chosen]["values"])
    print(f"{task_name}: removing parts and mechanisms one at a time", flush=True)
    result = {
        "inputs": inputs,
        "baseline": baseline,
        "learned": scores[LEARNED],
        "learned_validation": level,
        "sizes": sizes,
        "chosen": chosen,
        "without": _parts_removed(best, judge),
        "learned_without": _mechanisms_removed(optimizer, point, judge),
    }
    origin = f"distilled from the learned optimizer of {task_name}, meta-step {card.meta_step}"
    write_bytes(folder / CODE, as_code(best, origin).encode())
    write_signed_json(path, result)
    return to_plain(result)


def read_distillation(path: Path) -> dict[str, Any]:
    """A task's summary; raises `UserError` for one that is missing, damaged or of another form."""
    summary = read_signed_json(path)
    require_form(path, summary, DISTILLED)
    require_own_task(path, summary)
    if summary["chosen"] >= len(summary["sizes"]):
        raise UserError(f"{path}: chosen: {summary['chosen']} is not among its sizes")
    return summary


class _Judge:
    """Scores optimizers on the test problems, and on validation problems to choose by."""

    def __init__(
        self,
        task: Task,
        settings: DistillationSettings,
        judged: AnalysisSettings,
        learned: Evaluation,
        baseline: Evaluation,
    ) -> None:
        self.task, self.judged = task, judged
        self.problems = min(settings.problems, len(learned.meta_objectives))
        self.seed = settings.seed
        self.learned = learned.meta_objectives[: self.problems]
        self.baseline = baseline.meta_objectives[: self.problems]
        self.validation = Validation(task, **vars(judged))

    def row(self, tx: optax.GradientTransformation) -> dict[str, Any]:
        """Test meta-objective and the advantage kept."""
        result = evaluate(
            tx, self.task, seed=self.seed, num_problems=self.problems,
            num_steps=self.judged.num_steps, normalization=self.judged.normalization,
        )  # fmt: skip
        return {
            "mean": result.mean,
            "standard_error": result.standard_error,
            "exploded": result.exploded,
            "kept": advantage_kept(result.meta_objectives, self.learned, self.baseline),
        }

    def validation_score(self, tx: optax.GradientTransformation) -> float:
        """The meta-objective on the validation problems."""
        return self.validation.meta_objective(self.validation.compiled(lambda: tx)())


def _analysed(
    task: Task, optimizer: ComponentwiseRNN, judged: AnalysisSettings
) -> tuple[OperatingPoint, Guess, Demonstration]:
    """What the ladder starts from: modes, saturation, and what the optimizer does."""
    seed = judged.seed + DEMONSTRATION_SEED_OFFSET
    elsewhere = Validation(task, **vars(dataclasses.replace(judged, seed=seed)))
    visited = visit(optimizer.as_optax(), elsewhere.problems, judged.num_steps)
    steps = visited.gradients.shape[-1]
    shown = Demonstration(visited.gradients.reshape(-1, steps), visited.updates.reshape(-1, steps))
    histories = elsewhere.compiled_gradients(ComponentwiseRNN.as_optax, HISTORIES)
    point = operating_point(step_map(optimizer), histories(optimizer))
    sizes = np.abs(shown.gradients[shown.gradients != 0])
    top = float(np.max(sizes))
    threshold = update_function(step_map(optimizer), np.geomspace(1e-8, 10.0, 81) * top).threshold
    guess = Guess(
        *leading_momentum(point.modes),
        threshold=threshold if math.isfinite(threshold) else top,
        gradient=float(np.median(sizes)),
    )
    return point, guess, shown


@dataclasses.dataclass(frozen=True)
class _KeptSizes:
    """One file for each size fitted so far, so that an interrupted distillation goes on."""

    folder: Path
    inputs: dict[str, Any]

    def path(self, count: int) -> Path:
        return self.folder / f"size-{count}.json"

    def find(self, count: int) -> dict[str, Any] | None:
        done = kept_result(self.path(count), self.inputs, forms.fields(row=SIZE))
        return None if done is None else done["row"]

    def keep(self, count: int, row: dict[str, Any]) -> dict[str, Any]:
        write_signed_json(self.path(count), {"inputs": self.inputs, "row": row})
        return to_plain(row)


def _climb(
    task: Task,
    protocol: MetaTraining,
    settings: DistillationSettings,
    judge: _Judge,
    guess: Guess,
    shown: Demonstration,
    level: float,
    kept: _KeptSizes,
) -> list[dict[str, Any]]:
    """A row for each size, up to the first one that reaches ``level`` on validation problems."""
    rows: list[dict[str, Any]] = []
    with progress("distilling", settings.sizes) as advance:
        for count, added in enumerate(LADDER[: settings.sizes], start=1):
            row = kept.find(count)
            if row is None:
                before = from_values(rows[-1]["values"]) if rows else None
                steps = Fitting(settings.imitation_steps * count, settings.meta_steps * count)
                current = imitate(extended(before, added, guess), shown, steps)
                current = fit(current, task, protocol, steps, settings.seed)
                row = kept.keep(count, _size_row(current, added, shown, judge))
            rows.append(row)
            fraction = row["kept"]["fraction"]
            told = "diverges" if fraction is None else f"keeps {fraction:.2f} of the advantage"
            advance(count, f"{row['name']}: {told}")
            if _or_inf(row["validation"]) <= level:
                break
    return rows


def _size_row(
    optimizer: Distilled, added: str, shown: Demonstration, judge: _Judge
) -> dict[str, Any]:
    tx = optimizer.as_optax()
    return {
        "name": optimizer.name,
        "added": added,
        "numbers": optimizer.size,
        "values": optimizer.values(),
        "imitation_error": imitation_error(optimizer, shown),
        "validation": judge.validation_score(tx),
        **judge.row(tx),
    }


def _parts_removed(optimizer: Distilled, judge: _Judge) -> dict[str, Any]:
    """The chosen readable optimizer less one part at a time, its other numbers as they are."""
    removable = [name for name in optimizer.parts() if name != "momenta"]
    return {name: judge.row(optimizer.without(name).as_optax()) for name in removable}


def _mechanisms_removed(
    optimizer: ComponentwiseRNN, point: OperatingPoint, judge: _Judge
) -> dict[str, Any]:
    variants = ablated(optimizer, point)
    return {name: {"what": ABLATIONS[name], **judge.row(tx)} for name, tx in variants.items()}


def _or_inf(value: float | None) -> float:
    return math.inf if value is None else value
