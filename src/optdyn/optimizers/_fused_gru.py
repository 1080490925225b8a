"""The GRU step and its readout as one native call, and their reverse pass as another.

Equivalent to `gru_kernel.gru_step` (``reset="before"``) followed by ``h' @ w``. The
native code works on a few rows at a time, so that what a step computes on the way
stays in the processor's cache. For a batch inside `jax.vmap` the plain step is used.
JAX allows either a reverse pass of our own or forward-mode differentiation, not both:
`bind` offers the two.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

from optdyn.optimizers._gru_kernel import GATES, Weights, gru_reference, gru_step
from optdyn.optimizers.native.build import targets

StepAndReadout = Callable[[Array, Array], tuple[Array, Array]]

SMALLEST_UNITS = 16
SMALLEST_ROWS = 8
"""With fewer units or components a call is not worth its while."""
PANEL_BYTES = 128
"""Columns of a matrix that the native code works on together, in bytes."""
KEPT_BYTES = 2**20
"""A step's state and gates are kept up to this size; beyond it, its state alone, from
which the reverse pass computes the gates again."""


def usable(units: int, dtype: Any) -> bool:
    """Whether there is native code for this size and type here (it is built when asked first)."""
    if units < SMALLEST_UNITS or jnp.dtype(dtype).name not in ("float32", "float64"):
        return False
    return jax.default_backend() == "cpu" and targets() is not None


def bind(
    weights: Weights, w: Float[Array, " units"], *, reverse_only: bool = False
) -> StepAndReadout:
    """``step(h, u) -> (h', h' @ w)`` for these meta-parameters.

    It can be differentiated in any way and to any order. ``reverse_only``: in reverse mode
    alone, once, and much faster.

    They are brought into the native code's layout here, once for all the steps
    of an unroll. h is [N, units], u is [N, inputs]; the readout has shape [N].
    """
    units = w.shape[0]
    panel = PANEL_BYTES // w.dtype.itemsize
    extra = -units % panel
    gates = [
        jnp.concatenate([weights[f"W_{g}"], weights[f"V_{g}"], weights[f"b_{g}"][None]])
        for g in GATES
    ]
    forward = jnp.stack([panels(jnp.pad(gate, ((0, 0), (0, extra))), panel) for gate in gates])
    padded = jnp.pad(w, (0, extra))
    if not reverse_only:
        return lambda h, u: _step_any_mode(h, u, forward, padded)
    transposed = [jnp.pad(weights[f"W_{g}"].T, ((0, extra), (0, extra))) for g in GATES]
    reverse = jax.lax.stop_gradient(jnp.stack([panels(each, panel) for each in transposed]))
    return lambda h, u: _step(h, u, forward, padded, reverse)


def panels(matrix: Array, panel: int) -> Array:
    """[rows, columns] to [columns / panel, rows, panel]."""
    return matrix.reshape(matrix.shape[0], -1, panel).transpose(1, 0, 2)


def _unpack(forward: Array, w: Array, units: int) -> tuple[Weights, Array]:
    """What `bind` was given, from its layout."""
    weights: Weights = {}
    for gate, panels in zip(GATES, forward, strict=True):
        matrix = panels.transpose(1, 0, 2).reshape(panels.shape[1], -1)[:, :units]
        weights |= {
            f"W_{gate}": matrix[:units],
            f"V_{gate}": matrix[units:-1],
            f"b_{gate}": matrix[-1],
        }
    return weights, w[:units]


def _plain(
    h: Array, u: Array, forward: Array, w: Array, gru: Callable[..., Array] = gru_reference
) -> tuple[Array, Array]:
    """The same step in plain JAX; with `gru_step`, with its reverse pass."""
    weights, readout = _unpack(forward, w, h.shape[-1])
    following = gru("before", weights, h, u)
    return following, following @ readout


def _threads() -> int:
    """Threads a call may use: the cores, shared among JAX's devices."""
    return max(1, len(os.sched_getaffinity(0)) // jax.local_device_count())


def native_call(
    name: str,
    outputs: list[jax.ShapeDtypeStruct],
    *operands: Array,
    in_place: dict[int, int] | None = None,
) -> Any:
    names = targets()
    assert names is not None
    target = names[f"{name}_{operands[0].dtype.name}"]
    call = jax.ffi.ffi_call(target, outputs, input_output_aliases=in_place)
    return call(*operands, threads=_threads())


def shape_of(like: Array, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape or like.shape, like.dtype)


def _forward_call(
    kept_columns: int, h: Array, u: Array, forward: Array, w: Array
) -> tuple[Array, Array, Array]:
    """(h', readout, what is kept for the reverse pass [N, ``kept_columns``])."""
    rows = len(h)

    @custom_vmap
    def call(h: Array, u: Array, forward: Array, w: Array) -> tuple[Array, ...]:
        outputs = [shape_of(h), shape_of(h, rows), shape_of(h, rows, kept_columns)]
        return tuple(native_call("forward", outputs, h, u, forward, w, in_place={0: 0}))

    @call.def_vmap
    def _(size: int, batched: list[bool], *operands: Array) -> tuple[Any, Any]:
        following, y = map_plain(_plain, size, batched, operands)
        # The plain reverse pass needs h alone.
        h = operands[0] if batched[0] else jnp.broadcast_to(operands[0], (size, *operands[0].shape))
        kept = jnp.pad(h, ((0, 0), (0, 0), (0, max(0, kept_columns - h.shape[-1]))))
        return (following, y, kept[..., :kept_columns]), (True, True, True)

    return call(h, u, forward, w)


def _reverse_call(
    dh_next: Array, dy: Array, kept: Array, u: Array, forward: Array, reverse: Array, w: Array
) -> tuple[Array, Array, Array, Array]:
    """Cotangents of h, u, ``forward`` and w."""

    @custom_vmap
    def call(*operands: Array) -> tuple[Array, ...]:
        dh_next, _, _, u, forward, _, w = operands
        outputs = [shape_of(like) for like in (dh_next, u, forward, w)]
        return tuple(native_call("reverse", outputs, *operands))

    @call.def_vmap
    def _(size: int, batched: list[bool], *operands: Array) -> tuple[Any, Any]:
        return map_plain(_plain_reverse, size, batched, operands), (True,) * 4

    return call(dh_next, dy, kept, u, forward, reverse, w)


def _plain_reverse(
    dh_next: Array, dy: Array, kept: Array, u: Array, forward: Array, _: Array, w: Array
) -> tuple[Array, Array, Array, Array]:
    h, step = kept[:, : dh_next.shape[1]], functools.partial(_plain, gru=gru_step)
    return jax.vjp(step, h, u, forward, w)[1]((dh_next, dy))


def map_plain(function: Callable, size: int, batched: list, operands: tuple) -> Any:
    axes = jax.tree.map(lambda each: 0 if each else None, batched)
    return jax.vmap(function, in_axes=axes, axis_size=size)(*operands)


@jax.custom_jvp
def _step_any_mode(h: Array, u: Array, forward: Array, w: Array) -> tuple[Array, Array]:
    return _forward_call(0, h, u, forward, w)[:2]


@_step_any_mode.defjvp
def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Any, Any]:
    return _step_any_mode(*primals), jax.jvp(_plain, primals, tangents)[1]


@jax.custom_vjp
def _step(h: Array, u: Array, forward: Array, w: Array, reverse: Array) -> tuple[Array, Array]:
    del reverse
    return _forward_call(0, h, u, forward, w)[:2]


def _step_forward(
    h: Array, u: Array, forward: Array, w: Array, reverse: Array
) -> tuple[tuple[Array, Array], tuple]:
    with_gates = (1 + len(GATES)) * h.shape[1]
    all_bytes = len(h) * with_gates * h.dtype.itemsize
    columns = with_gates if all_bytes <= KEPT_BYTES else h.shape[1]
    following, y, kept = _forward_call(columns, h, u, forward, w)
    return (following, y), (kept, u, forward, reverse, w)


def _step_reverse(residuals: tuple, cotangents: tuple[Array, Array]) -> tuple:
    return *_reverse_call(*cotangents, *residuals), None


_step.defvjp(_step_forward, _step_reverse)
