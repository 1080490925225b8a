"""Keep one exploding problem from spoiling the others.

In a joint problem every problem owns a block of rows: row b of the parameters
[batch, n], rows b·n … (b+1)·n of the optimizer's state. Forward, a problem
whose gradient is not finite or beyond `GRADIENT_LIMIT` gives the optimizer a
zero gradient, and one whose next parameters are beyond `LIMIT` stays put.
Such a problem is frozen for good, as the same state meets the same gradient again.
Backward, a problem's cotangent that is not finite is replaced by zero and,
where a bound is set, scaled down to it. Every such event is counted.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, PyTree

LIMIT = 1e6
"""Parameters beyond this magnitude count as exploded."""

GRADIENT_LIMIT = 1e15
"""Gradients beyond this magnitude count as exploded."""

EXPLODED_RATIO = 1e4
"""A problem has exploded when its loss exceeds this multiple of its first value."""


class Contained(NamedTuple):
    """An optimizer's state and, for each problem, at how many steps it was contained.

    The columns of ``events``: gradients replaced, steps not taken.
    """

    events: Float[Array, "batch 2"]
    inner: PyTree


def contain_gradients(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """``tx`` given zero for the gradients [batch, n] of a problem with one beyond `GRADIENT_LIMIT`.

    A number that is not finite must not enter it, not even where its cotangent
    is zero, because 0·∞ is not 0.
    """

    def init(params: Float[Array, "batch n"]) -> Contained:
        return Contained(jnp.zeros((params.shape[0], 2), params.dtype), tx.init(params))

    def update(
        g: Float[Array, "batch n"], state: Contained, params: Float[Array, "batch n"] | None = None
    ) -> tuple[PyTree, Contained]:
        sane = jnp.all(jnp.abs(g) <= GRADIENT_LIMIT, axis=1)
        updates, inner = tx.update(jnp.where(sane[:, None], g, 0.0), state.inner, params)
        return updates, Contained(state.events.at[:, 0].add(~sane), inner)

    return optax.GradientTransformation(init, update)


def freeze_exploded(
    previous: tuple[PyTree, Contained], following: tuple[PyTree, Contained], batch: int
) -> tuple[PyTree, Contained]:
    """``following``, with the rows of exploded problems taken from ``previous``, counting them."""
    params, _ = following
    sane = jnp.all(jnp.abs(params) <= LIMIT, axis=tuple(range(1, params.ndim)))
    for leaf in jax.tree.leaves(following):
        sane &= _all_finite(_rows(leaf, batch))
    params, state = _choose(sane, following, previous)
    return params, state._replace(events=state.events.at[:, 1].add(~sane))


def _all_finite(rows: Float[Array, "batch n"]) -> Bool[Array, " batch"]:
    """Which rows are finite throughout, by a matrix product: XLA's reductions are slower."""
    weight = jnp.full((rows.shape[1],), jnp.finfo(rows.dtype).tiny, rows.dtype)
    return jnp.isfinite(rows @ weight)


@jax.custom_vjp
def _choose(chosen: Bool[Array, " batch"], left: PyTree, right: PyTree) -> PyTree:
    """Problem by problem ``left`` where ``chosen``, else ``right``.

    For its reverse pass it keeps ``chosen`` alone; `jnp.where` by itself would
    keep a mask of the state's size for every inner step.
    """
    batch = chosen.shape[0]
    return jax.tree.map(lambda a, b: _where(chosen, a, b, batch), left, right)


def _choose_forward(chosen: Array, left: PyTree, right: PyTree) -> tuple[PyTree, Array]:
    return _choose(chosen, left, right), chosen


def _choose_reverse(chosen: Array, cotangent: PyTree) -> tuple[None, PyTree, PyTree]:
    zeros = jax.tree.map(jnp.zeros_like, cotangent)
    return None, _choose(chosen, cotangent, zeros), _choose(chosen, zeros, cotangent)


_choose.defvjp(_choose_forward, _choose_reverse)


def exploded(losses: Float[Array, "steps batch"]) -> Bool[Array, " batch"]:
    """Which problems blew up: a loss not finite or above `EXPLODED_RATIO` × its first value."""
    limit = EXPLODED_RATIO * jnp.abs(losses[0])
    return ~jnp.all(jnp.isfinite(losses) & (losses <= limit[None]), axis=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def contain_cotangents(carry: PyTree, probe: Float[Array, " batch"], bound: float | None) -> PyTree:
    """The identity on ``carry``, whose reverse pass bounds each problem's cotangent.

    ``bound``: the largest norm of a problem's cotangent (over parameters and
    state together); None only replaces cotangents that are not finite. The
    gradient with respect to ``probe`` [batch] counts, for each problem, the
    steps at which anything was changed.
    """
    del probe, bound
    return carry


def _forward(carry: PyTree, probe: Array, bound: float | None) -> tuple[PyTree, int]:
    del bound
    return carry, probe.shape[0]


def _reverse(bound: float | None, batch: int, cotangent: PyTree) -> tuple[PyTree, Array]:
    leaves = jax.tree.leaves(cotangent)
    squared = sum(
        jnp.einsum("bi,bi->b", rows, rows) for rows in (_rows(leaf, batch) for leaf in leaves)
    )
    norm = jnp.sqrt(squared)
    finite = jnp.isfinite(norm)
    within = finite if bound is None else finite & (norm <= bound)
    if bound is None:
        contained = jax.tree.map(
            lambda leaf: _where(finite, leaf, jnp.zeros_like(leaf), batch), cotangent
        )
    else:
        factor = jnp.where(within, 1.0, bound / jnp.where(finite, norm, 1.0))
        contained = jax.tree.map(
            lambda leaf: _where(finite, _scale(factor, leaf, batch), jnp.zeros_like(leaf), batch),
            cotangent,
        )
    return contained, (~within).astype(norm.dtype)


contain_cotangents.defvjp(_forward, _reverse)


def _rows(leaf: Array, batch: int) -> Any:
    return leaf.reshape(batch, -1)


def _where(choose: Array, left: Array, right: Array, batch: int) -> Array:
    return jnp.where(choose[:, None], _rows(left, batch), _rows(right, batch)).reshape(left.shape)


def _scale(factor: Array, leaf: Array, batch: int) -> Array:
    return (factor[:, None] * _rows(leaf, batch)).reshape(leaf.shape)
