"""How a claim's number spreads over trainings that differ in the seed alone, in words."""

from __future__ import annotations

import math
from collections.abc import Callable

from optdyn.runs._stage_run import StageSearchRow
from optdyn.study._ledger import Bound
from optdyn.study._results import TaskResults
from optdyn.study._seeds import spread_over_seeds

Spread = Callable[[TaskResults, str, Bound], str]


def over_seeds(headline: str) -> Spread:
    """The spread of a headline number, whose name holds ``{}`` where the subject's stands."""

    def words(results: TaskResults, subject: str, bound: Bound) -> str:
        if results.seeds is None:
            return ""
        found = spread_over_seeds(results.seeds.rows).get(headline.format(subject))
        if found is None or not any(map(math.isfinite, found.values)):
            return ""
        met = sum(bound.met(value, results.task) for value in found.values)
        missing = sum(not math.isfinite(value) for value in found.values)
        without = f", {missing} have no such number" if missing else ""
        mean = f"{found.mean:.3g} ± {found.standard_deviation:.2g}"
        return (
            f"Over {len(found.values)} trainings: {mean} "
            f"({found.smallest:.3g} to {found.largest:.3g}); {met} reach the bound{without}."
        )

    return words


def over_stage_trainings(what: str) -> Spread:
    """In how many trainings for the momentum stage a checkpoint does ``what``.

    ``what``: "near" (performs like tuned momentum) or "met" (meets every threshold). Of the
    trainings looked through, those count that differ from the best one in the seed alone.
    """
    does = {"near": "performs like tuned momentum", "met": "meets every threshold of Fig. 7"}[what]

    def words(results: TaskResults, _: str, __: Bound) -> str:
        if results.stage_search is None:
            return ""
        rows = results.stage_search.rows
        best = min(rows, key=lambda row: row.strain)
        same = [row for row in rows if _choices(row) == _choices(best)]
        count = sum(getattr(row, what) > 0 for row in same)
        return (
            f"Over {len(same)} trainings with other seeds, {count} have a checkpoint that {does}."
        )

    return words


def _choices(row: StageSearchRow) -> tuple[float, float, int | None]:
    return row.gain, row.learning_rate, row.average_over
