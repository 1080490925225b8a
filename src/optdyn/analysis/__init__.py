"""What a learned optimizer has learned: its modes, and its likeness to momentum."""

from optdyn.analysis.momentum_stage import (
    StageRow,
    TunedMomentum,
    nearest_to,
    stage_row,
    tuned_momentum,
)
from optdyn.analysis.operating_point import OperatingPoint, operating_point
from optdyn.analysis.validation import Curves, Validation, mean_curve

__all__ = [
    "Curves",
    "OperatingPoint",
    "StageRow",
    "TunedMomentum",
    "Validation",
    "mean_curve",
    "nearest_to",
    "operating_point",
    "stage_row",
    "tuned_momentum",
]
