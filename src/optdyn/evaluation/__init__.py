"""How well an optimizer does on problems that it has not seen."""

from optdyn.evaluation._evaluate import (
    Evaluation,
    evaluate,
    evaluate_on,
    evaluator,
    paired_difference,
)
from optdyn.inner_loop._problem_set import (
    EVALUATION_STREAM,
    VALIDATION_STREAM,
    ProblemSet,
    mean_curve,
)
from optdyn.inner_loop._statistics import MeanAndError

__all__ = [
    "EVALUATION_STREAM",
    "VALIDATION_STREAM",
    "Evaluation",
    "MeanAndError",
    "ProblemSet",
    "evaluate",
    "evaluate_on",
    "evaluator",
    "mean_curve",
    "paired_difference",
]
