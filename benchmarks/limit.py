"""How fast a meta-step could be if its matrix products were all it did.

The products are counted in the traced program of the plain meta-gradient, without
recomputation, and XLA's rate on them is measured at those very shapes.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from benchmarks import plain
from benchmarks.settings import Setting
from optdyn.meta_training._components import BATCH_AXIS
from optdyn.tasks import Task

SMALLEST_SHARE = 0.01
"""Products with a smaller part of the operations are charged at the others' mean rate."""
SECONDS_PER_SAMPLE = 0.03
SAMPLES = 5


@dataclasses.dataclass(frozen=True)
class Product:
    """One ``dot_general``: the operands' shapes and what is contracted and batched."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    dimensions: tuple

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        (contracted, _), (batched, _) = self.dimensions
        right = math.prod(self.right) // math.prod(
            self.left[axis] for axis in (*contracted, *batched)
        )
        return 2 * math.prod(self.left) * right


def limit(setting: Setting, task: Task, mesh: Mesh | None) -> tuple[int, float]:
    """Operations of one meta-step's matrix products, and the seconds they take alone."""
    devices = 1 if mesh is None else mesh.size
    share = dataclasses.replace(setting, batch=setting.batch // devices)
    traced = jax.make_jaxpr(
        jax.grad(lambda theta: plain.objective(theta, jax.random.key(0), task, share))
    )(plain.initial(share))
    counts = count_products(traced.jaxpr)
    total = sum(count * product.flops for product, count in counts.items())
    measured_flops, seconds = 0, 0.0
    for product, count in counts.items():
        if count * product.flops >= SMALLEST_SHARE * total:
            measured_flops += count * product.flops
            seconds += count * product_seconds(product, mesh)
    return devices * total, seconds * total / measured_flops


def count_products(jaxpr: Any) -> collections.Counter[Product]:
    """How often each product runs, loops multiplied out."""
    counts: collections.Counter[Product] = collections.Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            left, right = (operand.aval.shape for operand in equation.invars)
            counts[Product(left, right, equation.params["dimension_numbers"])] += 1
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for parameter in equation.params.values():
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                for product, count in count_products(inner).items():
                    counts[product] += times * count
    return counts


def product_seconds(product: Product, mesh: Mesh | None) -> float:
    """Median seconds of one product, with every device computing it at once."""
    repeats = 10
    while True:
        seconds = _loop_seconds(product, mesh, repeats)
        if seconds >= SECONDS_PER_SAMPLE:
            return seconds / repeats
        repeats = int(repeats * min(100.0, 1.5 * SECONDS_PER_SAMPLE / seconds)) + 1


def _loop_seconds(product: Product, mesh: Mesh | None, repeats: int) -> float:
    devices = 1 if mesh is None else mesh.size
    left = jnp.full((devices, *product.left), 0.5)
    right = jnp.full((devices, *product.right), 0.5)
    run = functools.partial(_loop, product=product, repeats=repeats)
    if mesh is not None:
        rows = P(BATCH_AXIS)
        run = jax.shard_map(run, mesh=mesh, in_specs=(rows, rows), out_specs=rows, check_vma=False)
    compiled = jax.jit(run).lower(left, right).compile()
    jax.block_until_ready(compiled(left, right))
    taken = []
    for _ in range(SAMPLES):
        start = time.perf_counter()
        jax.block_until_ready(compiled(left, right))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _loop(left: jax.Array, right: jax.Array, *, product: Product, repeats: int) -> jax.Array:
    """The product ``repeats`` times; one entry of an operand depends on the last result."""
    fixed = right[0]

    def again(_: int, operand: jax.Array) -> jax.Array:
        result = jax.lax.dot_general(operand, fixed, product.dimensions)
        last = jnp.ravel(result)[0] * 1e-3
        return operand.at[(0,) * operand.ndim].set(last)

    return jax.lax.fori_loop(0, repeats, again, left[0])[None]
