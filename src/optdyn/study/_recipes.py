"""What `optdyn reproduce` runs for each task at each scale."""

from __future__ import annotations

import dataclasses
from typing import Any

from optdyn.errors import require_choice
from optdyn.meta_training._trainer import MetaTraining
from optdyn.optimizers._componentwise_rnn import Architecture
from optdyn.optimizers._encodings import Encoding
from optdyn.runs._distillation_fit import Distillation

SCALES = ("smoke", "laptop", "paper")
PAPER_BASELINES = ("momentum", "rmsprop", "adam")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Every choice that one task's part of the study needs.

    ``training_seed`` is added to the study's seed for meta-training (seeds were
    searched along with meta learning rates). ``analysis_problems`` validation
    problems judge checkpoints; the mechanisms are measured on ``explained_problems``.
    The objective's normalization and unroll length are the protocol's, in training,
    tuning, evaluation and ``distillation`` alike. ``shipped``: the weights, search
    tables and readable optimizers that ship with the package stand in for training,
    tuning and fitting.
    """

    architecture: Architecture
    protocol: MetaTraining
    training_seed: int = 0
    task_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    baselines: tuple[str, ...] = PAPER_BASELINES
    tuning_samples: int = 2500
    tuning_problems: int = 32
    rescore_top: int = 50
    rescore_problems: int = 64
    test_problems: int = 64
    analysis_problems: int = 64
    explained_problems: int = 16
    distillation: Distillation = Distillation()
    shipped: bool = False


# A small gain keeps the network near its linear regime early on, where it can be momentum.
# The bound acts on about one problem in a thousand; without it a single exploding one,
# met once in thousands of meta-steps, can undo a training.
LINEAR_REGRESSION = Recipe(
    architecture=Architecture("gru", 32, Encoding("linear", gain=0.3), output_scale=1 / 0.3),
    protocol=MetaTraining(learning_rate=1e-2, normalization="first", max_cotangent_norm=1.0),
    training_seed=3,
    analysis_problems=256,
    distillation=Distillation(meta_steps=100),
)

# Curvatures reach thousands: meta-gradients must be contained, and the best momentum
# diverges on one start in some hundreds, which takes many starts to notice.
ROSENBROCK = Recipe(
    architecture=Architecture("gru", 32, Encoding("asinh"), output_scale=0.1),
    protocol=MetaTraining(learning_rate=2.15e-2, normalization="first", max_cotangent_norm=1.0),
    rescore_problems=1024,
    analysis_problems=256,
)

# Gradients of networks are of order 1e-3 to 1e-2, hence the gain.
NETWORK = Recipe(
    architecture=Architecture(
        "gru", 32, Encoding("asinh", gain=1000.0, scale=1 / 3), output_scale=0.1
    ),
    protocol=MetaTraining(learning_rate=2e-3, max_cotangent_norm=1.0, segment=20),
    tuning_problems=4,
    analysis_problems=4,
    explained_problems=2,
    distillation=Distillation(
        imitation_steps=100,
        meta_steps=10,
        learning_rate=2e-2,
        batch_size=4,
        max_cotangent_norm=1.0,
        task_options={"points": 256},
        demonstrations=2,
        validation_problems=12,
        test_problems=32,
        ablation_problems=16,
    ),
    shipped=True,
)

LAPTOP: dict[str, Recipe] = {
    "linear_regression": LINEAR_REGRESSION,
    "rosenbrock": ROSENBROCK,
    "two_moons": NETWORK,
    "digits": dataclasses.replace(
        NETWORK,
        task_options={"points": 256},
        distillation=Distillation(
            meta_steps=20,
            batch_size=4,
            demonstrations=16,
            validation_problems=16,
            ablation_problems=16,
        ),
    ),
}

SMOKE_OPTIONS: dict[str, dict[str, Any]] = {
    "two_moons": {"width": 4, "depth": 1, "points": 32},
    "digits": {"width": 4, "points": 32},
}
"""Task options that make a problem small."""


def recipe_for(task: str, scale: str) -> Recipe:
    """The recipe of ``task`` at ``scale``. Raises `UserError` for an unknown one.

    ``laptop``: the paper's protocol with a small network, and what ships with
    the package for tasks that take hours. ``paper``: 256 units, all trained
    here. ``smoke``: the same path in seconds, whose numbers mean nothing.
    """
    require_choice("--scale", scale, list(SCALES))
    require_choice("--task", task, list(LAPTOP))
    recipe = LAPTOP[task]
    if scale == "paper":
        return dataclasses.replace(
            recipe,
            architecture=dataclasses.replace(recipe.architecture, units=256),
            shipped=False,
        )
    return _smoke(recipe, SMOKE_OPTIONS.get(task, {})) if scale == "smoke" else recipe


def _smoke(recipe: Recipe, task_options: dict[str, Any]) -> Recipe:
    return dataclasses.replace(
        recipe,
        architecture=dataclasses.replace(recipe.architecture, units=6),
        protocol=dataclasses.replace(
            recipe.protocol, num_meta_steps=12, unroll_length=20, batch_size=4
        ),
        task_options=task_options,
        tuning_samples=60,
        tuning_problems=4,
        rescore_top=5,
        rescore_problems=4,
        test_problems=8,
        analysis_problems=4,
        explained_problems=2,
        distillation=Distillation(
            imitation_steps=2,
            meta_steps=2,
            batch_size=4,
            demonstrations=4,
            validation_problems=4,
            test_problems=8,
        ),
        shipped=False,
    )
