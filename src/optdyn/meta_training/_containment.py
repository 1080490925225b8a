"""Keep one exploding problem from spoiling the others.

In a joint problem every problem owns a block of rows: row b of the parameters
[batch, n], rows b·n … (b+1)·n of the optimizer's state. Forward, a problem
whose gradient is not finite or beyond `GRADIENT_LIMIT` gives the optimizer a
zero gradient, and one whose next parameters are beyond `LIMIT` stays where it is.
Backward, each entry of a problem's cotangent that is not finite is replaced by zero and,
where a bound is set, the whole is scaled down to it. Every such event is counted.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from optdyn.inner_loop._evaluated import eval_params_of, with_eval_params, with_extra_args

LIMIT = 1e6
"""Parameters beyond this magnitude count as exploded."""

GRADIENT_LIMIT = 1e15
"""Gradients beyond this magnitude count as exploded."""

Rows = Float[Array, "batch n"]


class Contained(NamedTuple):
    """An optimizer's state and, for each problem, at how many steps it was contained.

    ``sane``: whose gradients were let through at this step. The columns of
    ``events``: gradients replaced, steps not taken.
    """

    sane: Bool[Array, " batch"]
    events: Float[Array, "batch 2"]
    inner: PyTree


def contain_gradients(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """``tx`` given zero for the gradients [batch, n] of a problem with one beyond `GRADIENT_LIMIT`.

    A number that is not finite must not enter it, not even where its cotangent
    is zero, because 0·∞ is not 0.
    """

    def init(params: Rows) -> Contained:
        batch = params.shape[0]
        events = jnp.zeros((batch, 2), counting_dtype(params))
        return Contained(jnp.ones((batch,), bool), events, tx.init(params))

    wide = with_extra_args(tx)

    def update(
        g: Rows, state: Contained, params: Rows | None = None, **extra: Any
    ) -> tuple[PyTree, Contained]:
        sane = jnp.all(jnp.abs(g) <= _within(GRADIENT_LIMIT, g), axis=1)
        let_through = _choose(sane, g, jnp.zeros_like(g))
        updates, inner = wide.update(
            let_through, state.inner, params, **{**extra, "grad": let_through}
        )
        return updates, Contained(sane, state.events, inner)

    contained = optax.GradientTransformationExtraArgs(init, update)
    evaluated = eval_params_of(tx)
    if evaluated is None:
        return contained
    return with_eval_params(contained, lambda state, params: evaluated(state.inner, params))


def _within(limit: float, values: Array) -> float:
    """``limit``, or the largest number of a type that cannot hold it."""
    return min(limit, float(jnp.finfo(values.dtype).max))


def counting_dtype(params: PyTree) -> jnp.dtype:
    """A type in which the steps of any unroll can be counted."""
    return jnp.result_type(jnp.float32, *jax.tree.leaves(params))


def hold_exploded(
    previous: tuple[Rows, Contained], following: tuple[Rows, Contained]
) -> tuple[Rows, Contained]:
    """``following``, with the parameters of exploded problems taken from ``previous``; counts them.

    The optimizer's state goes on: it was given finite gradients alone.
    """
    params, state = following
    sane = jnp.all(jnp.abs(params) <= _within(LIMIT, params), axis=1)
    events = state.events + ~jnp.stack([state.sane, sane], axis=1)
    return _choose(sane, params, previous[0]), state._replace(events=events)


@jax.custom_vjp
def _choose(chosen: Bool[Array, " batch"], left: Rows, right: Rows) -> Rows:
    """Problem by problem ``left`` where ``chosen``, else ``right``.

    For its reverse pass it keeps ``chosen`` alone; `jnp.where` by itself would
    keep a mask of the parameters' size for every inner step.
    """
    return jnp.where(chosen[:, None], left, right)


def _choose_reverse(chosen: Array, cotangent: Array) -> tuple[None, Array, Array]:
    zeros = jnp.zeros_like(cotangent)
    return None, _choose(chosen, cotangent, zeros), _choose(chosen, zeros, cotangent)


_choose.defvjp(lambda chosen, left, right: (_choose(chosen, left, right), chosen), _choose_reverse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def contain_cotangents(
    carry: PyTree, probe: Float[Array, " batch"], bound: float | None, axis: str | None = None
) -> PyTree:
    """The identity on ``carry``, whose reverse pass bounds each problem's cotangent.

    Entries that are not finite become zero, so that they spoil no other component. ``bound``:
    the largest norm of what is left of a problem's cotangent (over parameters and
    state together); None for any. ``axis``: of the
    mesh, over which all of ``carry`` but its first leaf, the parameters, is spread. The
    gradient with respect to ``probe`` [batch] counts, for each problem, the
    steps at which anything was changed.
    """
    del probe, bound, axis
    return carry


def _forward(
    carry: PyTree, probe: Array, bound: float | None, axis: str | None
) -> tuple[PyTree, int]:
    del bound, axis
    return carry, probe.shape[0]


def _reverse(
    bound: float | None, axis: str | None, batch: int, cotangent: PyTree
) -> tuple[PyTree, Array]:
    leaves, treedef = jax.tree.flatten(cotangent)
    rows = [leaf.reshape(batch, -1) for leaf in leaves if leaf.dtype != jax.dtypes.float0]
    wide = [each.astype(jnp.promote_types(each.dtype, jnp.float32)) for each in rows]

    def total_of(each: list[Array]) -> Float[Array, " batch"]:
        # Where nothing is bounded, a plain sum tells of a number that is not finite just as well.
        terms = each if bound is None else [part**2 for part in each]
        # Sums as matrix products: XLA's own reductions are slower on a CPU.
        sums = [part @ jnp.ones((part.shape[1],), part.dtype) for part in terms]
        if axis is not None:
            sums[1:] = jax.lax.psum(sums[1:], axis)
        return functools.reduce(jnp.add, sums)

    total = total_of(wide)
    finite = jnp.isfinite(total)
    if bound is None:
        within, factor = finite, jnp.ones_like(total)
    else:
        # Entries are looked at one by one only where some problem has one to replace.
        remaining = jax.lax.cond(
            jnp.all(finite), lambda each: total, lambda each: total_of(_finite_only(each)), wide
        )
        norm = jnp.sqrt(remaining)
        within = finite & (norm <= bound)
        factor = jnp.where(norm <= bound, 1.0, bound / norm)

    def contain(leaf: Array) -> Array:
        if leaf.dtype == jax.dtypes.float0:
            return leaf
        scaled = (factor[:, None] * leaf.reshape(batch, -1)).astype(leaf.dtype)
        return jnp.where(jnp.isfinite(scaled), scaled, 0.0).reshape(leaf.shape)

    contained = jax.tree.unflatten(treedef, [contain(leaf) for leaf in leaves])
    return contained, (~within).astype(total.dtype)


def _finite_only(leaves: list[Array]) -> list[Array]:
    return [jnp.where(jnp.isfinite(leaf), leaf, 0.0) for leaf in leaves]


contain_cotangents.defvjp(_forward, _reverse)
