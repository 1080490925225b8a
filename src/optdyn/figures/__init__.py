"""Figures: results in, a matplotlib `Figure` out; nothing is computed or shown."""

from optdyn.figures._comparison import (
    advantage_kept,
    loss_curves,
    paired_differences,
    performance_summary,
    reduction_losses,
)
from optdyn.figures._lens import lens
from optdyn.figures._mechanisms import mechanisms
from optdyn.figures._modes import (
    eigenvalue_plane,
    mode_stages,
    modes_over_training,
    momentum_hyperparameters,
)
from optdyn.figures._optimizer import (
    optimizer_identification,
    optimizer_impulse,
    optimizer_modes,
    optimizer_stability,
)
from optdyn.figures._save import save_figure
from optdyn.figures._schematic import optimizer_schematic
from optdyn.figures._style import entitled
from optdyn.figures._tasks import (
    condition_numbers,
    hyperparameter_searches,
    rosenbrock_surface,
    two_moons_data,
)
from optdyn.figures._training import mode_film, mode_tracks, momentum_stage, training_curve
from optdyn.mechanisms import MomentumPoint

__all__ = [
    "MomentumPoint",
    "advantage_kept",
    "condition_numbers",
    "eigenvalue_plane",
    "entitled",
    "hyperparameter_searches",
    "lens",
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
    "reduction_losses",
    "rosenbrock_surface",
    "save_figure",
    "training_curve",
    "two_moons_data",
]
