"""The exact meta-gradient: backpropagation through the whole unroll, problem by problem."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from optdyn.errors import UserError, first_line
from optdyn.inner_loop._unroll import unroll
from optdyn.meta_training._components import COMPONENT_AXIS, spread_components
from optdyn.meta_training._containment import (
    contain_cotangents,
    contain_gradients,
    counting_dtype,
    hold_exploded,
)
from optdyn.meta_training._each_alone import on_own_pytree, side_by_side
from optdyn.meta_training._memory import StepMemory, fit_to_budget
from optdyn.meta_training._second_order import with_hessian_products
from optdyn.meta_training._unroll_options import (
    Counts,
    Diagnostics,
    Estimator,
    Keys,
    MetaOptimizer,
    Setting,
    Tallies,
    UnrollOptions,
    reversible,
)
from optdyn.optimizers._state_precision import store_state_in
from optdyn.random_streams import keys_at, stream
from optdyn.tasks._base import Problem, Task, joint, unravel_one
from optdyn.tasks._gate import sample_batch

SIZE_STREAM = "problems traced for their size"


def _sums(
    optimizer: MetaOptimizer, keys: Keys, counts: Counts, setting: Setting
) -> tuple[Tallies, PyTree]:
    """Sums over problems: (meta-losses, problems counted, problems contained), gradient."""
    one_chunk = functools.partial(chunk_sums, optimizer, setting=setting)
    chunk = setting.options.chunk
    if chunk is None or chunk >= keys.shape[0]:
        counts_and_losses, gradient = one_chunk((keys, counts))
    else:
        chunks = jax.tree.map(lambda rows: rows.reshape(-1, chunk), (keys, counts))

        def add(total: PyTree, chunk: tuple[Array, Array | None]) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, one_chunk(chunk)), None

        first = jax.tree.map(lambda rows: rows[0], chunks)
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one_chunk, first)
        )
        counts_and_losses, gradient = jax.lax.scan(add, zeros, chunks)[0]
    if setting.parts > 1:
        gradient = jax.lax.psum(gradient, COMPONENT_AXIS)
    return counts_and_losses, gradient


def _finish(sums: PyTree, batch_size: int) -> tuple[Array, PyTree, Diagnostics]:
    counts_and_losses, gradient = sums
    value, diagnostics = judged(counts_and_losses, batch_size, 1.0)
    return value, jax.tree.map(lambda leaf: leaf / batch_size, gradient), diagnostics


EXACT = Estimator(_sums, _finish)
"""Backpropagation through the unroll. Its sums are of all the problems' gradients."""


def judged(
    counts_and_losses: Tallies, batch_size: int, exact_share: Array | float
) -> tuple[Array, Diagnostics]:
    """The value and the diagnostics of (meta-losses, problems counted, problems contained)."""
    total, counted, contained = counts_and_losses
    value = jnp.where(counted > 0, total / jnp.maximum(counted, 1), jnp.inf)
    return value, Diagnostics(
        exploded=(batch_size - counted).astype(jnp.int32),
        contained=contained.astype(jnp.int32),
        exact_share=jnp.asarray(exact_share, value.dtype),
    )


def chunk_sums(
    optimizer: MetaOptimizer, problems: tuple[Keys, Counts], setting: Setting
) -> tuple[Tallies, PyTree]:
    """The sums of `EXACT` over problems in memory at once, of these components alone."""
    keys, counts = problems
    objective, probe = _objective(optimizer, keys, counts, setting)
    try:
        (_, (total, counted, replaced)), (gradient, events) = jax.value_and_grad(
            objective, argnums=(0, 1), has_aux=True
        )(optimizer, probe)
    except ValueError as error:
        if "everse-mode" not in str(error):
            raise
        raise UserError(
            f"meta-gradient: the optimizer's update has no reverse pass ({first_line(error)}); "
            'gradient="es" needs none'
        ) from error
    contained = (events > 0) | (replaced > 0)
    if counts is not None:
        contained &= counts
    return (total, counted, jnp.sum(contained)), gradient


def _objective(
    optimizer: MetaOptimizer, keys: Keys, counts: Counts, setting: Setting
) -> tuple[Callable[..., Any], Float[Array, " batch"]]:
    """The sum of the problems' meta-losses, of (optimizer, probe), and the probe.

    The optimizer is of the kind of ``optimizer``. The auxiliary output is (the sum over
    problems that did not explode, their number, the steps at which each problem's gradient
    was replaced); for the probe see `contain_cotangents`.
    """
    options = setting.options
    run, probe = _runner(optimizer, keys, setting)

    def objective(opt: MetaOptimizer, probe: Array) -> tuple[Array, Tallies]:
        each, blown, replaced = run(store_state_in(options.state_dtype, reversible(opt)), probe)
        if counts is not None:
            blown, each = blown | ~counts, jnp.where(counts, each, 0.0)
        kept = jnp.where(blown, 0.0, each)
        differentiated = kept if options.max_cotangent_norm is None else each
        return jnp.sum(differentiated), (jnp.sum(kept), jnp.sum(~blown), replaced)

    return objective, probe


Outcomes = tuple["Float[Array, ' batch']", "Bool[Array, ' batch']", "Float[Array, ' batch']"]
"""Each problem's meta-loss, whether it blew up, and at how many steps its gradient was replaced."""


def _runner(
    optimizer: MetaOptimizer, keys: Keys, setting: Setting
) -> tuple[Callable[[optax.GradientTransformation, Array], Outcomes], Float[Array, " batch"]]:
    """Runs optimizers of ``optimizer``'s kind on all problems at once; the probe for that."""
    task, options, parts = setting
    batch = sample_batch(task, keys)
    probe = jnp.zeros(keys.shape, counting_dtype(batch.params))
    if side_by_side(optimizer, batch, parts):
        together = with_hessian_products(joint(batch))
        axis = COMPONENT_AXIS if parts > 1 else None

        def run(tx: optax.GradientTransformation, probe: Array) -> Outcomes:
            return _outcomes(spread_components(tx, parts), together, probe, options, axis)

        return run, probe
    unravel = unravel_one(batch)

    def run_apart(tx: optax.GradientTransformation, probe: Array) -> Outcomes:
        def alone(key: Key[Array, ""], its: Float[Array, ""]) -> Outcomes:
            problem = with_hessian_products(joint(sample_batch(task, key[None])))
            return _outcomes(on_own_pytree(tx, unravel), problem, its[None], options)

        return jax.tree.map(lambda rows: rows[:, 0], jax.vmap(alone)(keys, probe))

    return run_apart, probe


def _outcomes(
    tx: optax.GradientTransformation,
    problem: Problem,
    probe: Float[Array, " batch"],
    options: UnrollOptions,
    axis: str | None = None,
) -> Outcomes:
    """What became of each problem of a joint one."""

    def contain(previous: PyTree, following: PyTree) -> PyTree:
        params, state = hold_exploded(previous, following)
        params, inner = contain_cotangents(
            (params, state.inner), probe, options.max_cotangent_norm, axis
        )
        return params, state._replace(inner=inner)

    trajectory = unroll(
        contain_gradients(tx),
        problem,
        options.num_steps,
        between_steps=contain,
        segment=options.segment,
    )
    each = options.objective.meta_loss(trajectory.losses)
    replaced, held = trajectory.state.events.T
    blown = options.objective.exploded(trajectory.losses) | (held > 0) | ~jnp.isfinite(each)
    return each, blown, replaced


def fitted(
    optimizer: MetaOptimizer, task: Task, batch: int, options: UnrollOptions, budget: int
) -> UnrollOptions:
    """``options`` with the segment and chunk with which ``batch`` problems fit ``budget``."""
    segment, chunk = fit_to_budget(
        step_memory(optimizer, task, options),
        budget,
        num_steps=options.num_steps,
        batch=batch,
        segment=options.segment,
        chunk=options.chunk,
    )
    return dataclasses.replace(options, segment=segment, chunk=chunk)


def step_memory(optimizer: MetaOptimizer, task: Task, options: UnrollOptions) -> StepMemory:
    """What one problem keeps a step: the traced reverse pass of 3 steps less that of 2."""

    def kept(num_steps: int) -> int:
        plain = dataclasses.replace(options, num_steps=num_steps, segment=None)

        def reverse_pass(opt: MetaOptimizer) -> PyTree:
            keys = keys_at(stream(0, SIZE_STREAM), jnp.arange(1))
            objective, probe = _objective(optimizer, keys, None, Setting(task, plain))
            return jax.vjp(objective, opt, probe, has_aux=True)[1]

        return _bytes(jax.eval_shape(reverse_pass, optimizer))

    def carry(opt: MetaOptimizer) -> PyTree:
        params = task.sample(stream(0, SIZE_STREAM)).params
        return params, store_state_in(options.state_dtype, reversible(opt)).init(params)

    return StepMemory(kept=kept(3) - kept(2), carry=_bytes(jax.eval_shape(carry, optimizer)))


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
