"""A task's learned optimizer distilled into readable ones, and taken apart, in its run folder."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optdyn.distillation import Distilled, advantage_kept, as_code, from_values
from optdyn.dynamics import step_map
from optdyn.dynamics._operating_point import operating_point
from optdyn.errors import UserError
from optdyn.evaluation import (
    EVALUATION_STREAM,
    Evaluation,
    ProblemSet,
    evaluate_on,
    evaluator,
)
from optdyn.inner_loop import Objective
from optdyn.mechanisms._ablation import ABLATIONS, ablated
from optdyn.optimizers._componentwise_rnn import ComponentwiseRNN
from optdyn.runs import _forms as forms
from optdyn.runs._analysis_run import AnalysisSettings, require_own_task
from optdyn.runs._checkpoints import analysis_checkpoints, fingerprint
from optdyn.runs._distillation_fit import fit_sizes, judged_by
from optdyn.runs._evaluation_run import (
    EVALUATION,
    LEARNED,
    load_evaluation,
    read_evaluations,
)
from optdyn.runs._evaluation_run import SUMMARY as EVALUATION_SUMMARY
from optdyn.runs._files import (
    read_bytes,
    read_signed_json,
    to_plain,
    write_bytes,
    write_signed_json,
)
from optdyn.runs._fitted_sizes import FITTED, SIZE_FIELDS, read_fitted
from optdyn.runs._forms import require_form
from optdyn.runs._mechanisms_run import HISTORIES, kept_result
from optdyn.runs._progress import progress
from optdyn.runs._run_folder import RunFolder
from optdyn.runs._training_run import CHECKPOINTS, load_trained
from optdyn.study._recipes import Distillation
from optdyn.tasks import make_task

if TYPE_CHECKING:
    import optax
    from jax.sharding import Mesh

    from optdyn.meta_training import MetaTraining
    from optdyn.tasks import Task

SUMMARY = "distillation.json"
CODE = "distilled.py"
KEPT = forms.fields(fraction=forms.number, standard_error=forms.number)
DISTILLED = forms.fields(
    inputs=forms.fields(task=forms.text),
    shipped=forms.flag,
    command=forms.text,
    baseline=forms.text,
    sizes=forms.rows(forms.fields(**SIZE_FIELDS, mean=forms.number, kept=KEPT)),
    chosen=forms.count,
    without=forms.table(forms.fields(mean=forms.number, kept=KEPT)),
    learned_without=forms.table(forms.fields(what=forms.text, mean=forms.number, kept=KEPT)),
)
"""Of the summary."""


def distill_task(
    run: RunFolder,
    task_name: str,
    task_options: dict[str, Any],
    protocol: MetaTraining,
    how: Distillation,
    seed: int,
    *,
    command: str,
    shipped: bool = False,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Fit readable optimizers of every size (`fit_sizes`), and tell what each keeps.

    ``shipped``: take those that lie in the run folder already, whatever they were
    fitted with. The best on validation problems is exported as ``distilled.py``. Its
    parts, and mechanisms of the learned optimizer, are then removed one at a time. Test
    problems are spread over ``mesh``; fits are too small to gain by it. Kept in
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
    if not shipped:
        fit_sizes(folder, task_name, task_options, optimizer, protocol, how, seed, command)
    fitted = read_fitted(folder / FITTED)
    judged = judged_by(protocol, how, seed)
    inputs = to_plain(
        {
            "task": task_name,
            "task_options": task_options,
            "judged": judged,
            "problems": [how.test_problems, how.ablation_problems],
            "fitted": hashlib.sha256(read_bytes(folder / FITTED)).hexdigest(),
            "shipped": shipped,
            "learned": fingerprint(optimizer),
            "baseline": {baseline: scores[baseline]},
        }
    )
    path = folder / SUMMARY
    done = kept_result(path, inputs, DISTILLED)
    if done is not None and (folder / CODE).exists():
        return done

    found = {n: load_evaluation(folder / EVALUATION / f"{n}.json") for n in (LEARNED, baseline)}
    if None in found.values():
        raise UserError(f"--out: an evaluation in {folder} is damaged (run optdyn evaluate again)")
    task = make_task(task_name, **task_options)
    learned, rival = found[LEARNED], found[baseline]
    judge = _Judge(task, judged, how, learned, rival, mesh)  # type: ignore[arg-type]
    sizes = _measured(fitted["sizes"], judge)
    chosen = min(range(len(sizes)), key=lambda i: _or_inf(sizes[i]["validation"]))
    best = from_values(sizes[chosen]["values"])
    print(f"{task_name}: removing parts and mechanisms one at a time", flush=True)
    result = {
        "inputs": inputs,
        "shipped": shipped,
        "command": fitted["command"],
        "baseline": baseline,
        "learned": scores[LEARNED],
        "sizes": sizes,
        "chosen": chosen,
        "without": _parts_removed(best, judge),
        "learned_without": _mechanisms_removed(task, optimizer, judged, judge),
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
    """Tells on the first test problems how much of the advantage an optimizer keeps."""

    def __init__(
        self,
        task: Task,
        judged: AnalysisSettings,
        how: Distillation,
        learned: Evaluation,
        baseline: Evaluation,
        mesh: Mesh | None,
    ) -> None:
        count = min(how.test_problems, len(learned.meta_objectives))
        self.few = min(how.ablation_problems, count)
        self.learned, self.baseline = learned.meta_objectives, baseline.meta_objectives
        self.problems = ProblemSet(
            task,
            seed=judged.seed,
            number=count,
            objective=Objective(judged.num_steps, judged.normalization),
            stream=EVALUATION_STREAM,
        )
        self.mesh = mesh
        self._readable = evaluator(Distilled.as_optax, self.problems, mesh=mesh)

    def readable(self, optimizer: Distilled) -> dict[str, Any]:
        """Test meta-objective and the advantage kept; one program serves all readable ones."""
        return self._row(self._readable(optimizer.whole()))

    def other(self, tx: optax.GradientTransformation) -> dict[str, Any]:
        """The same of any optimizer, on fewer problems."""
        return self._row(
            evaluate_on(tx, dataclasses.replace(self.problems, number=self.few), mesh=self.mesh)
        )

    def _row(self, result: Evaluation) -> dict[str, Any]:
        count = len(result.meta_objectives)
        kept = advantage_kept(result.meta_objectives, self.learned[:count], self.baseline[:count])
        return {
            "mean": result.mean,
            "standard_error": result.standard_error,
            "exploded": result.exploded,
            "kept": kept,
        }


def _measured(sizes: list[dict[str, Any]], judge: _Judge) -> list[dict[str, Any]]:
    """The fitted sizes' rows with what each does on the test problems."""
    rows = []
    with progress("judging readable optimizers", len(sizes)) as advance:
        for count, size in enumerate(sizes, start=1):
            row = {**size, **judge.readable(from_values(size["values"]))}
            rows.append(row)
            advance(count, f"{row['name']}: keeps {row['kept'].fraction:.2f} of the advantage")
    return rows


def _parts_removed(optimizer: Distilled, judge: _Judge) -> dict[str, Any]:
    """The chosen readable optimizer less one part at a time, its other numbers as they are."""
    removable = [name for name in optimizer.parts() if name != "momenta"]
    return {name: judge.readable(optimizer.without(name)) for name in removable}


def _mechanisms_removed(
    task: Task, optimizer: ComponentwiseRNN, judged: AnalysisSettings, judge: _Judge
) -> dict[str, Any]:
    histories = judged.problems(task).gradient_histories(ComponentwiseRNN.as_optax, HISTORIES)
    point = operating_point(step_map(optimizer), histories(optimizer))
    variants = ablated(optimizer, point)
    return {name: {"what": ABLATIONS[name], **judge.other(tx)} for name, tx in variants.items()}


def _or_inf(value: float | None) -> float:
    return math.inf if value is None else value
