"""An exported step as an optax pair."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optdyn.errors import UserError
from optdyn.torch._aten import Moved, plain
from optdyn.torch._own_step import OwnStep, export_step, first_state

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree


def exported_pair(
    own: OwnStep, clock: Sequence[dict[str, np.ndarray]] | None = None
) -> optax.GradientTransformation:
    """The step ``own`` as an optax pair; its state is a dictionary for each parameter.

    ``clock``: for each parameter, in the order of ``jax.tree.leaves``, entries of its state
    that stay at these values and are no part of the pair's state.
    """
    first = functools.cache(functools.partial(first_state, own))
    program = functools.cache(functools.partial(export_step, own))

    def held(i: int) -> dict[str, np.ndarray]:
        return {} if clock is None else clock[i]

    def init(params: PyTree) -> PyTree:
        leaves, treedef = jax.tree.flatten(params)
        states = [
            {
                name: jnp.asarray(array, jnp.result_type(leaf))
                for name, array in state.items()
                if name not in held(i)
            }
            for i, (state, leaf) in enumerate(
                zip(first(_shapes(leaves)).numbers, leaves, strict=True)
            )
        ]
        return jax.tree.unflatten(treedef, states)

    def update(
        gradients: PyTree, state: PyTree, params: PyTree | None = None
    ) -> tuple[PyTree, PyTree]:
        if params is None:
            raise UserError(f"{own.name}: update needs the parameters: update(g, state, params)")
        leaves = jax.tree.leaves(params)
        treedef: Any = jax.tree.structure(params)
        shapes = _shapes(leaves)
        states = treedef.flatten_up_to(state)
        places = [(i, name) for i, numbers in enumerate(first(shapes).numbers) for name in numbers]
        before = [held(i)[name] if name in held(i) else states[i][name] for i, name in places]
        start = [Moved(leaf, np.zeros(())) for leaf in leaves]
        after = program(shapes)([*start, *treedef.flatten_up_to(gradients), *before])
        updates = [
            _like(new.by if isinstance(new, Moved) else new - old, old)
            for new, old in zip(after[: len(leaves)], leaves, strict=True)
        ]
        following: list[dict[str, Array]] = [{} for _ in leaves]
        for (i, name), new in zip(places, after[len(leaves) :], strict=True):
            if name not in held(i):
                following[i][name] = _like(plain(new), states[i][name])
        return jax.tree.unflatten(treedef, updates), jax.tree.unflatten(treedef, following)

    return optax.GradientTransformation(init, update)


def _like(new: Any, old: Any) -> Array:
    """``new`` in the dtype and shape of ``old``."""
    return jnp.broadcast_to(jnp.asarray(new, jnp.result_type(old)), np.shape(old))


def _shapes(leaves: list[Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(np.shape(leaf) for leaf in leaves)
