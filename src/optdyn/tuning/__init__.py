"""Random search over an optimizer's hyperparameters (appendix C.3)."""

from optdyn.tuning.grid import Grid
from optdyn.tuning.random_search import random_search, rerun_best, score
from optdyn.tuning.search_table import Best, SearchSettings, SearchTable, best, is_finished
from optdyn.tuning.tables import load_table, table_bytes

__all__ = [
    "Best",
    "Grid",
    "SearchSettings",
    "SearchTable",
    "best",
    "is_finished",
    "load_table",
    "random_search",
    "rerun_best",
    "score",
    "table_bytes",
]
