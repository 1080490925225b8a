"""Figures: results in, a matplotlib `Figure` out; nothing is computed or shown."""

from optdyn.figures.comparison import (
    loss_curves,
    paired_differences,
    performance_summary,
    reduction_losses,
)
from optdyn.figures.distillation import advantage_kept
from optdyn.figures.emergence import mode_film, mode_tracks
from optdyn.figures.identification import optimizer_identification
from optdyn.figures.inputs import (
    Curve,
    MomentumPoint,
    MomentumStage,
    Score,
    SearchPanel,
    StoredModes,
)
from optdyn.figures.mechanisms import mechanisms
from optdyn.figures.modes import eigenvalue_plane, modes_over_training, momentum_hyperparameters
from optdyn.figures.optimizer import optimizer_impulse, optimizer_modes
from optdyn.figures.registry import FIGURES, Description, place
from optdyn.figures.save import save_figure
from optdyn.figures.schematic import optimizer_schematic
from optdyn.figures.search import hyperparameter_searches
from optdyn.figures.stability import optimizer_stability
from optdyn.figures.stages import mode_stages
from optdyn.figures.style import entitled
from optdyn.figures.tasks import condition_numbers, rosenbrock_surface, two_moons_data
from optdyn.figures.training import momentum_stage, training_curve

__all__ = [
    "FIGURES",
    "Curve",
    "Description",
    "MomentumPoint",
    "MomentumStage",
    "Score",
    "SearchPanel",
    "StoredModes",
    "advantage_kept",
    "condition_numbers",
    "eigenvalue_plane",
    "entitled",
    "hyperparameter_searches",
    "loss_curves",
    "mechanisms",
    "mode_film",
    "mode_stages",
    "mode_tracks",
    "modes_over_training",
    "momentum_hyperparameters",
    "momentum_stage",
    "optimizer_identification",
    "optimizer_impulse",
    "optimizer_modes",
    "optimizer_schematic",
    "optimizer_stability",
    "paired_differences",
    "performance_summary",
    "place",
    "reduction_losses",
    "rosenbrock_surface",
    "save_figure",
    "training_curve",
    "two_moons_data",
]
