"""Every optimizer of a run folder on the same test problems (Fig. 9)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optdyn.errors import UserError
from optdyn.evaluation import (
    EVALUATION_STREAM,
    Evaluation,
    ProblemSet,
    evaluate_on,
    paired_difference,
)
from optdyn.inner_loop import Objective
from optdyn.optimizers._baselines import BASELINES
from optdyn.runs import _forms as forms
from optdyn.runs._checkpoints import analysis_checkpoints, fingerprint, load_optimizer
from optdyn.runs._files import (
    read_json,
    read_signed_json,
    safe_name,
    to_plain,
    write_json_if_changed,
    write_signed_json,
    write_signed_json_if_changed,
)
from optdyn.runs._forms import Form, require_form
from optdyn.runs._progress import progress
from optdyn.runs._run_folder import RunFolder
from optdyn.runs._training_run import CHECKPOINTS, load_trained
from optdyn.runs._tuning_run import load_tuned, table_path
from optdyn.search import best
from optdyn.tasks import make_task

if TYPE_CHECKING:
    import optax
    from jax.sharding import Mesh

EVALUATION = "evaluation"
SUMMARY = "evaluation.json"
LOSSES = "losses_at_steps.json"
STEPS_TOLD = (0, 10, 50, 100, 200)
LEARNED = "learned"
UNFINISHED = ".unfinished.json"
STARTED = forms.fields(origin=forms.anything, losses=forms.numbers("problems", "steps"))
EVALUATED = forms.fields(
    origin=forms.anything,
    losses=forms.numbers("problems", "steps"),
    meta_objectives=forms.numbers("problems"),
    mean=forms.number,
    standard_error=forms.number,
    exploded=forms.count,
)
SCORE = forms.fields(mean=forms.number, standard_error=forms.number)


@dataclasses.dataclass(frozen=True)
class Contender:
    """An optimizer to evaluate: ``origin`` says exactly which one it is."""

    name: str
    tx: optax.GradientTransformation
    origin: dict[str, Any]


def contenders(run: RunFolder, task_name: str, checkpoint: Path | None = None) -> list[Contender]:
    """The learned optimizer (``checkpoint``, or the folder's last) and each tuned baseline.

    Raises `UserError` when there is none, or a file of one is damaged.
    """
    task_folder = run.task_folder(task_name)
    found = []
    stored = analysis_checkpoints(task_folder / CHECKPOINTS)
    if checkpoint is not None or stored:
        optimizer, card = (
            load_trained(run, task_name, stored[-1])
            if checkpoint is None
            else load_optimizer(checkpoint)
        )
        origin = {"meta_step": card.meta_step, "fingerprint": fingerprint(optimizer)}
        found.append(Contender(LEARNED, optimizer.as_optax(), origin))
    for name, baseline in BASELINES.items():
        if table_path(task_folder, name).exists():
            hyperparameters = best(load_tuned(task_folder, name)).hyperparameters
            tx = baseline.factory(**hyperparameters)
            found.append(Contender(name, tx, {"hyperparameters": hyperparameters}))
    if not found:
        raise UserError(
            f"--out: {task_folder} holds nothing to evaluate (run optdyn train or optdyn tune "
            "first, or give --checkpoint)"
        )
    return found


def evaluate_all(
    run: RunFolder,
    task_name: str,
    task_options: dict[str, Any],
    *,
    seed: int,
    num_problems: int = 64,
    num_steps: int = 200,
    normalization: str = "none",
    checkpoint: Path | None = None,
    mesh: Mesh | None = None,
) -> dict[str, Evaluation]:
    """`evaluate` each of the folder's `contenders` that has not been evaluated yet.

    Each evaluation is kept in the task's ``evaluation/<optimizer>.json`` (until it is
    finished the losses so far in ``….unfinished.json``, to go on from), and
    ``evaluation.json`` sums up: ``optimizers`` (mean, standard error, …) and
    ``learned_minus`` (paired differences); ``losses_at_steps.json`` tells the loss
    along the way (`losses_at_steps`). Raises `UserError` for settings that
    differ from the folder's.
    """
    task = make_task(task_name, **task_options)
    folder = run.task_folder(task_name)
    chosen = contenders(run, task_name, checkpoint)
    settings = {
        "task_options": task_options,
        "seed": seed,
        "num_problems": num_problems,
        "num_steps": num_steps,
        "normalization": normalization,
    }
    run.settle(f"evaluate/{task_name}", settings)
    problems = ProblemSet(
        task,
        seed=seed,
        number=num_problems,
        objective=Objective(num_steps, normalization),
        stream=EVALUATION_STREAM,
    )
    evaluations = {}
    with progress(f"evaluating on {task_name}", len(chosen)) as advance:
        for count, contender in enumerate(chosen, start=1):
            path = folder / EVALUATION / f"{safe_name(contender.name)}.json"
            evaluation = load_evaluation(path, contender.origin)
            if evaluation is None or evaluation.losses.shape != (num_problems, num_steps + 1):
                unfinished = _Unfinished(path.with_suffix(UNFINISHED), contender)
                tell = functools.partial(advance, count - 1)
                evaluation = evaluate_on(
                    contender.tx,
                    problems,
                    mesh=mesh,
                    on_chunk=functools.partial(unfinished.keep, num_problems, tell),
                    done=unfinished.losses(num_problems, num_steps),
                )
                write_signed_json(path, {"origin": contender.origin, **to_plain(evaluation)})
            path.with_suffix(UNFINISHED).unlink(missing_ok=True)
            evaluations[contender.name] = evaluation
            advance(count, f"{contender.name}: {evaluation.mean:.4g}")
    _write_summary(folder / SUMMARY, chosen, evaluations)
    write_signed_json_if_changed(folder / LOSSES, losses_at_steps(evaluations))
    return evaluations


@dataclasses.dataclass(frozen=True)
class _Unfinished:
    """The losses of an evaluation that is under way."""

    path: Path
    of: Contender

    def keep(self, num_problems: int, tell: Callable[[str], None], losses: np.ndarray) -> None:
        if len(losses) < num_problems:
            write_signed_json(self.path, {"origin": self.of.origin, "losses": losses})
            tell(f"{self.of.name}: {len(losses)} of {num_problems} problems")

    def losses(self, num_problems: int, num_steps: int) -> np.ndarray | None:
        plain = _kept(self.path, self.of.origin, STARTED)
        found = np.empty(0) if plain is None else _floats(plain["losses"], np.float32)
        fits = found.ndim == 2 and found.shape[1] == num_steps + 1 and len(found) < num_problems
        return found if fits else None


def losses_at_steps(evaluations: dict[str, Evaluation]) -> dict[str, Any]:
    """Each optimizer's loss after the ``steps`` `STEPS_TOLD` and the last, over the problems.

    ``mean`` is infinite where a problem diverged; ``median`` is not so easily.
    Losses are as they are, whatever the objective's normalization.
    """
    curves = {name: np.asarray(e.losses, float) for name, e in evaluations.items()}
    last = min(losses.shape[1] for losses in curves.values()) - 1
    steps = sorted({*(step for step in STEPS_TOLD if step < last), last})
    told = {}
    for name, losses in curves.items():
        some = np.where(np.isfinite(losses), losses, np.inf)[:, steps]
        told[name] = {"mean": np.mean(some, axis=0), "median": np.median(some, axis=0)}
    problems = min(len(losses) for losses in curves.values())
    return {"steps": steps, "problems": problems, "optimizers": told}


def read_evaluations(path: Path) -> dict[str, Any]:
    """A task's summary; raises `UserError` for one that is missing or of another form."""
    summary = read_json(path)
    scores = forms.table(SCORE)
    require_form(path, summary, forms.fields(optimizers=scores, learned_minus=scores))
    for name in summary["optimizers"]:
        safe_name(name)
    missing = summary["learned_minus"].keys() - summary["optimizers"].keys()
    if missing or (summary["learned_minus"] and LEARNED not in summary["optimizers"]):
        raise UserError(f"{path}: learned_minus: compares optimizers that it has no score of")
    return summary


def read_losses(path: Path) -> dict[str, Any]:
    """Kept `losses_at_steps`; raises `UserError` for ones missing, damaged or of another form."""
    told = read_signed_json(path)
    losses = forms.numbers("steps")
    require_form(
        path,
        told,
        forms.fields(
            steps=forms.rows(forms.count, "steps"),
            problems=forms.count,
            optimizers=forms.table(forms.fields(mean=losses, median=losses)),
        ),
    )
    return told


def load_evaluation(path: Path, origin: dict[str, Any] | None = None) -> Evaluation | None:
    """A kept evaluation; None where there is none of ``origin`` (if given) or it is damaged."""
    plain = _kept(path, origin, EVALUATED)
    if plain is None:
        return None
    return Evaluation(
        losses=_floats(plain["losses"], np.float32),
        meta_objectives=_floats(plain["meta_objectives"], np.float64),
        mean=float(_floats(plain["mean"], np.float64)),
        standard_error=float(_floats(plain["standard_error"], np.float64)),
        exploded=plain["exploded"],
    )


def _kept(path: Path, origin: dict[str, Any] | None, form: Form) -> dict[str, Any] | None:
    """What the file holds if it is there, sound and of ``origin`` (if given)."""
    if not path.exists():
        return None
    try:
        plain = read_signed_json(path)
        require_form(path, plain, form)
    except UserError as error:
        print(f"evaluating again: {error}", flush=True)
        return None
    return plain if origin is None or plain["origin"] == to_plain(origin) else None


def _floats(value: Any, dtype: type) -> np.ndarray:
    """Stored numbers as an array, each null (JSON has no word for it) infinite."""
    numbers = np.asarray(value, float)
    with np.errstate(over="ignore"):  # no number of ours, but then infinite
        return np.where(np.isnan(numbers), np.inf, numbers).astype(dtype)


def _write_summary(path: Path, chosen: list[Contender], evaluations: dict[str, Evaluation]) -> None:
    summary: dict[str, Any] = {"optimizers": {}, "learned_minus": {}}
    for contender in chosen:
        evaluation = evaluations[contender.name]
        summary["optimizers"][contender.name] = {
            "mean": evaluation.mean,
            "standard_error": evaluation.standard_error,
            "exploded": evaluation.exploded,
            **contender.origin,
        }
        if LEARNED in evaluations and contender.name != LEARNED:
            difference = paired_difference(evaluations[LEARNED], evaluation)
            summary["learned_minus"][contender.name] = difference
    write_json_if_changed(path, summary)
