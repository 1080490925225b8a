"""Leading eigenvalues of large matrices, from products with trees of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from optdyn.random_streams import stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, PyTree


def top_curvature(
    times: Callable[[PyTree], PyTree], like: PyTree, *, steps: int = 20, seed: int = 0
) -> float:
    """The largest eigenvalue of a symmetric matrix, from ``steps`` products, by Lanczos.

    ``times(v)``: the matrix times v, both trees as ``like``. Three vectors of the
    parameters' size are in memory, whatever the number of steps; without reorthogonalisation
    the largest Ritz value is as right as with it (Paige 1972).
    """
    v = _start(like, seed)
    before, beta = jax.tree.map(jnp.zeros_like, v), jnp.zeros(())
    diagonal: list[float] = []
    off: list[float] = []
    for _ in range(steps):
        following, alpha, beta = _without(times(v), v, before, beta)
        before, v = v, following
        diagonal.append(float(alpha))
        off.append(float(beta))
        if off[-1] <= 1e-6 * max(abs(value) for value in diagonal):
            break
    inner = off[: len(diagonal) - 1]
    return float(np.linalg.eigvalsh(np.diag(diagonal) + np.diag(inner, 1) + np.diag(inner, -1))[-1])


def top_real_part(
    times: Callable[[PyTree], PyTree], like: PyTree, *, steps: int = 20, seed: int = 0
) -> float:
    """The largest real part of the eigenvalues of any matrix, from ``steps`` products.

    By Arnoldi's iteration: ``steps`` vectors of the parameters' size are in memory.
    """
    basis = [_start(like, seed)]
    hessenberg = np.zeros((steps + 1, steps))
    for k in range(steps):
        rest = times(basis[-1])
        for i, v in enumerate(basis):
            rest, part = _less(rest, v)
            hessenberg[i, k] = float(part)
        size = float(jnp.sqrt(_dot(rest, rest)))
        hessenberg[k + 1, k] = size
        if size <= 1e-6 * np.max(np.abs(hessenberg)):
            steps = k + 1
            break
        basis.append(jax.tree.map(lambda a: a / size, rest))  # noqa: B023
    return float(np.max(np.linalg.eigvals(hessenberg[:steps, :steps]).real))


def _start(like: PyTree, seed: int) -> PyTree:
    leaves = jax.tree.leaves(like)
    structure: Any = jax.tree.structure(like)
    keys = jax.random.split(stream(seed, "Lanczos start"), len(leaves))
    drawn = [
        jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    start = structure.unflatten(drawn)
    size = jnp.sqrt(_dot(start, start))
    return jax.tree.map(lambda a: a / size, start)


@jax.jit
def _without(image: PyTree, v: PyTree, before: PyTree, beta: Array) -> tuple[PyTree, Array, Array]:
    alpha = _dot(v, image)
    rest = jax.tree.map(lambda a, b, c: a - alpha * b - beta * c, image, v, before)
    size = jnp.sqrt(_dot(rest, rest))
    return jax.tree.map(lambda a: a / jnp.maximum(size, 1e-30), rest), alpha, size


@jax.jit
def _less(image: PyTree, v: PyTree) -> tuple[PyTree, Array]:
    part = _dot(v, image)
    return jax.tree.map(lambda a, b: a - part * b, image, v), part


def _dot(a: PyTree, b: PyTree) -> Array:
    products = jax.tree.map(lambda x, y: jnp.vdot(x, y).astype(jnp.float32), a, b)
    return sum(jax.tree.leaves(products), jnp.zeros((), jnp.float32))
