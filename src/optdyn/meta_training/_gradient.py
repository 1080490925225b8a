"""The meta-gradient: an estimator's sums over problems, which several devices share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Key, PyTree

from optdyn.errors import UserError
from optdyn.meta_training._combined import COMBINED, FEWEST
from optdyn.meta_training._components import BATCH_AXIS, COMPONENT_AXIS
from optdyn.meta_training._evolution import EVOLUTION
from optdyn.meta_training._exact import EXACT, fitted
from optdyn.meta_training._unroll_options import (
    Diagnostics,
    Estimator,
    MetaOptimizer,
    Setting,
    UnrollOptions,
)
from optdyn.random_streams import keys_at
from optdyn.tasks._base import Task

ESTIMATORS: dict[str, Estimator] = {"exact": EXACT, "es": EVOLUTION, "combined": COMBINED}


def meta_value_and_grad(
    optimizer: MetaOptimizer,
    task: Task,
    key: Key[Array, ""],
    *,
    batch_size: int = 32,
    options: UnrollOptions = UnrollOptions(),
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], Any, Diagnostics]:
    """The meta-objective on ``batch_size`` fresh problems of ``task``, and its gradient.

    It is unrolled and kept in memory as ``options`` say. Problem i is drawn
    from ``fold_in(key, i)``, whatever the mesh or chunking.
    The value is the mean of `meta_loss` over the problems that did not explode
    (infinite when all did).
    The gradient has ``optimizer``'s structure, and is estimated as ``options.gradient`` says:

    - ``"exact"``: backpropagation through the unroll. Problems that exploded add
      nothing to it unless ``max_cotangent_norm`` bounds what they can add.
    - ``"es"``: the gradient of the smoothed meta-objective, whose value is returned too, by
      antithetic evolution strategies, from forward unrolls alone (`meta_training._evolution`).
    - ``"combined"``: both, each on problems of its own, by inverse variance
      (`meta_training._combined`).

    ``mesh``: of `make_mesh`, over whose axis ``"batch"`` the problems are spread; where
    they do not divide, some devices compute a problem more than others. A second axis
    shares the components of each problem (`spread_components`).

    Raises `UserError` when there are more devices than problems, those of one
    device do not divide into chunks, the combination is given one problem alone,
    no choice of chunk and segment keeps within the memory budget, or, outside of `jax.jit`,
    the gradient does not exist.
    """
    shape = {} if mesh is None else mesh.shape
    shards, parts = shape.get(BATCH_AXIS, 1), shape.get(COMPONENT_AXIS, 1)
    on_each = -(-batch_size // shards)
    if batch_size < shards or (options.chunk and on_each % options.chunk):
        raise UserError(
            f"batch size: {batch_size} is not allowed "
            f"(a multiple of {shards} devices x chunk {options.chunk or 1})"
        )
    if options.gradient == "combined" and batch_size < FEWEST:
        raise UserError(
            f"batch size: {batch_size} is not allowed with the gradient 'combined' (at least "
            f"{FEWEST}: it compares the problems' variances)"
        )
    if options.memory_budget is not None:
        options = fitted(optimizer, task, on_each, options, options.memory_budget // shards)
    index = jnp.arange(on_each * shards)
    counts = None if batch_size == index.size else index < batch_size
    estimator, setting = ESTIMATORS[options.gradient], Setting(task, options, parts)
    sums: Callable[..., Any] = functools.partial(estimator.sums, setting=setting)
    if mesh is not None:
        on_one_device = sums

        def on_all(opt: MetaOptimizer, *rows: Array | None) -> PyTree:
            return jax.lax.psum(on_one_device(opt, *rows), BATCH_AXIS)

        sums = jax.shard_map(
            on_all,
            mesh=mesh,
            in_specs=(P(), P(BATCH_AXIS), P(BATCH_AXIS)),
            out_specs=P(),
            check_vma=False,
        )
    found = estimator.finish(sums(optimizer, keys_at(key, index), counts), batch_size)
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(found)):
        require_gradient(found[1])
    return found


def require_gradient(tree: PyTree) -> None:
    """Raise `UserError` naming the first leaf of a meta-gradient that holds a NaN."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and bool(jnp.any(jnp.isnan(leaf))):
            raise UserError(
                f"meta-gradient: {jax.tree_util.keystr(path)} is not a number (the optimizer's "
                "update has no derivative where it was run, such as a square root at zero: for "
                "scale_by_adam and the like set eps_root > 0)"
            )
