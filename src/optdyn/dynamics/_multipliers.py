"""Leading eigenvalues of a real matrix that is given by its products with vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs

if TYPE_CHECKING:
    from jaxtyping import Complex, Float

Product: TypeAlias = "Callable[[Float[np.ndarray, ' dim']], Float[np.ndarray, ' dim']]"

OFF_AXIS = 1e-5
"""An eigenvalue is complex where its imaginary part is above this part of its modulus."""
VANISHING = 1e-6
"""Eigenvalues below this modulus are what state variables that forget at once leave."""
LARGEST_ARPACK = 16
"""Dimensions below which ARPACK has no room: the matrix is taken apart as a whole."""


@dataclasses.dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues [K], falling in modulus, with unit right eigenvectors [K, dim]."""

    values: Complex[np.ndarray, " K"]
    vectors: Complex[np.ndarray, "K dim"]

    def part(self, chosen: np.ndarray, most: int) -> Spectrum:
        """The first ``most`` of the chosen ones."""
        at = np.flatnonzero(chosen)[:most]
        return Spectrum(self.values[at], self.vectors[at])


def is_oscillating(values: Complex[np.ndarray, " K"]) -> np.ndarray:
    """Which eigenvalues turn the sign or the phase at each step: negative or complex ones."""
    size = np.abs(values)
    off_axis = (np.abs(values.imag) > OFF_AXIS * size) | (values.real < 0)
    return off_axis & (size > VANISHING)


def dense_spectrum(matrix: Float[np.ndarray, "dim dim"], most: int) -> Spectrum:
    """The ``most`` largest and ``most`` largest oscillating eigenvalues of a dense matrix.

    Eigenvectors come from inverse iteration, so that a large matrix needs no full set.
    """
    values = np.linalg.eigvals(matrix)
    values = values[_by_modulus(values)]
    oscillating = np.flatnonzero(is_oscillating(values))[: most + 1]
    chosen = np.unique(np.concatenate([np.arange(min(most + 1, values.size)), oscillating]))
    vectors = [inverse_iteration(matrix, values, i) for i in chosen]
    return Spectrum(values[chosen], np.array(vectors).reshape(len(chosen), -1))


def iterated_spectrum(
    product: Product, dim: int, most: int, start: Float[np.ndarray, " dim"] | None = None
) -> Spectrum:
    """Leading eigenvalues by ARPACK, from products alone.

    Three searches look where leading ones can lie: the largest moduli, the most negative
    real parts, and the largest imaginary parts.
    """
    if dim <= LARGEST_ARPACK + 2 * most:
        matrix = np.stack([product(row) for row in np.eye(dim)], axis=1)
        return dense_spectrum(matrix, most)
    first = np.random.default_rng(0).standard_normal(dim) if start is None else start
    found = [_arpack(product, dim, most, which, first) for which in ("LM", "SR", "LI")]
    values = np.concatenate([part.values for part in found])
    vectors = np.concatenate([part.vectors for part in found])
    order = _by_modulus(values)
    values, vectors = values[order], vectors[order]
    new = [i for i in range(values.size) if not _met_before(values, vectors, i)]
    return Spectrum(values[new], vectors[new])


def _arpack(
    product: Product, dim: int, most: int, which: str, start: Float[np.ndarray, " dim"]
) -> Spectrum:
    operator = LinearOperator((dim, dim), matvec=lambda v: product(np.real(v)), dtype=np.float64)
    basis = min(dim - 1, max(2 * most + 4, 20))
    try:
        values, vectors = eigs(
            operator, k=most, which=which, v0=start, ncv=basis, tol=1e-9, maxiter=50
        )
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    return Spectrum(values, vectors.T)


def _met_before(
    values: Complex[np.ndarray, " K"], vectors: Complex[np.ndarray, "K dim"], i: int
) -> bool:
    near = np.flatnonzero(np.abs(values[:i] - values[i]) <= 1e-7 * (1 + np.abs(values[i])))
    return any(abs(np.vdot(vectors[j], vectors[i])) > 1 - 1e-6 for j in near)


def inverse_iteration(
    matrix: Float[np.ndarray, "dim dim"], values: Complex[np.ndarray, " K"], i: int
) -> Complex[np.ndarray, " dim"]:
    """The unit right eigenvector of one eigenvalue; equal ones get different vectors."""
    shift = values[i] + 1e-10 * (1 + abs(values[i]))
    shifted = matrix - shift * np.eye(len(matrix))
    vector = np.random.default_rng(i).standard_normal(len(matrix)).astype(complex)
    for _ in range(3):
        with np.errstate(all="ignore"):
            vector = np.linalg.solve(shifted, vector)
        vector /= np.linalg.norm(vector)
    return vector


def _by_modulus(values: Complex[np.ndarray, " K"]) -> np.ndarray:
    """Falling modulus; of a conjugate pair the one above the axis comes first."""
    return np.lexsort((-values.imag, -np.round(np.abs(values), 10)))
