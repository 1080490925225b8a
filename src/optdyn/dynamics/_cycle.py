"""After how many steps an optimizer's counters stand as before: one cycle of its steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from optdyn.dynamics._separability import keep_precision
from optdyn.inner_loop._evaluated import with_extra_args

LONGEST = 64
"""Cycles of up to so many steps are found."""


def steps_in_cycle(tx: optax.GradientTransformation, params: PyTree, state: PyTree) -> int:
    """1, or the steps after which the counters of ``state`` that start anew have done so.

    Lookahead, sharpness-aware descent and accumulated gradients (`optax.MultiSteps`) count to
    some number and start anew: only all steps of a cycle together are alike. The counters are
    read from steps with gradients of zero; one that goes another way where the loss falls counts
    something else (steps on a plateau). A cycle that no counter of its own shows, as of
    a transform that acts where the step number is even, is not found.
    """
    start = jax.tree.map(jnp.asarray, state)
    counting = [i for i, leaf in enumerate(jax.tree.leaves(start)) if _counts(leaf)]
    if not counting:
        return 1
    wrapped = with_extra_args(tx)
    zeros = jax.tree.map(jnp.zeros_like, params)
    fast = zeros.fast if isinstance(params, optax.LookaheadParams) else zeros

    def chosen(tree: PyTree) -> list[Array]:
        leaves = jax.tree.leaves(tree)
        return [jnp.ravel(leaves[i]).astype(jnp.int32) for i in counting]

    def advance(before: PyTree, value: Array) -> tuple[PyTree, list[Array]]:
        extra = {"value": value, "grad": fast, "value_fn": lambda p: value}
        after = keep_precision(wrapped.update(fast, before, params, **extra)[1], before)
        return after, chosen(after)

    # Only the counters come out: the compiler leaves the rest of the step away.
    run = jax.jit(lambda state, values: jax.lax.scan(advance, state, values)[1])
    losses = np.zeros(2 * LONGEST, np.float32), -np.arange(2 * LONGEST, dtype=np.float32)
    level, falling = (np.concatenate(run(start, each), axis=1) for each in losses)
    changes = np.diff(level[:, np.all(level == falling, axis=0)], axis=0)
    if not np.any(changes < 0):
        return 1
    for steps in range(2, LONGEST + 1):
        if np.array_equal(changes[steps:], changes[:-steps]):
            return steps
    return 1


def _counts(leaf: Any) -> bool:
    return bool(leaf.size) and bool(jnp.issubdtype(leaf.dtype, jnp.integer)) and leaf.ndim == 0
