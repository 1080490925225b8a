"""What a learned optimizer has learned: its modes, and its likeness to momentum."""

from optdyn.analysis.momentum_stage import (
    MomentumComparison,
    StageRow,
    TunedMomentum,
    nearest_to,
)
from optdyn.analysis.operating_point import OperatingPoint, operating_point
from optdyn.analysis.validation import Validation, mean_curve

__all__ = [
    "MomentumComparison",
    "OperatingPoint",
    "StageRow",
    "TunedMomentum",
    "Validation",
    "mean_curve",
    "nearest_to",
    "operating_point",
]
