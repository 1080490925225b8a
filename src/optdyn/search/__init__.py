"""Random search over an optimizer's hyperparameters (appendix C.3)."""

from optdyn.distributed._engines import Execution
from optdyn.search._random_search import random_search, rerun_best, score, tuning_problems
from optdyn.search._search_table import (
    Best,
    Grid,
    SearchProtocol,
    SearchSettings,
    SearchTable,
    best,
    is_finished,
)

__all__ = [
    "Best",
    "Execution",
    "Grid",
    "SearchProtocol",
    "SearchSettings",
    "SearchTable",
    "best",
    "is_finished",
    "random_search",
    "rerun_best",
    "score",
    "tuning_problems",
]
