"""The best linear optimizers of a task: aggregated momentum tuned by gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import optax

from optdyn.distillation._fitting import Fitting, fit
from optdyn.distillation._parts import Momenta
from optdyn.errors import require_positive_int
from optdyn.meta_training import MetaTraining
from optdyn.tasks import Task

SIZES = (1, 2, 4)
"""Numbers of modes that are tuned, each from the one before."""
REFERENCE_FITTING = Fitting(imitation_steps=0, meta_steps=150, learning_rate=2e-2)
"""Slow enough that no mode's learning rate leaps out of the stable range."""
SPEED_OF_NEW_MODES = 4.0
"""By what factor the odds ``β/(1 − β)`` fall from one mode added to the next."""


@dataclasses.dataclass(frozen=True)
class LinearReference:
    """``v_j ← β_j v_j + α_j g``, ``Δx = −Σ_j v_j``, the slowest mode first.

    ``meta_objective``: on the problems that chose it.
    """

    alpha: tuple[float, ...]
    beta: tuple[float, ...]
    meta_objective: float

    @property
    def num_modes(self) -> int:
        """The number of modes."""
        return len(self.beta)

    def momenta(self) -> Momenta:
        """The same optimizer as a pytree of its numbers."""
        return Momenta.of(self.alpha, self.beta)

    def as_optax(self) -> optax.GradientTransformation:
        """The optax pair."""
        return self.momenta().as_optax()


def tune_linear_references(
    task: Task,
    protocol: MetaTraining,
    tuned: Momenta,
    seed: int,
    score: Callable[[Momenta], float],
    *,
    sizes: Sequence[int] = SIZES,
    fitting: Fitting = REFERENCE_FITTING,
) -> dict[int, LinearReference]:
    """The best optimizer found with each number of modes in ``sizes``, by that number.

    A linear, component-wise optimizer without drift is a sum of modes, so these bound
    what linear dynamics alone can do on ``task``. The numbers follow the exact
    meta-gradient of ``protocol`` (its unroll, batch and containment; see `fit`). The
    first size starts from ``tuned``, a tuned momentum, each further one from the one
    before with `with_idle_modes`. ``score`` is the
    meta-objective on validation problems: a result never scores worse than its start.

    Raises `UserError` for sizes that do not rise from that of ``tuned``.
    """
    found, current = {}, tuned
    for size in sizes:
        require_positive_int("sizes", size, minimum=len(current.beta))
        current = fit(with_idle_modes(current, size), task, protocol, fitting, seed, score)
        found[size] = _reference(current, score(current))
    return found


def with_idle_modes(momenta: Momenta, size: int) -> Momenta:
    """``momenta`` with modes added up to ``size`` that do nothing yet: their α is 0.

    They are faster than the slowest one, each by another factor, so that the
    meta-gradient can tell them apart.
    """
    values = momenta.values()
    alpha, beta = list(values["alpha"]), list(values["beta"])
    slowest = max(beta)
    odds = slowest / (1.0 - slowest)
    for _ in range(size - len(beta)):
        odds /= SPEED_OF_NEW_MODES
        alpha.append(0.0)
        beta.append(odds / (1.0 + odds))
    return Momenta.of(alpha, beta)


def _reference(momenta: Momenta, meta_objective: float) -> LinearReference:
    values = momenta.values()
    slowest_first = np.argsort(values["beta"])[::-1]
    alpha, beta = (tuple(np.array(values[name])[slowest_first]) for name in ("alpha", "beta"))
    return LinearReference(
        alpha=tuple(map(float, alpha)), beta=tuple(map(float, beta)), meta_objective=meta_objective
    )
