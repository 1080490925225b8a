"""The ledger: each claim with what was measured, and a verdict that follows from the numbers."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from optdyn.runs._store import read_json

if TYPE_CHECKING:
    from optdyn.study._results import TaskResults

LEDGER = "claims.json"
PAPER_PROBLEMS = 5000 * 32
"""Problems that the paper's meta-training unrolls: meta-steps times batch size."""
CLOSE = 2.0
"""Standard errors between a measurement and its bound within which chance may decide."""


class Verdict(enum.StrEnum):
    """What a claim's numbers say."""

    HOLDS = "holds"
    DISAGREES = "disagrees with the paper"
    UNDERTRAINED = "not trained far enough to tell"
    ROUNDING = "depends on rounding"
    BEYOND = "not found, and not claimed by the paper"
    UNMEASURED = "not measured"


@dataclasses.dataclass(frozen=True)
class Bound:
    """A level that a measurement may reach but not pass; ``on`` has other levels for some tasks."""

    sign: Literal["<=", ">="]
    level: float
    on: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def level_for(self, task: str) -> float:
        """The level asked of ``task``."""
        return self.on.get(task, self.level)

    def met(self, value: float, task: str) -> bool:
        """Whether ``value`` meets the bound; NaN does not."""
        level = self.level_for(task)
        return value <= level if self.sign == "<=" else value >= level

    def words(self, task: str) -> str:
        """The comparison as text."""
        return f"{self.sign} {self.level_for(task):g}"


def at_most(level: float, **on: float) -> Bound:
    """The measurement must be ``level`` or less, on some tasks another level."""
    return Bound("<=", level, on)


def at_least(level: float, **on: float) -> Bound:
    """The measurement must be ``level`` or more, on some tasks another level."""
    return Bound(">=", level, on)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A number with its standard error, where that is known, and a note on where it is from."""

    value: float
    note: str = ""
    standard_error: float = 0.0


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table of claims.

    ``label``: its few words in the page's overview; ``statement``: the finding in full.
    ``source``: where it is stated; ``figure``: the key of the figure that shows it.
    ``measure(results, subject)`` gives the number that ``bound`` is for. It is asked when
    the result called ``needs`` is there (a field of `TaskResults`), once for each of
    ``subjects`` (such as the baselines), whose names stand for ``{}`` in the texts.
    ``asked_of``: the tasks that it is asked of (none: all). ``stated_for``: the tasks that the
    paper states it for (None: all; empty: the claim is this project's own).
    ``decided_by``: what can still decide a claim that is missed. ``spread`` says how the number
    spreads over trainings with other seeds ("" where that was not measured).
    """

    id: str
    label: str
    statement: str
    source: str
    figure: str
    needs: str
    measure: Callable[[TaskResults, str], Measured]
    bound: Bound
    subjects: Callable[[TaskResults], Iterable[str]] = lambda results: ("",)
    asked_of: tuple[str, ...] = ()
    stated_for: tuple[str, ...] | None = None
    decided_by: Literal["training", "rounding", "measurement"] = "training"
    spread: Callable[[TaskResults, str, Bound], str] = lambda *_: ""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A finding of one task: the number that decides it, and the verdict.

    ``id`` is unique in a ledger; ``row`` and ``label`` are the table row's. ``threshold``
    states the comparison; ``why`` says what a verdict other than "holds" rests on.
    ``origin``: where the weights and search tables behind it came from. ``spread``: the number
    over trainings with other seeds, in words. ``measured`` is null
    where there is no finite number.
    """

    id: str
    row: str
    task: str
    label: str
    statement: str
    source: str
    figure: str
    measured: float | None
    threshold: str
    verdict: Verdict
    passed: bool
    why: str = ""
    note: str = ""
    origin: str = ""
    spread: str = ""


def judge(rows: Sequence[Row], results: TaskResults) -> list[Claim]:
    """The claims that ``rows`` make on a task, as far as its results go."""
    return [
        _claim(row, subject, results)
        for row in rows
        if (not row.asked_of or results.task in row.asked_of) and results.has(row.needs)
        for subject in row.subjects(results)
    ]


def unmeasured(row: Row, task: str, subject: str, why: str = "") -> Claim:
    """A claim that is not measured yet, or on a task that this study could not look at."""
    return Claim(
        id=f"{task}.{row.id.format(subject)}",
        row=row.id,
        task=task,
        label=row.label,
        statement=row.statement.format(subject),
        source=row.source,
        figure=row.figure,
        measured=None,
        threshold=row.bound.words(task),
        verdict=Verdict.UNMEASURED,
        passed=False,
        why=why,
    )


def _claim(row: Row, subject: str, results: TaskResults) -> Claim:
    found = row.measure(results, subject)
    verdict, why = _verdict(row, found, results)
    return dataclasses.replace(
        unmeasured(row, results.task, subject),
        measured=found.value if math.isfinite(found.value) else None,
        verdict=verdict,
        passed=verdict == Verdict.HOLDS,
        why=why,
        note=found.note,
        origin=results.origin,
        spread=row.spread(results, subject, row.bound),
    )


def _verdict(row: Row, found: Measured, results: TaskResults) -> tuple[Verdict, str]:
    """The verdict and the sentence that it rests on."""
    task = results.task
    if row.bound.met(found.value, task):
        return Verdict.HOLDS, ""
    if math.isnan(found.value):
        return Verdict.UNMEASURED, "There is no number to judge by."
    if row.stated_for is not None and task not in row.stated_for:
        where = " or ".join(row.stated_for).replace("_", " ")
        if not where:
            return Verdict.BEYOND, "The paper does not say this; the bound is this project's aim."
        return Verdict.BEYOND, f"The paper reports this for {where} alone."
    if row.decided_by == "rounding":
        return Verdict.ROUNDING, (
            "Runs of a chaotic optimizer part where another processor rounds differently."
        )
    if row.decided_by == "measurement":
        return Verdict.DISAGREES, ""
    seen = results.problems_seen
    if seen < PAPER_PROBLEMS:
        return Verdict.UNDERTRAINED, (
            f"Meta-training unrolled {seen:,} problems, the paper's {PAPER_PROBLEMS:,}."
        )
    if abs(found.value - row.bound.level_for(task)) <= CLOSE * found.standard_error:
        return Verdict.ROUNDING, (
            f"The bound is within {CLOSE:g} standard errors: other problems, or a training that "
            "rounds differently, can decide it."
        )
    return Verdict.DISAGREES, f"Meta-training unrolled {seen:,} problems, as many as the paper's."


def read_ledger(path: Path) -> list[Claim]:
    """The claims in a ledger file; raises `UserError` where it is missing or damaged."""
    return read_json(path, list[Claim])
