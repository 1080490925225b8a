"""Which component of which training an analysis is about."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from optdyn.errors import UserError, finite_number, first_line, shown

LEAVES_LISTED = 12


class Place(TypedDict, total=False):
    """One component of one training: the keywords that every analysis of an optimizer takes.

    ``params``: the tree of parameters (any pytree); by default one array of shape (1,).
    ``leaf``: the leaf of it, as a path with dots (``"layers.0.w"``) or as
    `jax.tree_util.keystr` writes it; not needed where there is one leaf alone. ``index``: the
    component within that leaf, by default the first. ``state``: the optimizer's state of that
    training, by default what ``tx.init(params)`` gives. ``gradient``: one number for every
    component, or a tree like ``params``; by default 0. ``count``: sets every counter of the
    state, and with it schedules and bias corrections. The memory stays as it is; `dissect` and
    `param_groups` take that of so many steps.
    """

    params: PyTree
    leaf: str | None
    index: int | tuple[int, ...] | None
    state: PyTree
    gradient: PyTree
    count: int | None


PLACE = frozenset(Place.__annotations__)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Surroundings:
    """One component among all others: ``params`` and ``gradients`` of the whole tree.

    The component is entry ``index`` of the raveled leaf at position ``leaf`` of the flattened
    tree. Call the methods inside `optdyn.precision.double_precision`.
    """

    params: PyTree
    gradients: PyTree
    index: Int[Array, ""] | Int[np.ndarray, ""]
    leaf: int = dataclasses.field(metadata={"static": True})

    @property
    def own_gradient(self) -> float:
        """The component's own gradient."""
        return float(self.of(self.gradients))

    @property
    def own_param(self) -> float:
        """The component's own value."""
        return float(self.of(self.params))

    def of(self, tree: PyTree) -> Float[Array, ""]:
        """The component's entry of a tree like the parameters."""
        return jnp.ravel(jnp.asarray(jax.tree.leaves(tree)[self.leaf]))[self.index]

    def put(self, tree: PyTree, value: Float[Array, ""] | float) -> PyTree:
        """The tree with the component's entry set to ``value``."""
        own = jax.tree.leaves(tree)[self.leaf]
        flat = jnp.ravel(own).at[self.index].set(jnp.asarray(value).astype(own.dtype))
        return with_leaves(tree, {self.leaf: flat.reshape(own.shape)})


def surroundings(place: Place) -> Surroundings:
    """The component that ``place`` names, everything in float64 (inside `double_precision`).

    Raises `UserError` for an unknown leaf (with the list of leaves), a leaf of other than real
    numbers, an index that does not fit, and gradients of another tree.
    """
    params = place.get("params")
    if params is None:
        for name in ("leaf", "index"):
            if place.get(name) is not None:
                raise UserError(f"{name}: needs params= (the tree of parameters that it is in)")
        params = jnp.zeros((1,), jnp.float64)
    wide = jax.tree.map(_widened, params)
    leaf = find_leaf(wide, place.get("leaf"))
    shape = jnp.shape(jax.tree.leaves(wide)[leaf])
    index = _flat_index(place.get("index"), shape, leaf_names(wide)[leaf])
    gradients = gradient_tree(place.get("gradient"), wide)
    return Surroundings(wide, gradients, np.asarray(index, np.int64), leaf)


def with_leaves(tree: PyTree, new: Mapping[int, Any]) -> PyTree:
    """``tree`` with the leaves at some positions replaced."""
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, [new.get(i, leaf) for i, leaf in enumerate(leaves)])


def leaf_names(params: PyTree) -> list[str]:
    """The path of each leaf, in the order of ``jax.tree.leaves``.

    With dots; where two leaves would have one name so, as `jax.tree_util.keystr` writes it.
    """
    dotted, written = _paths(params)
    times = collections.Counter(dotted)
    return [a if times[a] == 1 else b for a, b in zip(dotted, written, strict=True)]


def _paths(params: PyTree) -> tuple[list[str], list[str]]:
    """The path of each leaf, with dots and as `jax.tree_util.keystr` writes it."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    keystr = jax.tree_util.keystr
    dotted = [keystr(path, simple=True, separator=".") or "params" for path in paths]
    return dotted, [keystr(path) for path in paths]


def find_leaf(params: PyTree, leaf: str | None) -> int:
    """The position of the leaf called ``leaf``. Raises `UserError` as `surroundings` says."""
    names = leaf_names(params)
    if not names:
        raise UserError("params: no leaves (allowed: a tree with at least one array)")
    listed = ", ".join(names[:LEAVES_LISTED]) + (", …" if len(names) > LEAVES_LISTED else "")
    if leaf is None and len(names) > 1:
        raise UserError(f"leaf: not given (allowed: {listed})")
    dotted, written = _paths(params)
    found = [0] if leaf is None else []
    for called in (names, written, dotted):
        found = found or [i for i, name in enumerate(called) if name == leaf]
    if not found:
        raise UserError(f"leaf: {shown(leaf)} is not in params (allowed: {listed})")
    if len(found) > 1:
        raise UserError(
            f"leaf: {shown(leaf)} is the name of {len(found)} leaves (allowed: "
            f"{', '.join(names[i] for i in found)})"
        )
    own = jax.tree.leaves(params)[found[0]]
    if not jnp.issubdtype(jnp.result_type(own), jnp.floating) or np.size(own) == 0:
        raise UserError(
            f"leaf: {names[found[0]]} is {jnp.result_type(own)} of shape {np.shape(own)} "
            "(allowed: a leaf of real floating-point numbers, with at least one)"
        )
    return found[0]


def _widened(leaf: Any) -> Any:
    try:
        array = jnp.asarray(leaf)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"params: {shown(leaf)} is no array: {first_line(error)} (allowed: arrays; leave "
            "functions and names out of the tree)"
        ) from error
    return array.astype(jnp.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _flat_index(index: Any, shape: tuple[int, ...], name: str) -> int:
    if index is None:
        return 0
    try:
        one = tuple(int(i) for i in (index if np.iterable(index) else (index,)))
        if len(one) == len(shape) and all(0 <= i < n for i, n in zip(one, shape, strict=True)):
            return int(np.ravel_multi_index(one, shape)) if shape else 0
    except (TypeError, ValueError):
        pass
    raise UserError(f"index: {shown(index)} is not in {name} (allowed: below its shape {shape})")


def gradient_tree(gradient: Any, params: PyTree) -> PyTree:
    """``gradient``, a number or a tree, as a tree like ``params``. Raises `UserError`."""
    if gradient is None:
        gradient = 0.0
    structures: list[Any] = [jax.tree.structure(tree) for tree in (gradient, params)]
    if structures[0] == structures[1]:
        fits = all(
            np.shape(g) == np.shape(p)
            for g, p in zip(jax.tree.leaves(gradient), jax.tree.leaves(params), strict=True)
        )
        if fits:
            return jax.tree.map(lambda g, p: jnp.asarray(g).astype(p.dtype), gradient, params)
    if not jax.tree_util.all_leaves([gradient]) or np.ndim(gradient):
        counts = [
            sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree))
            for tree in (gradient, params)
        ]
        raise UserError(
            f"gradient: a tree of {counts[0]} components for parameters of {counts[1]} is not "
            "allowed (a finite number, or a tree like params)"
        )
    number = finite_number("gradient", gradient)
    return jax.tree.map(lambda p: jnp.full_like(p, number), params)
