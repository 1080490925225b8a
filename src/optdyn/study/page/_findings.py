"""The report's findings: a few sentences with their numbers, from the results that there are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

from optdyn.figures._style import readable
from optdyn.runs._evaluation_run import LEARNED
from optdyn.study._claims import APPENDIX_A
from optdyn.study._ledger import Claim
from optdyn.study._measures import AT_THE_STAGE, distance_to_momentum, there
from optdyn.study._results import TaskResults

IS_MOMENTUM = {
    "one_mode_stands_out",
    "mode_has_tuned_momentums_numbers",
    "one_mode_follows_the_full_optimizer",
}
"""Rows of the table of claims that a checkpoint must meet beside its loss to be momentum."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """A sentence or two, and the key and task of the figure that shows it."""

    text: str
    figure: str
    task: str = ""


def findings(results: Sequence[TaskResults], claims: Sequence[Claim]) -> list[Finding]:
    """What the results say, the comparison first."""
    return [found for tell in TELLERS for found in tell(results, claims)]


def _comparison(results: Sequence[TaskResults], claims: Sequence[Claim]) -> Iterator[Finding]:
    words, won = [], 0
    judged = [r for r in results if r.summary and r.summary.learned_minus]
    for result in judged:
        scores = there(result.summary).optimizers
        rivals = {n: s.mean for n, s in scores.items() if n != LEARNED and math.isfinite(s.mean)}
        wins = [c for c in claims if (c.task, c.row) == (result.task, "learned_beats_{}")]
        won += all(claim.passed for claim in wins)
        learned = scores[LEARNED].mean
        if not math.isfinite(learned) or not rivals:
            words.append(f"diverges on {result.title}")
            continue
        best = min(rivals, key=rivals.__getitem__)
        percent = 100 * (1 - learned / rivals[best])
        side = "lower" if percent >= 0 else "higher"
        words.append(f"{abs(percent):.0f} % {side} on {result.title} ({readable(best)})")
    if judged:
        yield Finding(
            f"The learned optimizer beats every tuned baseline on {won} of {len(judged)} tasks. "
            "On unseen problems, compared with the best other optimizer (in brackets), its "
            f"mean loss is {_listed(words)}.",
            "fig09",
        )


def _momentum(results: Sequence[TaskResults], claims: Sequence[Claim]) -> Iterator[Finding]:
    for result in _of_appendix_a(results):
        analysis = there(result.analysis)
        row, tuned, off = analysis.stage, analysis.tuned, distance_to_momentum(analysis)
        held = {claim.row for claim in claims if claim.task == result.task and claim.passed}
        if off > AT_THE_STAGE:
            how = (
                f"On {result.title} no stored checkpoint performs like tuned momentum: the "
                f"nearest, at meta-step {row.meta_step:,}, is {100 * off:.0f} % off"
            )
        elif held.issuperset(IS_MOMENTUM):
            how = (
                f"On {result.title} it passes through momentum: at meta-step {row.meta_step:,} "
                f"its loss is within {100 * off:.1f} % of tuned momentum's"
            )
        else:
            how = (
                f"On {result.title} it performs like tuned momentum at meta-step "
                f"{row.meta_step:,} (loss within {100 * off:.1f} %), but by other modes"
            )
        yield Finding(
            f"{how}. Its strongest mode has learning rate {row.alpha:.3g} and momentum "
            f"{row.beta:.3g}; tuned momentum has {tuned.alpha:.3g} and {tuned.beta:.3g}.",
            "fig07b", result.task,
        )  # fmt: skip


def _one_mode(results: Sequence[TaskResults], _: Sequence[Claim]) -> Iterator[Finding]:
    for result in _of_appendix_a(results):
        row = there(result.analysis).stage
        follows = (
            f"Run alone, that mode follows the whole optimizer's loss to within "
            f"{100 * row.deviation:.2g} % (median over steps)"
            if math.isfinite(row.deviation)
            else "Run alone, that mode diverges"
        )
        yield Finding(
            f"{follows}. Its steady-state gain is {row.gain_gap:.3g} times the next mode's.",
            "fig07c", result.task,
        )  # fmt: skip


def _of_appendix_a(results: Sequence[TaskResults]) -> list[TaskResults]:
    """The appendix's task, another one where that has no analysis."""
    analysed = [result for result in results if result.analysis]
    return ([r for r in analysed if r.task in APPENDIX_A] or analysed)[:1]


def _mechanisms(results: Sequence[TaskResults], claims: Sequence[Claim]) -> Iterator[Finding]:
    measured = sum(result.mechanisms is not None for result in results)
    if not measured:
        return

    def held(row: str) -> str:
        return f"{sum(c.row == row and c.passed for c in claims)} of {measured}"

    yield Finding(
        f"Its updates saturate at large gradients on {held('update_saturates')} tasks. With zero "
        f"gradients its learning rate rises at first on {held('schedule_warms_up')} and falls "
        f"later on {held('schedule_decays')}. Under large constant gradients it is smaller on "
        f"{held('rate_falls_with_gradient')}.",
        "mechanisms",
    )


def _readable(results: Sequence[TaskResults], _: Sequence[Claim]) -> Iterator[Finding]:
    judged = [result for result in results if result.distillation]
    words = []
    for result in judged:
        best = there(result.distillation).best
        if math.isfinite(best.kept.fraction):
            percent = 100 * best.kept.fraction
            words.append(f"{percent:.0f} % on {result.title} ({best.numbers} numbers)")
    if judged:
        how = f"reaches {_listed(words)}" if words else "reaches nothing on any task"
        yield Finding(
            "Of the learned optimizer's advantage over the best tuned baseline, an optimizer of "
            f"a few numbers {how}.",
            "advantage_kept",
        )


def _listed(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


Teller = Callable[[Sequence[TaskResults], Sequence[Claim]], Iterator[Finding]]
TELLERS: tuple[Teller, ...] = (_comparison, _momentum, _one_mode, _mechanisms, _readable)
