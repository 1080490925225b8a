"""The whole study: from nothing to the report."""

from optdyn.study._ledger import LEDGER, Claim, Verdict, read_ledger
from optdyn.study._recipes import ALL_TASKS, SCALES, Recipe, recipe_for, recipes_for
from optdyn.study._reproduce import Study, distill, report, reproduce

__all__ = [
    "ALL_TASKS",
    "LEDGER",
    "SCALES",
    "Claim",
    "Recipe",
    "Study",
    "Verdict",
    "distill",
    "read_ledger",
    "recipe_for",
    "recipes_for",
    "report",
    "reproduce",
]
