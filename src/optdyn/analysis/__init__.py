"""What an optimizer does: its modes, its stability, and its likeness to others."""

from optdyn.analysis.curvature import task_curvatures
from optdyn.analysis.dissection import Dissection, dissect, natural_linearization
from optdyn.analysis.momentum_stage import (
    MomentumComparison,
    StageRow,
    TunedMomentum,
    nearest_to,
)
from optdyn.analysis.operating_point import OperatingPoint, operating_point
from optdyn.analysis.validation import Validation, mean_curve

__all__ = [
    "Dissection",
    "MomentumComparison",
    "OperatingPoint",
    "StageRow",
    "TunedMomentum",
    "Validation",
    "dissect",
    "mean_curve",
    "natural_linearization",
    "nearest_to",
    "operating_point",
    "task_curvatures",
]
