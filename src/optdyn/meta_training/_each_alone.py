"""Optimizers that need the parameters of one problem as they are, inside a joint problem.

A component-wise optimizer takes the joint array of all problems' parameters for one long
list of components. Any other (one that clips by a norm, searches along a line, or treats
leaves unlike) must be given each problem's own pytree, as where it is run alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from optdyn.errors import UserError
from optdyn.inner_loop._evaluated import eval_params_of, with_eval_params, with_extra_args
from optdyn.inner_loop._unroll import gradients_for
from optdyn.tasks._base import Problem

Row = Float[Array, "1 n"]


def side_by_side(optimizer: Any, batch: Problem, parts: int) -> bool:
    """Whether ``optimizer`` can take a batch of problems as one array, spread in ``parts``.

    Raises `UserError` where it cannot, and components are to be spread.
    """
    of_one_type = len({leaf.dtype for leaf in jax.tree.leaves(batch.params)}) == 1
    if of_one_type and getattr(optimizer, "componentwise", False):
        return True
    if parts > 1:
        raise UserError(
            "components: devices can share a problem only with a component-wise optimizer and "
            "parameters of one type (leave --components out)"
        )
    return False


def on_own_pytree(
    tx: optax.GradientTransformation, unravel: Callable[[Float[Array, " n"]], PyTree]
) -> optax.GradientTransformation:
    """``tx`` for a joint problem of a single one, whose parameters [1, n] ``unravel`` takes apart.

    Its state has a leading axis of length 1. Parameters are rounded to the types of their own
    leaves after each step.
    """
    wide, evaluated = with_extra_args(tx), eval_params_of(tx)

    def tree_of(rows: Row) -> PyTree:
        return unravel(rows[0])

    def rows_of(tree: PyTree) -> Row:
        return ravel_pytree(tree)[0][None]

    def init(params: Row) -> PyTree:
        return jax.tree.map(_with_axis, tx.init(tree_of(params)))

    def update(
        g: Row,
        state: PyTree,
        params: Row,
        *,
        value: Array,
        value_fn: Callable[[Row], Array],
        **_: Any,
    ) -> tuple[Row, PyTree]:
        own = tree_of(params)
        gradients = gradients_for(own, tree_of(g))
        updates, following = wide.update(
            gradients,
            jax.tree.map(lambda leaf: leaf[0], state),
            own,
            value=value[0],
            grad=gradients,
            value_fn=lambda tree: value_fn(rows_of(tree))[0],
        )
        change = rows_of(updates)
        if len({leaf.dtype for leaf in jax.tree.leaves(own)}) > 1:
            change = rows_of(optax.apply_updates(own, updates)) - params
        return change, jax.tree.map(_with_axis, following)

    joint = optax.GradientTransformationExtraArgs(init, update)
    if evaluated is None:
        return joint

    def at(state: PyTree, params: Row) -> Row:
        return rows_of(evaluated(jax.tree.map(lambda leaf: leaf[0], state), tree_of(params)))

    return with_eval_params(joint, at)


def _with_axis(leaf: Any) -> Array:
    return jax.numpy.asarray(leaf)[None]
