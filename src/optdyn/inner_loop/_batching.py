"""Run many inner loops: some at once, the rest in turn, over one device or several."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from optdyn.inner_loop._unroll import optimizer_step, start_state
from optdyn.tasks._base import Problem

if TYPE_CHECKING:
    import optax
    from jaxtyping import PyTree

ELEMENTS_AT_ONCE = 2**20
"""Array elements that one inner step may touch: what stays near the CPU's caches."""


def runs_at_once(tx: optax.GradientTransformation, batch: Problem) -> int:
    """How many of a batch's inner loops to vectorise together, from the size of one step.

    Small problems are dominated by the cost of starting an operation, so
    thousands share it; a network's matrix products fill the cores by themselves
    and larger batches only leave the caches.
    """

    def one_step(batch: Problem) -> PyTree:
        problem = jax.tree.map(lambda leaf: leaf[0], batch)
        params = problem.params
        return optimizer_step(tx, problem.at_step(0), params, start_state(tx, params))

    operations = jax.make_jaxpr(one_step)(batch).jaxpr.eqns
    elements = sum(getattr(out.aval, "size", 1) for each in operations for out in each.outvars)
    return max(1, ELEMENTS_AT_ONCE // elements)


def map_runs(
    run: Callable[..., Any], arguments: tuple[PyTree, ...], at_once: int, mesh: Mesh | None = None
) -> PyTree:
    """``run(*row)`` for every row of ``arguments`` (arrays with one leading axis).

    ``at_once`` rows are vectorised together on each device of the one-axis
    ``mesh``, the others follow in turn; memory grows with ``at_once`` alone.
    """
    count = jax.tree.leaves(arguments)[0].shape[0]

    def on_one_device(rows: tuple[PyTree, ...]) -> PyTree:
        if at_once >= jax.tree.leaves(rows)[0].shape[0]:
            return jax.vmap(run)(*rows)
        return jax.lax.map(
            lambda row: run(*row), rows, batch_size=None if at_once == 1 else at_once
        )

    if mesh is None:
        return on_one_device(arguments)
    axis = P(mesh.axis_names[0])
    padded = -(-count // mesh.size) * mesh.size
    fill = jnp.minimum(jnp.arange(padded), count - 1)
    spread = jax.shard_map(
        on_one_device, mesh=mesh, in_specs=(axis,), out_specs=axis, check_vma=False
    )
    outputs = spread(jax.tree.map(lambda leaf: leaf[fill], arguments))
    return jax.tree.map(lambda leaf: leaf[:count], outputs)
