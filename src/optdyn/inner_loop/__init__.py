"""The inner loop: one optimizer run on one problem, and the objective that judges the run."""

from optdyn.inner_loop._batching import map_runs, runs_at_once
from optdyn.inner_loop._evaluated import eval_params_of, with_eval_params, with_extra_args
from optdyn.inner_loop._objective import NORMALIZATIONS, Objective, meta_loss
from optdyn.inner_loop._problem_set import ProblemSet, mean_curve
from optdyn.inner_loop._statistics import MeanAndError
from optdyn.inner_loop._unroll import (
    RECORDABLE,
    Trajectory,
    losses_and_gradients,
    unroll,
    with_later_leaves,
)

__all__ = [
    "NORMALIZATIONS",
    "RECORDABLE",
    "MeanAndError",
    "Objective",
    "ProblemSet",
    "Trajectory",
    "eval_params_of",
    "losses_and_gradients",
    "map_runs",
    "mean_curve",
    "meta_loss",
    "runs_at_once",
    "unroll",
    "with_eval_params",
    "with_extra_args",
    "with_later_leaves",
]
