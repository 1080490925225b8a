"""What an optimizer does beyond its linear modes, and how it came to do it."""

from optdyn.mechanisms._momentum_stage import (
    MomentumComparison,
    MomentumPoint,
    StageRow,
    StageThresholds,
    TunedMomentum,
)
from optdyn.mechanisms._stage_search import (
    MomentumStage,
    SeedStage,
    StageSearch,
    find_momentum_stage,
    trainings_of,
)

__all__ = [
    "MomentumComparison",
    "MomentumPoint",
    "MomentumStage",
    "SeedStage",
    "StageRow",
    "StageSearch",
    "StageThresholds",
    "TunedMomentum",
    "find_momentum_stage",
    "trainings_of",
]
