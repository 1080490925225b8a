"""Meta-training: gradients through the whole unroll and the outer loop around them."""

from optdyn.meta_training._gradient import meta_value_and_grad
from optdyn.meta_training._iterates import BestIterate, best_iterate, running_means
from optdyn.meta_training._trainer import (
    MetaTraining,
    Metrics,
    TrainingState,
    make_meta_step,
    start_training,
)
from optdyn.meta_training._unroll_options import Diagnostics, UnrollOptions

__all__ = [
    "BestIterate",
    "Diagnostics",
    "MetaTraining",
    "Metrics",
    "TrainingState",
    "UnrollOptions",
    "best_iterate",
    "make_meta_step",
    "meta_value_and_grad",
    "running_means",
    "start_training",
]
