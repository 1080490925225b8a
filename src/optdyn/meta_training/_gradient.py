"""The meta-gradient: backpropagation through the whole unroll, problem by problem."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from optdyn.errors import UserError, require_choice, require_number, require_positive_int
from optdyn.inner_loop._objective import Objective, exploded
from optdyn.inner_loop._unroll import unroll
from optdyn.meta_training._components import BATCH_AXIS, COMPONENT_AXIS, spread_components
from optdyn.meta_training._containment import (
    contain_cotangents,
    contain_gradients,
    hold_exploded,
)
from optdyn.meta_training._memory import StepMemory, fit_to_budget
from optdyn.meta_training._second_order import with_hessian_products
from optdyn.optimizers._state_precision import STATE_DTYPES, store_state_in
from optdyn.random_streams import keys_at, stream
from optdyn.tasks._base import Task, joint, sample_batch

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key, PyTree

LARGEST_MEMORY = 2**63 - 1
SIZE_STREAM = "problems traced for their size"


class MetaOptimizer(Protocol):
    """A pytree of meta-parameters that gives a component-wise optimizer.

    ``as_optax`` may take ``reverse_only=True``, to give an update with a faster reverse
    pass that forward mode cannot differentiate.
    """

    def as_optax(self) -> optax.GradientTransformation: ...


def reversible(optimizer: MetaOptimizer) -> optax.GradientTransformation:
    """``optimizer`` as an optax pair, with the fastest reverse pass that it offers."""
    if "reverse_only" in inspect.signature(optimizer.as_optax).parameters:
        return optimizer.as_optax(reverse_only=True)  # type: ignore[call-arg]
    return optimizer.as_optax()


@dataclasses.dataclass(frozen=True)
class UnrollOptions:
    """How one meta-gradient is computed; the defaults give the paper's, exactly.

    ``max_cotangent_norm`` bounds the norm of each problem's back-propagated
    cotangent at every inner step: a departure from the exact meta-gradient for
    tasks where that explodes (None: exact). ``segment``: see `unroll`.
    ``chunk``: problems held in memory at once on each device, the rest being
    accumulated (None: all). ``memory_budget``: bytes that all devices together may
    need for what the reverse pass keeps; ``segment`` and ``chunk``, where they are
    None, are then chosen by `memory.fit_to_budget` (None: no limit). ``state_dtype``:
    see `store_state_in`.

    Raises `UserError` for a number or a name that is not allowed.
    """

    num_steps: int = 200
    normalization: str = "none"
    max_cotangent_norm: float | None = None
    segment: int | None = None
    chunk: int | None = None
    memory_budget: int | None = None
    state_dtype: str = "float32"

    def __post_init__(self) -> None:
        _ = self.objective
        require_choice("state_dtype", self.state_dtype, list(STATE_DTYPES))
        if self.max_cotangent_norm is not None:
            require_number("max_cotangent_norm", self.max_cotangent_norm)
        for name in ("segment", "chunk"):
            if getattr(self, name) is not None:
                require_positive_int(name, getattr(self, name))
        if self.memory_budget is not None:
            require_positive_int("memory_budget", self.memory_budget, maximum=LARGEST_MEMORY)

    @property
    def objective(self) -> Objective:
        """What each unroll is judged by."""
        return Objective(self.num_steps, self.normalization)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Diagnostics:
    """Counts over the batch of one meta-gradient."""

    exploded: Int[Array, ""]
    """Problems whose loss blew up, or which were held; they are left out of ``value``."""
    contained: Int[Array, ""]
    """Problems with a gradient replaced forward or a cotangent changed in the reverse pass."""


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
    The gradient has ``optimizer``'s structure; problems that exploded add
    nothing to it unless ``max_cotangent_norm`` bounds what they can add.
    ``mesh``: of `make_mesh`, over whose axis ``"batch"`` the problems are spread; where
    they do not divide, some devices compute a problem more than others. A second axis
    shares the components of each problem (`spread_components`).

    Raises `UserError` when there are more devices than problems, those of one
    device do not divide into chunks, or no choice of chunk and segment keeps
    within the memory budget.
    """
    shape = {} if mesh is None else mesh.shape
    shards, parts = shape.get(BATCH_AXIS, 1), shape.get(COMPONENT_AXIS, 1)
    on_each = -(-batch_size // shards)
    if batch_size < shards or (options.chunk and on_each % options.chunk):
        raise UserError(
            f"batch size: {batch_size} is not allowed "
            f"(a multiple of {shards} devices x chunk {options.chunk or 1})"
        )
    if options.memory_budget is not None:
        budget = options.memory_budget // shards
        options = _fitted(optimizer, task, on_each, options, budget)
    index = jnp.arange(on_each * shards)
    keys = keys_at(key, index)
    counts = None if batch_size == index.size else index < batch_size
    sums: Callable[..., Any] = functools.partial(_sums, task=task, options=options, parts=parts)
    if mesh is not None:
        on_one_device = sums

        def on_all(opt: MetaOptimizer, *rows: Array | None) -> PyTree:
            counts_and_losses, gradient = on_one_device(opt, *rows)
            return (
                jax.lax.psum(counts_and_losses, BATCH_AXIS),
                jax.lax.psum(gradient, mesh.axis_names),
            )

        sums = jax.shard_map(
            on_all,
            mesh=mesh,
            in_specs=(P(), P(BATCH_AXIS), P(BATCH_AXIS)),
            out_specs=P(),
            check_vma=False,
        )
    (total, counted, contained), gradient = sums(optimizer, keys, counts)
    value = jnp.where(counted > 0, total / jnp.maximum(counted, 1), jnp.inf)
    gradient = jax.tree.map(lambda leaf: leaf / batch_size, gradient)
    diagnostics = Diagnostics(
        exploded=(batch_size - counted).astype(jnp.int32), contained=contained.astype(jnp.int32)
    )
    return value, gradient, diagnostics


def _fitted(
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
            objective, probe = _objective(
                keys_at(stream(0, SIZE_STREAM), jnp.arange(1)), None, task, plain
            )
            return jax.vjp(objective, opt, probe, has_aux=True)[1]

        return _bytes(jax.eval_shape(reverse_pass, optimizer))

    def carry(opt: MetaOptimizer) -> PyTree:
        params = task.sample(stream(0, SIZE_STREAM)).params
        return params, store_state_in(options.state_dtype, reversible(opt)).init(params)

    return StepMemory(kept=kept(3) - kept(2), carry=_bytes(jax.eval_shape(carry, optimizer)))


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _sums(
    optimizer: MetaOptimizer,
    keys: Key[Array, " batch"],
    counts: Bool[Array, " batch"] | None,
    *,
    task: Task,
    options: UnrollOptions,
    parts: int,
) -> tuple[tuple[Array, Array, Array], PyTree]:
    """Sums over problems: (meta-losses, problems counted, problems contained), gradient.

    ``counts``: which problems are of the batch, the others filling it up (None: all).
    ``parts``: in how many the components are spread.
    """
    one_chunk = functools.partial(_chunk_sums, optimizer, task=task, options=options, parts=parts)
    if options.chunk is None or options.chunk >= keys.shape[0]:
        return one_chunk((keys, counts))
    chunks = jax.tree.map(lambda rows: rows.reshape(-1, options.chunk), (keys, counts))

    def add(total: PyTree, chunk: tuple[Array, Array | None]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, one_chunk(chunk)), None

    first = jax.tree.map(lambda rows: rows[0], chunks)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one_chunk, first)
    )
    return jax.lax.scan(add, zeros, chunks)[0]


def _chunk_sums(
    optimizer: MetaOptimizer,
    problems: tuple[Key[Array, " batch"], Bool[Array, " batch"] | None],
    *,
    task: Task,
    options: UnrollOptions,
    parts: int,
) -> tuple[tuple[Array, Array, Array], PyTree]:
    keys, counts = problems
    objective, probe = _objective(keys, counts, task, options, parts)
    (_, (total, counted, replaced)), (gradient, events) = jax.value_and_grad(
        objective, argnums=(0, 1), has_aux=True
    )(optimizer, probe)
    contained = (events > 0) | (replaced > 0)
    if counts is not None:
        contained &= counts
    return (total, counted, jnp.sum(contained)), gradient


def _objective(
    keys: Key[Array, " batch"],
    counts: Bool[Array, " batch"] | None,
    task: Task,
    options: UnrollOptions,
    parts: int = 1,
) -> tuple[Callable[..., Any], Float[Array, " batch"]]:
    """The sum of the problems' meta-losses, of (optimizer, probe), and the probe.

    Its auxiliary output is (the sum over problems that did not explode, their
    number, the steps at which each problem's gradient was replaced); for the
    probe see `contain_cotangents`.
    """
    batch = keys.shape[0]
    problem = with_hessian_products(joint(sample_batch(task, keys)))
    bound, axis = options.max_cotangent_norm, COMPONENT_AXIS if parts > 1 else None

    def objective(opt: MetaOptimizer, probe: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        def contain(previous: PyTree, following: PyTree) -> PyTree:
            params, state = hold_exploded(previous, following)
            params, inner = contain_cotangents((params, state.inner), probe, bound, axis)
            return params, state._replace(inner=inner)

        tx = store_state_in(options.state_dtype, reversible(opt))
        trajectory = unroll(
            contain_gradients(spread_components(tx, parts)),
            problem,
            options.num_steps,
            between_steps=contain,
            segment=options.segment,
        )
        each = options.objective.meta_loss(trajectory.losses)
        replaced, held = trajectory.state.events.T
        blown = exploded(trajectory.losses) | (held > 0) | ~jnp.isfinite(each)
        if counts is not None:
            blown, each = blown | ~counts, jnp.where(counts, each, 0.0)
        kept = jnp.where(blown, 0.0, each)
        differentiated = kept if bound is None else each
        return jnp.sum(differentiated), (jnp.sum(kept), jnp.sum(~blown), replaced)

    return objective, jnp.zeros((batch,), problem.params.dtype)
