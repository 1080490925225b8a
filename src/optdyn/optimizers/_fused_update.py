"""The GRU step and its readout as users of a learned optimizer run them, as one native call.

Nothing is stored for a reverse pass, and the state is written in its own place: under `jax.jit`
with the state donated, an update needs no memory but the state. The state is float32, or
bfloat16 with sums in float32. For a batch inside `jax.vmap` the plain step is used.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

from optdyn.optimizers._fused_gru import (
    PANEL_BYTES,
    StepAndReadout,
    map_plain,
    native_call,
    panels,
    shape_of,
)
from optdyn.optimizers._gru_kernel import GATES, Weights, gru_reference
from optdyn.optimizers.native.build import targets

FEW_UNITS, FEW = 16, 4
"""Up to so many units are worked on so many at a time, with components side by side."""


def usable(units: int, dtype: Any, stored: Any) -> bool:
    """Whether there is native code for meta-parameters of ``dtype`` and a state ``stored`` so."""
    narrow = jnp.dtype(stored) == jnp.bfloat16
    if jnp.dtype(dtype) != jnp.float32 or not (narrow or jnp.dtype(stored) == jnp.float32):
        return False
    if narrow and units % 2:
        return False
    return jax.default_backend() == "cpu" and targets() is not None


def bind(weights: Weights, w: Float[Array, " units"], stored: Any) -> StepAndReadout:
    """``step(h, u) -> (h', h' @ w)`` for these meta-parameters and a state ``stored`` so.

    It can be differentiated in any way and to any order. h is [..., units], u is [N, inputs]; the
    readout has shape [N], and is of h' before that is rounded. The factors of a bfloat16 state's
    products are rounded to bfloat16 too: ``r ⊙ h`` here, the weights ``W_*`` by `rounded`.
    """
    units = w.shape[0]
    columns = FEW if units <= FEW_UNITS else PANEL_BYTES // w.dtype.itemsize
    narrow = jnp.dtype(stored) == jnp.bfloat16

    def laid_out(rows: Array) -> Array:
        return panels(jnp.pad(rows, ((0, 0), (0, -units % columns))), columns)

    state = jnp.stack([laid_out(weights[f"W_{gate}"]) for gate in GATES])
    if narrow:
        state = _in_pairs(state)
    inputs = [jnp.concatenate([weights[f"V_{gate}"], weights[f"b_{gate}"][None]]) for gate in GATES]
    layout = (
        state,
        jnp.stack([laid_out(each) for each in inputs]),
        jnp.pad(w, (0, -units % columns)),
    )
    layout = jax.lax.stop_gradient(layout)
    return lambda h, u: _step(h, u, weights, w, layout)


def rounded(weights: Weights, dtype: Any) -> Weights:
    """``weights`` whose factors of the state have the numbers that ``dtype`` has."""
    return {
        name: each.astype(dtype).astype(each.dtype) if name.startswith("W_") else each
        for name, each in weights.items()
    }


def _in_pairs(matrix: Float[Array, "gates panels rows columns"]) -> Array:
    """Two rows in one: each pair of bfloat16 numbers as a word of 32 bits, the first one low."""
    low, high = (
        jax.lax.bitcast_convert_type(matrix[..., first::2, :].astype(jnp.bfloat16), jnp.uint16)
        for first in (0, 1)
    )
    return low.astype(jnp.uint32) | (high.astype(jnp.uint32) << 16)


def _plain(
    h: Array, u: Array, weights: Weights, w: Array, layout: tuple[Array, ...]
) -> tuple[Array, Array]:
    """The same step in plain JAX."""
    del layout
    rows = h.reshape(-1, h.shape[-1]).astype(w.dtype)
    following = gru_reference("before", weights, rows, u)
    return following.astype(h.dtype).reshape(h.shape), following @ w


@jax.custom_jvp
def _step(
    h: Array, u: Array, weights: Weights, w: Array, layout: tuple[Array, ...]
) -> tuple[Array, Array]:
    @custom_vmap
    def call(h: Array, u: Array, weights: Weights, w: Array, layout: tuple) -> tuple[Array, Array]:
        del weights, w
        outputs = [shape_of(h), shape_of(u, len(u))]
        return tuple(native_call("update", outputs, h, u, *layout, in_place={0: 0}))

    @call.def_vmap
    def _(size: int, batched: list, *operands: Any) -> tuple[Any, Any]:
        return map_plain(_plain, size, batched, operands), (True, True)

    return call(h, u, weights, w, layout)


@_step.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    return _step(*primals), jax.jvp(_plain, primals, tangents)[1]
