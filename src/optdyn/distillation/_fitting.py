"""Fit a readable optimizer: first to imitate another one, then to the meta-objective itself."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from optdyn.distillation._chain import Distilled
from optdyn.errors import UserError, require_number, require_positive_int
from optdyn.meta_training._trainer import MetaTraining, make_meta_step, start_training
from optdyn.meta_training._unroll_options import MetaOptimizer
from optdyn.tasks import Task

Fitted = TypeVar("Fitted", bound=MetaOptimizer)

CHECKS = 12
"""How often a fit is scored on its way, evenly spread."""
HALVINGS = 5
"""How often the learning rate is halved over a fit."""


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How long and how fast to fit: Adam, its learning rate halved five times on the way."""

    imitation_steps: int = 200
    meta_steps: int = 500
    learning_rate: float = 5e-2

    def __post_init__(self) -> None:
        for name in ("imitation_steps", "meta_steps"):
            require_positive_int(name, getattr(self, name), minimum=0)
        require_number("learning_rate", self.learning_rate)


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """What an optimizer did: ``gradients`` [M, T] of M components, and its ``updates`` [M, T]."""

    gradients: Float[np.ndarray, "M T"]
    updates: Float[np.ndarray, "M T"]

    def __post_init__(self) -> None:
        g, u = np.asarray(self.gradients), np.asarray(self.updates)
        if g.shape != u.shape or g.ndim != 2 or g.size == 0:
            raise UserError(
                f"demonstration: shapes {g.shape} and {u.shape} are not allowed (twice (M, T))"
            )
        if not (np.all(np.isfinite(g)) and np.all(np.isfinite(u))):
            raise UserError("demonstration: not all finite")


def imitation_error(optimizer: Distilled, shown: Demonstration) -> float:
    """How far ``optimizer``'s updates are from those shown, given the gradients shown.

    The root of the mean over steps of the squared error relative to the mean square
    of the updates shown at that step: 0 is the same, 1 as bad as standing still.
    """
    return float(jnp.sqrt(_error(optimizer, *_arrays(shown))))


def imitate(optimizer: Distilled, shown: Demonstration, fitting: Fitting) -> Distilled:
    """``optimizer`` with its numbers fitted to do as shown (least `imitation_error`)."""
    if fitting.imitation_steps == 0:
        return optimizer
    return _imitated(optimizer, *_arrays(shown), fitting=fitting)


def fit(
    optimizer: Fitted,
    task: Task,
    protocol: MetaTraining,
    fitting: Fitting,
    seed: int,
    score: Callable[[Fitted], float],
) -> Fitted:
    """``optimizer`` with its numbers fitted to the meta-objective on training problems.

    By the project's own meta-gradient, through the same unroll as ``protocol``'s and
    with its containment, without its penalty. Of the start and `CHECKS` optimizers
    on the way the one with the lowest ``score``: never worse than ``optimizer``.
    """
    if fitting.meta_steps == 0:
        return optimizer
    adapted = dataclasses.replace(
        protocol,
        num_meta_steps=fitting.meta_steps,
        learning_rate=fitting.learning_rate,
        decay=0.5,
        decay_every=_decay_every(fitting.meta_steps),
        l2=0.0,
    )
    meta_step = make_meta_step(task, adapted, seed)
    state = start_training(optimizer, adapted)
    best, lowest = optimizer, score(optimizer)
    checked = set(np.linspace(0, fitting.meta_steps, CHECKS + 1).round().astype(int).tolist())
    for step in range(1, fitting.meta_steps + 1):
        # Waited for: several CPU devices may stall where many steps are under way.
        state, _ = jax.block_until_ready(meta_step(state))
        if step in checked and (found := score(state.optimizer)) < lowest:
            best, lowest = state.optimizer, found
    return best


def _decay_every(steps: int) -> int:
    return max(1, steps // (HALVINGS + 1))


def _arrays(shown: Demonstration) -> tuple[Float[Array, "T M"], Float[Array, "T M"]]:
    """Time first, and each step's updates with the weight that makes steps count alike."""
    gradients, updates = (
        jnp.asarray(np.asarray(a).T, jnp.float32) for a in (shown.gradients, shown.updates)
    )
    return gradients, updates


def _error(
    optimizer: Distilled, gradients: Float[Array, "T M"], updates: Float[Array, "T M"]
) -> Float[Array, ""]:
    tx = optimizer.as_optax()
    done = jax.lax.scan(
        lambda state, g: tx.update(g, state)[::-1], tx.init(gradients[0]), gradients
    )[1]
    shown = jnp.mean(jnp.square(updates), axis=1)
    missed = jnp.mean(jnp.square(done - updates), axis=1)
    # Steps at which next to nothing was shown would otherwise count for everything.
    return jnp.mean(missed / (shown + 1e-6 * jnp.max(shown)))


@functools.partial(jax.jit, static_argnames="fitting")
def _imitated(
    optimizer: Distilled,
    gradients: Float[Array, "T M"],
    updates: Float[Array, "T M"],
    *,
    fitting: Fitting,
) -> Distilled:
    steps = fitting.imitation_steps
    schedule = optax.exponential_decay(
        fitting.learning_rate, _decay_every(steps), 0.5, staircase=True
    )
    adam = optax.adam(schedule)

    def descend(_: int, carry: tuple[Distilled, optax.OptState]) -> tuple:
        current, state = carry
        gradient = jax.grad(_error)(current, gradients, updates)
        moves, state = adam.update(gradient, state)
        return optax.apply_updates(current, moves), state

    return jax.lax.fori_loop(0, steps, descend, (optimizer, adam.init(optimizer)))[0]
