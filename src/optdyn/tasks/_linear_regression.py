"""Random linear regression (appendix C.1, Fig. 2a)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from optdyn.errors import (
    LARGEST_NUMBER,
    UserError,
    require_choice,
    require_number,
    require_positive_int,
)
from optdyn.tasks._base import Problem


def least_squares(
    x: Float[Array, " n"], A: Float[Array, "n n"], b: Float[Array, " n"]
) -> Float[Array, ""]:
    """``½‖Ax − b‖²``; its Hessian is ``AᵀA`` everywhere."""
    residual = A @ x - b
    return 0.5 * residual @ residual


def random_orthogonal(key: Key[Array, ""], n: int) -> Float[Array, "n n"]:
    """A uniformly distributed orthogonal matrix: a product of reflections (Stewart 1980).

    Reflection k acts on the coordinates from k on and takes a normal vector there
    to an axis. (`jax.random.orthogonal` calls LAPACK on the whole batch, which on a
    CPU with few threads can wait for itself forever.)
    """
    return _product_of_reflections(jax.random.normal(key, (n, n)))


@jax.jit  # outside other programs, each call would otherwise be traced and compiled anew
def _product_of_reflections(vectors: Float[Array, "n n"]) -> Float[Array, "n n"]:
    coordinate = jnp.arange(len(vectors))

    def reflect(k: int, Q: Float[Array, "n n"]) -> Float[Array, "n n"]:
        x = jnp.where(coordinate >= k, vectors[k], 0.0)
        sign = jnp.where(x[k] < 0, -1.0, 1.0)
        v = x.at[k].add(sign * jnp.linalg.norm(x))
        v = v / jnp.linalg.norm(v)
        Q = Q - 2.0 * jnp.outer(Q @ v, v)
        return Q * jnp.where(coordinate >= k, -sign, 1.0)[None, :]

    return jax.lax.fori_loop(0, len(vectors), reflect, jnp.eye(len(vectors)))


@dataclasses.dataclass(frozen=True)
class LinearRegression:
    """``½‖Ax − b‖²`` with random A, b and starting point.

    ``spectrum="log_uniform"``: the eigenvalues of AᵀA are ``10^U(low, high)``
    in a random orthogonal basis, so ``low`` and ``high`` are exponents of ten
    (curvature from 1e-3 to 1 by default). ``spectrum="gaussian"``: A has
    independent N(0, 1/n) entries. b and the start are standard normal.
    """

    n: int = 5
    spectrum: str = "log_uniform"
    low: float = -3.0
    high: float = 0.0

    def __post_init__(self) -> None:
        require_positive_int("linear_regression.n", self.n)
        require_choice("linear_regression.spectrum", self.spectrum, ["log_uniform", "gaussian"])
        for name in ("low", "high"):
            require_number(
                f"linear_regression.{name}", getattr(self, name), minimum=-LARGEST_NUMBER
            )
        if not -12.0 <= self.low <= self.high <= 12.0:
            raise UserError(
                f"linear_regression.low, high: {self.low!r}, {self.high!r} are not allowed "
                "(exponents of ten with -12 <= low <= high <= 12)"
            )

    @property
    def curvature_range(self) -> tuple[float, float] | None:
        """The smallest and largest possible eigenvalue of AᵀA; None where unbounded."""
        if self.spectrum == "gaussian":
            return None
        return 10.0**self.low, 10.0**self.high

    def sample(self, key: Key[Array, ""]) -> Problem:
        """Draw A [n, n], b [n] and the start [n]."""
        key_matrix, key_target, key_start = jax.random.split(key, 3)
        A = self._matrix(key_matrix)
        b = jax.random.normal(key_target, (self.n,))
        start = jax.random.normal(key_start, (self.n,))
        return Problem(params=start, loss_fn=least_squares, data=(A, b))

    def _matrix(self, key: Key[Array, ""]) -> Float[Array, "n n"]:
        if self.spectrum == "gaussian":
            return jax.random.normal(key, (self.n, self.n)) / jnp.sqrt(float(self.n))
        key_values, key_left, key_right = jax.random.split(key, 3)
        exponents = jax.random.uniform(key_values, (self.n,), minval=self.low, maxval=self.high)
        left = random_orthogonal(key_left, self.n)
        right = random_orthogonal(key_right, self.n)
        return (left * 10.0 ** (exponents[None, :] / 2)) @ right
