"""How well an optimizer does on problems that it has not seen."""

from optdyn.evaluation._evaluate import (
    EVALUATION_STREAM,
    Evaluation,
    PairedDifference,
    evaluate,
    evaluator,
    paired_difference,
)
from optdyn.evaluation._validation import Validation, mean_curve

__all__ = [
    "EVALUATION_STREAM",
    "Evaluation",
    "PairedDifference",
    "Validation",
    "evaluate",
    "evaluator",
    "mean_curve",
    "paired_difference",
]
