"""How each cause moves each effect of one step, component by component."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from optdyn.dynamics._released import released
from optdyn.inner_loop._evaluated import with_extra_args
from optdyn.random_streams import stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, PyTree

COMMON = 1e-3
"""A factor is common to all gradients where they are off by less than this part."""
SILENT = 1e-6
"""Gradients this small meet no clip."""
APART = 1e-4
"""Components answer one by one where others add less than this part of the largest answer."""
Rows = list[list[Any]]
"""How each cause (gradient, parameter, memories) moves each effect (Δx, memories): arrays [n]."""


def derivative_rows(
    tx: optax.GradientTransformation, params: PyTree, state: PyTree, along: PyTree | None = None
) -> Rows | None:
    """The answers of a step to each cause, component by component; it can be compiled.

    One product with the vector ``along`` (a tree like ``params``, by default of ones) for each
    cause, where the gradient is zero: there the derivative does not pass through second moments,
    they are held. None where the state holds arrays of other shapes than the parameters.
    """
    wrapped, passed = with_extra_args(tx), _passed_on(tx, params, state)
    memory, rest = _memory(params, state, passed)
    if memory is None:
        return None
    params, memory = _widened(params), _widened(memory)
    zeros = jax.tree.map(jnp.zeros_like, params)
    ones = jax.tree.map(jnp.ones_like, params) if along is None else along
    still = [jax.tree.map(jnp.zeros_like, part) for part in memory]

    def answer(g: PyTree, h: list[PyTree], x: PyTree) -> tuple[PyTree, list[PyTree]]:
        updates, after = wrapped.update(g, rest(h), x, value=0.0, grad=g)
        return updates, _memory(params, after, passed)[0] or []

    def moved(g: PyTree, h: list[PyTree], x: PyTree) -> list[Array]:
        update, parts = jax.jvp(released(answer), (zeros, memory, params), (g, h, x))[1]
        return [_flat(tree) for tree in (update, *parts)]

    causes = [(ones, still, zeros), (zeros, still, ones)]
    for k, part in enumerate(memory):
        one = jax.tree.map(lambda a, leaf: a.astype(leaf.dtype), ones, part)
        causes.append((zeros, [*still[:k], one, *still[k + 1 :]], zeros))
    return [moved(*each) for each in causes]


def leaves_alone(tx: optax.GradientTransformation, params: PyTree, state: PyTree) -> list[Array]:
    """Of each leaf, whether its components answer one by one; it can be compiled.

    Seen with memories drawn at random, and at small gradients: trust ratios and what treats a
    matrix as a whole (Muon) answer to each component by all of a leaf.
    """
    memory, rest = _memory(params, state, _passed_on(tx, params, state))
    if memory is None:
        return [jnp.zeros((), bool) for _ in jax.tree.leaves(params)]
    apart = max(APART, _rounding((params, state)))
    draws = iter(jax.random.split(stream(0, "components one by one"), 2 + len(memory)))
    along, at, *drawn = (_drawn(next(draws), tree) for tree in (params, params, *memory))
    ones, mixed = (derivative_rows(tx, at, rest(drawn), v) or [] for v in (None, along))
    factors, found = _flat(along), jnp.ones(_flat(along).shape, bool)
    for one, other in zip(jax.tree.leaves(ones), jax.tree.leaves(mixed), strict=True):
        size = jnp.maximum(jnp.max(jnp.abs(one)), jnp.finfo(one.dtype).tiny)
        found &= jnp.abs(one * factors - other) <= apart * size
    found &= _unmoved_by_others(with_extra_args(tx), at, rest(jax.tree.map(jnp.zeros_like, drawn)))
    stops = np.cumsum([np.size(leaf) for leaf in jax.tree.leaves(params)])
    return [jnp.all(part) for part in jnp.split(found, stops[:-1])]


def _unmoved_by_others(
    tx: optax.GradientTransformationExtraArgs, params: PyTree, state: PyTree
) -> Array:
    """Whether each update stays where every second gradient changes; all are too small to clip."""
    flat, unravel = ravel_pytree(_drawn(stream(0, "gradients of others"), params))
    every_second = jnp.arange(flat.size) % 2

    def updates(factors: Array) -> Array:
        g = unravel((SILENT * flat * factors).astype(flat.dtype))
        return _flat(tx.update(g, state, params, value=0.0, grad=g)[0])

    before, after = updates(jnp.ones(flat.size)), updates(1.0 + 2.0 * every_second)
    alike = jnp.abs(after - before) <= APART * jnp.abs(before)
    return alike | (every_second == 1)


def leaves_at_rest(tx: optax.GradientTransformation, params: PyTree, state: PyTree) -> list[Array]:
    """Of each leaf, whether no gradient would move it now; it can be compiled."""
    g = jax.tree.map(
        lambda d, x: d.astype(x.dtype),
        _drawn(stream(0, "gradients of leaves at rest"), params),
        params,
    )
    updates = with_extra_args(tx).update(g, state, params, value=0.0, grad=g)[0]
    return [jnp.all(leaf == 0.0) for leaf in jax.tree.leaves(updates)]


def _rounding(tree: PyTree) -> float:
    """Some roundings of the least precise numbers."""
    floats = filter(_is_float, jax.tree.leaves(tree))
    return 4.0 * max(float(jnp.finfo(jnp.result_type(leaf)).eps) for leaf in floats)


def _drawn(key: Array, like: PyTree) -> PyTree:
    """Numbers from 0.5 to 1.5."""
    leaves, structure = jax.tree.flatten(_widened(like))
    keys = jax.random.split(key, max(len(leaves), 1))
    pairs = zip(keys, leaves, strict=False)
    drawn = [jax.random.uniform(k, jnp.shape(leaf), leaf.dtype, 0.5, 1.5) for k, leaf in pairs]
    return jax.tree.unflatten(structure, drawn)


def compact(
    rows: Callable[[PyTree, PyTree], Rows | None],
) -> Callable[[PyTree, PyTree], Rows | None]:
    """``rows`` compiled; a row of equal numbers takes the memory of one."""
    ends = jax.jit(lambda *at: jax.tree.map(lambda row: (jnp.min(row), jnp.max(row)), rows(*at)))

    @functools.partial(jax.jit, static_argnums=0)
    def varying(chosen: tuple[int, ...], *at: PyTree) -> list[Array]:
        found = jax.tree.leaves(rows(*at))
        return [found[i] for i in chosen]

    def compacted(params: PyTree, state: PyTree) -> Rows | None:
        spans: Any = jax.device_get(ends(params, state))
        if spans is None:
            return None
        size = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))
        pairs = [pair for effects in spans for pair in effects]
        chosen = tuple(i for i, (low, high) in enumerate(pairs) if low != high)
        whole: list[Any] = [np.broadcast_to(low, size) for low, _ in pairs]
        for i, row in zip(chosen, varying(chosen, params, state), strict=True):
            whole[i] = row
        width = len(spans[0])
        return [whole[i : i + width] for i in range(0, len(whole), width)]

    return compacted


def common_factor(
    tx: optax.GradientTransformation, params: PyTree, state: PyTree, gradients: PyTree
) -> Array:
    """What all gradients are multiplied by before the optimizer remembers them.

    1, or less where a clip by the norm of all of them acts; NaN where they are not all
    multiplied by the same number. It is read from the memories, which take the gradient in
    linearly or squared (from the update itself where there is none), beside what they would
    take in without a clip, by derivatives at a gradient of zero.
    """
    wrapped = with_extra_args(tx)
    common = max(COMMON, _rounding((params, state)))
    params, gradients = _widened(params), _widened(gradients)
    passed = _passed_on(tx, params, state)
    memory, rest = _memory(params, state, passed)
    state = state if memory is None else rest(_widened(memory))

    def effects(part: Array) -> list[Array]:
        g = jax.tree.map(lambda leaf: (part * leaf).astype(leaf.dtype), gradients)
        updates, after = wrapped.update(g, state, params, value=0.0, grad=g)
        memory = _memory(params, after, passed)[0] or []
        return [_flat(tree).astype(jnp.float32) for tree in (memory or [updates])]

    def first(part: Array) -> list[Array]:
        return jax.jvp(effects, (part,), (jnp.ones(()),))[1]

    none, whole = jnp.zeros(()), jnp.ones(())
    slopes, bends = jax.jvp(first, (none,), (whole,))
    grown = [a - b for a, b in zip(effects(whole), effects(none), strict=True)]
    found = jnp.full((), jnp.nan)
    for power, terms in ((2, [bend / 2 for bend in bends]), (1, slopes)):
        for term, change in zip(terms, grown, strict=True):
            size = jnp.vdot(term, term)
            factor = jnp.vdot(term, change) / size
            off = jnp.linalg.norm(change - factor * term) / jnp.linalg.norm(change)
            value = jnp.where(off < common, jnp.maximum(factor, 0.0) ** (1 / power), jnp.nan)
            found = jnp.where(size > 0, value, found)
    return found


def _passed_on(tx: optax.GradientTransformation, params: PyTree, state: PyTree) -> frozenset[int]:
    """Which arrays of ``state`` (their ids) an update hands on as they are: they are constants."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    after = with_extra_args(tx).update(zeros, state, params, value=0.0, grad=zeros)[1]
    before, following = (set(map(id, jax.tree.leaves(tree))) for tree in (state, after))
    return frozenset(before & following)


def _memory(
    params: PyTree, state: PyTree, passed: frozenset[int] = frozenset()
) -> tuple[list[PyTree] | None, Any]:
    """The parts of ``state`` shaped like the parameters, and how to put others in.

    None where there are arrays of other shapes, but for those that are ``passed`` on. A part
    may lack leaves that a mask or a partition gives to another optimizer: zeros stand for them.
    """
    leaves = jax.tree.leaves(params)
    structure: Any = jax.tree.structure(params)

    def is_like_params(tree: Any) -> bool:
        if jax.tree.structure(tree, is_leaf=_is_masked) != structure:
            return False
        parts = jax.tree.leaves(tree, is_leaf=_is_masked)
        pairs = zip(parts, leaves, strict=True)
        fits = all(
            _is_masked(part) or (np.shape(part) == np.shape(leaf) and _is_float(part))
            for part, leaf in pairs
        )
        return fits and not all(map(_is_masked, parts))

    nodes = jax.tree.leaves(state, is_leaf=is_like_params)
    whole: Any = jax.tree.structure(state, is_leaf=is_like_params)
    own = [i for i, node in enumerate(nodes) if is_like_params(node)]
    others = [leaf for i, leaf in enumerate(nodes) if i not in own]
    if any(np.ndim(leaf) and id(leaf) not in passed for leaf in others if hasattr(leaf, "dtype")):
        return None, None  # arrays of other shapes: not a memory component by component

    def put(parts: list[PyTree]) -> PyTree:
        filled = list(nodes)
        for i, part in zip(own, parts, strict=True):
            filled[i] = jax.tree.map(
                lambda old, new: old if _is_masked(old) else new,
                filled[i],
                part,
                is_leaf=_is_masked,
            )
        return whole.unflatten(filled)

    def filled_in(node: PyTree) -> PyTree:
        return jax.tree.map(
            lambda part, leaf: jnp.zeros_like(leaf) if _is_masked(part) else part,
            node,
            params,
            is_leaf=_is_masked,
        )

    return [filled_in(nodes[i]) for i in own], put


def _widened(tree: PyTree) -> PyTree:
    """Floats of at least 32 bits: rounding to fewer would be taken for the optimizer's answer."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


def _flat(tree: PyTree) -> Array:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])
