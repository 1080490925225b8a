"""Optimizers that the tests of `optdyn.dynamics` share."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optdyn.dynamics import Linearization, StepMap, find_fixed_points, linearize, step_map
from optdyn.optimizers._componentwise_rnn import Architecture, ComponentwiseRNN
from optdyn.optimizers._encodings import Encoding


def random_rnn(cell: str, units: int, encoding: Encoding = Encoding()) -> ComponentwiseRNN:
    """A learned optimizer with every meta-parameter drawn at random."""
    architecture = Architecture(cell, units, encoding)
    shapes = jax.eval_shape(lambda: ComponentwiseRNN.init(jax.random.key(0), architecture))
    draw = np.random.default_rng(1).normal
    return jax.tree.map(lambda leaf: jnp.asarray(draw(size=leaf.shape, scale=0.35)), shapes)


@functools.cache
def learned(cell: str, units: int = 8) -> tuple[ComponentwiseRNN, StepMap]:
    """A random learned optimizer and its step map."""
    rnn = random_rnn(cell, units)
    return rnn, step_map(rnn.as_optax())


@functools.cache
def learned_at_fixed_point(cell: str) -> Linearization:
    """That optimizer, linearised at a fixed point."""
    _, step = learned(cell)
    # Random units of this size have attracting fixed points near the initial state.
    starts = step.h[None] + 0.1 * np.random.default_rng(0).normal(size=(4, step.h.size))
    found = find_fixed_points(step, starts, tolerance=1e-12)
    assert found.converged.all()
    return linearize(step, h=found.unique().h[0])


def linear_system(A, B, C, D: float = 0.0) -> Linearization:
    """``h' = A h + B g`` with the update ``C h + D g``."""
    A, B, C = (np.asarray(a, float) for a in (A, B, C))
    n = len(B)
    return Linearization(
        A=A, B=B, C=C, D=D, E=np.zeros(n), weight_decay=0.0, drift=0.0, residual=np.zeros(n),
        state=np.zeros(n), gradient=0.0, param=0.0, names=("h",) * n, comoving=np.zeros(n),
    )  # fmt: skip


def adam_state(tx: optax.GradientTransformation, s: float) -> optax.OptState:
    """Adam's state for one component with second moment s²."""
    return optax.tree_utils.tree_set(tx.init(jnp.zeros(1)), nu=jnp.full(1, s**2))
