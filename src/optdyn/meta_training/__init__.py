"""Meta-training: gradients through the whole unroll and the outer loop around them."""

from optdyn.meta_training._gradient import meta_value_and_grad
from optdyn.meta_training._trainer import (
    MetaTraining,
    Metrics,
    TrainingState,
    make_meta_step,
    start_training,
)
from optdyn.meta_training._unroll_options import Diagnostics, UnrollOptions

__all__ = [
    "Diagnostics",
    "MetaTraining",
    "Metrics",
    "TrainingState",
    "UnrollOptions",
    "make_meta_step",
    "meta_value_and_grad",
    "start_training",
]
