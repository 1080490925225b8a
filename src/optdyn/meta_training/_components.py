"""Spread the components of each problem over devices, for inner problems too large for one.

A mesh may have a second axis, whose devices work on the same problems. Each computes the
inner problem's loss and gradient as a whole, but holds the optimizer's state, and does its
work, for its own part of the components alone. Between the two parts of a step stand
`_own_part`, which takes a device's components, and `_whole`, which gathers all devices'. In
the reverse pass they change places: what one device alone has found out about its components
is gathered, and of what all have computed alike each takes its part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from optdyn.errors import UserError

BATCH_AXIS = "batch"
COMPONENT_AXIS = "components"

Rows = Float[Array, "batch n"]


def make_mesh(devices: Sequence[Any], components: int = 1) -> Mesh:
    """A mesh over ``devices``, ``components`` of which share each problem.

    Raises `UserError` where they do not divide.
    """
    if len(devices) % components:
        raise UserError(
            f"--components: {components} is not allowed (a divisor of {len(devices)} devices)"
        )
    if components == 1:
        return Mesh(np.array(devices), (BATCH_AXIS,))
    grid = np.array(devices).reshape(-1, components)
    return Mesh(grid, (BATCH_AXIS, COMPONENT_AXIS))


def spread_components(tx: optax.GradientTransformation, count: int) -> optax.GradientTransformation:
    """``tx`` working on one of ``count`` parts of the components, inside `jax.shard_map`.

    Takes the gradients [batch, n] of all, the same on each device, and gives the updates of
    all; its state is that of its own ⌈n / count⌉ components. ``tx`` must be component-wise.
    """
    if count == 1:
        return tx

    def init(params: Rows) -> PyTree:
        return tx.init(_own_part(count, params))

    def update(g: Rows, state: PyTree, params: Rows | None = None) -> tuple[Rows, PyTree]:
        own_params = None if params is None else _own_part(count, params)
        updates, following = tx.update(_own_part(count, g), state, own_params)
        return _whole(count, g.shape[1], updates), following

    return optax.GradientTransformation(init, update)


def _cut(count: int, whole: Rows) -> Rows:
    size = -(-whole.shape[1] // count)
    padded = jnp.pad(whole, ((0, 0), (0, count * size - whole.shape[1])))
    begin = size * jax.lax.axis_index(COMPONENT_AXIS)
    return jax.lax.dynamic_slice_in_dim(padded, begin, size, axis=1)


def _gather(count: int, n: int, part: Rows) -> Rows:
    del count
    return jax.lax.all_gather(part, COMPONENT_AXIS, axis=1, tiled=True)[:, :n]


_own_part = jax.custom_vjp(_cut, nondiff_argnums=(0,))
_own_part.defvjp(
    lambda count, whole: (_cut(count, whole), whole.shape[1]),
    lambda count, n, cotangent: (_gather(count, n, cotangent),),
)

_whole = jax.custom_vjp(_gather, nondiff_argnums=(0, 1))
_whole.defvjp(
    lambda count, n, part: (_gather(count, n, part), None),
    lambda count, n, _, cotangent: (_cut(count, cotangent),),
)
