"""Every optimizer that the project makes, by name: one battery tests them all.

A new cell, baseline or shipped training is in it by itself; of the trainings, which have a cell
of the same code, the short suite takes one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import optax

import helpers
from optdyn.distillation import (
    AdaptiveScaling,
    Distilled,
    Forgetting,
    Momenta,
    Saturation,
    Schedule,
)
from optdyn.dynamics import Linearization, linear_optimizer, linearize, reduce
from optdyn.optimizers import BASELINES, CELLS
from optdyn.optimizers._aggregated_momentum import aggregated_momentum
from optdyn.optimizers._baselines import Baseline
from optdyn.optimizers._state_precision import store_state_in
from optdyn.precision import double_precision
from optdyn.pretrained import load_pretrained, other_trainings, shipped_stages

Make = Callable[[], optax.GradientTransformation]


def learned(cell: str) -> optax.GradientTransformation:
    return helpers.random_rnn(cell).as_optax()


def in_the_middle(baseline: Baseline) -> optax.GradientTransformation:
    """A baseline at the middle of its grid."""
    middle = {axis.name: axis.values()[axis.points // 2].item() for axis in baseline.grid}
    return baseline.factory(**middle)


def linearised() -> Linearization:
    """Two momenta with weight decay: the update depends on the parameters, too."""
    momenta = aggregated_momentum([0.1, 0.02], [0.5, 0.75])
    with double_precision():
        return linearize(optax.chain(momenta, optax.add_decayed_weights(-0.1)), param=0.3)


def distilled() -> optax.GradientTransformation:
    """A readable optimizer with every part."""
    return Distilled(
        Momenta.of([0.3, 0.1], [0.2, 0.9]),
        adaptive=AdaptiveScaling.of(0.95, 0.4, 1e-3),
        saturation=Saturation.of(0.7, 0.6),
        forgetting=Forgetting.of(2.0, 0.7),
        schedule=Schedule.of([-0.5, 0.8], [0.6, 0.97]),
    ).as_optax()


TRAINED = [
    (name, stage)
    for each in (shipped_stages(), other_trainings())
    for name in each
    for stage in each[name]
]
OPTIMIZERS: dict[str, Make] = {
    **{f"learned {cell}": functools.partial(learned, cell) for cell in CELLS},
    **{name: functools.partial(in_the_middle, each) for name, each in BASELINES.items()},
    "aggregated momentum": lambda: aggregated_momentum([0.1, 0.02], [0.5, 0.75]),
    "linearised": lambda: linear_optimizer(linearised()),
    "reduced": lambda: reduce(linearised(), [0]),
    "distilled": distilled,
    "rounded state": lambda: store_state_in("bfloat16", optax.adam(0.1, b1=0.5, b2=0.75)),
    "rounded learned": lambda: store_state_in("bfloat16", learned("gru")),
    **{
        f"{name} ({stage})": lambda name=name, stage=stage: load_pretrained(name, stage).as_optax()
        for name, stage in helpers.small_part(TRAINED[:1], TRAINED)
    },
}
