"""The curvatures of a task's problems, to set beside an optimizer's stability."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from optdyn.errors import UserError, require_positive_int
from optdyn.precision import double_precision, to_float64
from optdyn.random_streams import keys_at, stream
from optdyn.tasks._base import Problem, Task
from optdyn.tasks._gate import require_sample

CURVATURE_STREAM = "curvature problems"
LARGEST_DENSE = 256
LANCZOS_STEPS = 24
# Below this part of the largest, an eigenvalue is rounding.
ZERO = 1e-9


def task_curvatures(
    task: Task, *, seed: int = 0, num_problems: int = 32
) -> Float[np.ndarray, " S"]:
    """The positive eigenvalues of the losses' Hessians where problems start, rising.

    All of them for problems of up to 256 parameters. For larger ones the Ritz values of 24
    Lanczos steps from a random vector, which span the range of the eigenvalues but do
    not count them, of at most 4 problems. Eigenvalues below 1e-9 of the largest are left out.

    Of a stochastic task those of the loss on all data.

    ``num_problems`` problems are drawn from the ``seed``.

    Raises `UserError` when no eigenvalue is positive, or for a task that is not allowed.
    """
    require_positive_int("num_problems", num_problems)
    keys = keys_at(stream(seed, CURVATURE_STREAM), jnp.arange(num_problems))
    require_sample(task, keys[0])
    sample = jax.jit(task.sample)
    found = []
    for count in range(num_problems):
        problem = sample(keys[count]).on_all_data()
        size = sum(np.size(leaf) for leaf in jax.tree.leaves(problem.params))
        if size > LARGEST_DENSE and count == 4:
            break
        with double_precision():
            wide = to_float64(problem)
            found.append(_dense(wide) if size <= LARGEST_DENSE else _ritz_values(wide, size))
    values = np.sort(np.concatenate(found))
    values = values[values > ZERO * np.max(np.abs(values))]
    if not values.size:
        raise UserError("task: its losses curve upwards nowhere (no positive eigenvalue)")
    return values


def _dense(problem: Problem) -> Float[np.ndarray, " n"]:
    return np.linalg.eigvalsh(np.asarray(_hessian(problem)))


@jax.jit
def _hessian(problem: Problem) -> Float[Array, "n n"]:
    x, unravel = ravel_pytree(problem.params)
    return jax.hessian(lambda flat: problem.loss(unravel(flat)))(x)


@jax.jit
def _hessian_times(problem: Problem, v: Float[Array, " n"]) -> Float[Array, " n"]:
    x, unravel = ravel_pytree(problem.params)
    return jax.jvp(jax.grad(lambda flat: problem.loss(unravel(flat))), (x,), (v,))[1]


def _ritz_values(problem: Problem, size: int) -> Float[np.ndarray, " K"]:
    """Eigenvalues of the Hessian on a Krylov space, its basis kept orthogonal throughout."""
    basis = np.random.default_rng(0).standard_normal((1, size))
    basis /= np.linalg.norm(basis)
    images: list[np.ndarray] = []
    for _ in range(LANCZOS_STEPS):
        images.append(np.asarray(_hessian_times(problem, basis[-1])))
        rest = images[-1]
        for _ in range(2):  # once leaves rounding errors behind
            rest = rest - basis.T @ (basis @ rest)
        norm = np.linalg.norm(rest)
        if norm <= ZERO * np.linalg.norm(images[-1]):
            break
        basis = np.vstack([basis, rest / norm])
    projected = basis[: len(images)] @ np.stack(images, axis=1)
    return np.linalg.eigvalsh((projected + projected.T) / 2)
