"""Readable optimizers fitted to learned ones: what explains them, part by part."""

from optdyn.distillation._chain import Distilled, from_values
from optdyn.distillation._export import as_code
from optdyn.distillation._fitting import Demonstration, Fitting, fit, imitate, imitation_error
from optdyn.distillation._ladder import LADDER, Guess, extended, leading_momentum, tuned_in_parts
from optdyn.distillation._linear_account import (
    Kept,
    LinearAccount,
    advantage_kept,
    linear_account,
    share_of_advantage,
)
from optdyn.distillation._linear_reference import (
    REFERENCE_FITTING,
    LinearReference,
    tune_linear_references,
)
from optdyn.distillation._parts import AdaptiveScaling, Forgetting, Momenta, Saturation, Schedule

__all__ = [
    "LADDER",
    "REFERENCE_FITTING",
    "AdaptiveScaling",
    "Demonstration",
    "Distilled",
    "Fitting",
    "Forgetting",
    "Guess",
    "Kept",
    "LinearAccount",
    "LinearReference",
    "Momenta",
    "Saturation",
    "Schedule",
    "advantage_kept",
    "as_code",
    "extended",
    "fit",
    "from_values",
    "imitate",
    "imitation_error",
    "leading_momentum",
    "linear_account",
    "share_of_advantage",
    "tune_linear_references",
    "tuned_in_parts",
]
