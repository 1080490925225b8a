"""A task's learned optimizer distilled into readable ones, and taken apart, in its run folder."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Any

import optax
from jax.sharding import Mesh

from optdyn.distillation import Distilled, Kept, advantage_kept, as_code, from_values
from optdyn.errors import UserError
from optdyn.evaluation import (
    EVALUATION_STREAM,
    VALIDATION_STREAM,
    Evaluation,
    MeanAndError,
    evaluate_on,
    evaluator,
)
from optdyn.mechanisms._ablation import ABLATIONS, ablated
from optdyn.mechanisms._momentum_stage import operating_points
from optdyn.optimizers._baselines import BASELINES
from optdyn.runs._checkpoints import analysis_checkpoints, fingerprint
from optdyn.runs._distillation_fit import FITTED, Distilling, FittedResult, FittedSize, fit_sizes
from optdyn.runs._evaluation_run import (
    DISTILLATION,
    EVALUATION,
    LEARNED,
    EvaluationSummary,
    Score,
    load_evaluation,
)
from optdyn.runs._evaluation_run import SUMMARY as EVALUATION_SUMMARY
from optdyn.runs._plain import to_plain
from optdyn.runs._progress import progress
from optdyn.runs._results import HeldOut
from optdyn.runs._run_folder import RunFolder, first_difference
from optdyn.runs._store import read_bytes, read_result, stored_result, write_bytes, write_result
from optdyn.runs._training_run import CHECKPOINTS, load_trained
from optdyn.runs._tuning_run import load_tables
from optdyn.tasks import Task, describe_task

SUMMARY = DISTILLATION
CODE = "distilled.py"


@dataclasses.dataclass(frozen=True)
class Judged(MeanAndError[float]):
    """A test meta-objective, and how much of the learned optimizer's advantage it is."""

    exploded: int
    kept: Kept


@dataclasses.dataclass(frozen=True)
class JudgedMechanism(Judged):
    """The learned optimizer without a mechanism; ``what`` was taken away."""

    what: str


@dataclasses.dataclass(frozen=True)
class JudgedSize(FittedSize, Judged):
    """A readable optimizer judged on the test problems."""


@dataclasses.dataclass(frozen=True)
class DistillationInputs:
    """What a distillation depends on; ``fitted``: the SHA-256 of the fitted sizes' file."""

    task: str
    task_options: dict[str, Any]
    judged: HeldOut
    problems: list[int]
    fitted: str
    shipped: bool
    learned: str
    baseline: dict[str, Score]


@dataclasses.dataclass(frozen=True)
class DistillationResult:
    """``distillation.json``: readable optimizers of every size, judged.

    ``command``: the command line of the fit. ``baseline``: the best tuned one. ``chosen``:
    the place of the best size in ``sizes``. ``without``: the chosen one without each of its
    parts; ``learned_without``: the learned one without each of its mechanisms.
    """

    inputs: DistillationInputs
    shipped: bool
    command: str
    baseline: str
    learned: Score
    sizes: list[JudgedSize]
    chosen: int
    without: dict[str, Judged]
    learned_without: dict[str, JudgedMechanism]

    @property
    def best(self) -> JudgedSize:
        """The chosen size."""
        return self.sizes[self.chosen]


def distill_task(
    run: RunFolder, task: Task, what: Distilling, *, shipped: bool = False, mesh: Mesh | None = None
) -> DistillationResult:
    """Fit readable optimizers of every size (`fit_sizes`), and judge each.

    ``shipped``: take those that lie in the run folder already, whatever they were
    fitted with. The best on validation problems is exported as ``distilled.py``. Its
    parts, and mechanisms of the learned optimizer, are then removed one at a time. Test
    problems are spread over ``mesh``; fits are too small to gain by it. Stored in
    ``distillation.json``, made again only where something it depends on has changed.

    Raises `UserError` when the folder's optimizers have not been evaluated, or on problems or
    by an objective other than ``what`` says.
    """
    folder, described = run.task_folder(task), describe_task(task)
    checkpoints = analysis_checkpoints(folder / CHECKPOINTS)
    summary = folder / EVALUATION_SUMMARY
    scores = read_result(summary, EvaluationSummary).optimizers if summary.exists() else {}
    rivals = [name for name in scores if name in BASELINES]
    if not checkpoints or LEARNED not in scores or not rivals:
        missing = "train" if not checkpoints else "evaluate" if load_tables(folder) else "tune"
        raise UserError(
            f"--out: {folder} has no learned optimizer and baseline that are evaluated (next: "
            f"optdyn {missing} --task {described.name} --out {run.path})"
        )
    _require_same_problems(run, described.name, what)
    baseline = min(rivals, key=lambda name: _or_inf(scores[name].mean))
    optimizer, card = load_trained(run, task, checkpoints[-1])
    if not shipped:
        fit_sizes(folder, task, optimizer, what)
    fitted = read_result(folder / FITTED, FittedResult)
    held_out = what.held_out()
    inputs = DistillationInputs(
        task=described.name,
        task_options=described.options,
        judged=held_out,
        problems=[what.how.test_problems, what.how.ablation_problems],
        fitted=hashlib.sha256(read_bytes(folder / FITTED)).hexdigest(),
        shipped=shipped,
        learned=fingerprint(optimizer),
        baseline={baseline: scores[baseline]},
    )
    done = stored_result(folder / SUMMARY, DistillationResult, inputs)
    if done is not None and (folder / CODE).exists():
        return done

    found = [load_evaluation(folder / EVALUATION / f"{n}.json") for n in (LEARNED, baseline)]
    learned, rival = found
    if learned is None or rival is None:
        raise UserError(f"--out: an evaluation in {folder} is damaged (run optdyn evaluate again)")
    judge = _Judge(task, what, learned, rival, mesh)
    sizes = _measured(fitted.sizes, judge)
    chosen = min(range(len(sizes)), key=lambda place: _or_inf(sizes[place].validation))
    best = from_values(sizes[chosen].values)
    print(f"{described.name}: removing parts and mechanisms one at a time", flush=True)
    point = operating_points(held_out.problems(task, VALIDATION_STREAM))(optimizer)
    removed = ablated(optimizer, point)
    result = DistillationResult(
        inputs=inputs,
        shipped=shipped,
        command=fitted.command,
        baseline=baseline,
        learned=scores[LEARNED],
        sizes=sizes,
        chosen=chosen,
        without={n: judge.readable(best.without(n)) for n in best.parts() if n != "momenta"},
        learned_without={
            name: JudgedMechanism(**vars(judge.other(tx)), what=ABLATIONS[name])
            for name, tx in removed.items()
        },
    )
    origin = f"distilled from the learned optimizer of {described.name}, meta-step {card.meta_step}"
    write_bytes(folder / CODE, as_code(best, origin).encode())
    write_result(folder / SUMMARY, result)
    return result


def _require_same_problems(run: RunFolder, task: str, what: Distilling) -> None:
    """Raise `UserError` where the folder's evaluations cannot be compared problem by problem."""
    known = run.settings().get(f"evaluate/{task}", {})
    wanted = to_plain({"seed": what.seed, "objective": what.protocol.objective})
    other = first_difference({name: known.get(name, wanted[name]) for name in wanted}, wanted)
    if other:
        name, there, here = other
        raise UserError(
            f"--out: {run.path} was evaluated with {name} = {there!r}, not {here!r}, by which "
            f"readable optimizers are judged (run optdyn evaluate with {name} = {here!r} first)"
        )


class _Judge:
    """Says on the first test problems how much of the advantage an optimizer has."""

    def __init__(
        self,
        task: Task,
        what: Distilling,
        learned: Evaluation,
        baseline: Evaluation,
        mesh: Mesh | None,
    ) -> None:
        count = min(what.how.test_problems, len(learned.meta_objectives))
        test = HeldOut(what.seed, count, what.protocol.objective)
        few = dataclasses.replace(test, num_problems=min(what.how.ablation_problems, count))
        self._learned, self._baseline = learned.meta_objectives, baseline.meta_objectives
        self._few, self._mesh = few.problems(task, EVALUATION_STREAM), mesh
        problems = test.problems(task, EVALUATION_STREAM)
        self._readable = evaluator(Distilled.as_optax, problems, mesh=mesh)

    def readable(self, optimizer: Distilled) -> Judged:
        """A readable optimizer judged; one program serves all of them."""
        return self._judged(self._readable(optimizer.whole()))

    def other(self, tx: optax.GradientTransformation) -> Judged:
        """Any optimizer judged, on fewer problems."""
        return self._judged(evaluate_on(tx, self._few, mesh=self._mesh))

    def _judged(self, result: Evaluation) -> Judged:
        own = result.meta_objectives
        kept = advantage_kept(own, self._learned[: len(own)], self._baseline[: len(own)])
        return Judged(result.mean, result.standard_error, result.exploded, kept)


def _measured(sizes: list[FittedSize], judge: _Judge) -> list[JudgedSize]:
    """The fitted sizes with what each does on the test problems."""
    rows = []
    with progress("judging readable optimizers", len(sizes)) as advance:
        for count, size in enumerate(sizes, start=1):
            row = JudgedSize(**vars(size), **vars(judge.readable(from_values(size.values))))
            rows.append(row)
            advance(count, f"{row.name}: {_kept_in_words(row)}")
    return rows


def _kept_in_words(row: Judged) -> str:
    if math.isfinite(row.kept.fraction):
        return f"keeps {row.kept.fraction:.2f} of the advantage"
    return "there is no advantage to keep" if math.isfinite(row.mean) else "diverges"


def _or_inf(value: float) -> float:
    return math.inf if math.isnan(value) else value
