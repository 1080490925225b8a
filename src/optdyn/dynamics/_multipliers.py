"""Leading eigenvalues of a real matrix that is given by its products with vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Complex, Float
from scipy.linalg import lu_factor, lu_solve, matrix_balance
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs

from optdyn.errors import UserError

Product = Callable[[Float[np.ndarray, " dim"]], Float[np.ndarray, " dim"]]

OFF_AXIS = 1e-5
"""An eigenvalue is complex where its imaginary part is above this part of its modulus."""
VANISHING = 1e-6
"""Eigenvalues below this modulus are what state variables that forget at once leave."""
LARGEST_ARPACK = 16
"""Dimensions below which ARPACK has no room: the matrix is taken apart as a whole."""
LARGEST_BASIS, LARGEST_STORED = 120, 1 << 25
"""Vectors among which the largest are sought (many lie near 1), and numbers in all of them."""
TOLERANCES = (1e-8, 1e-3)
"""Residuals; the second where a crowd of eigenvalues is too close to be told apart."""
BALANCINGS = 12


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


def iterated_spectrum(product: Product, scales: Float[np.ndarray, " dim"], most: int) -> Spectrum:
    """Leading eigenvalues by ARPACK, from products alone, in the scales that `row_scales` gives.

    Raises `UserError` where those of largest modulus do not settle.
    """
    dim = len(scales)
    if dim <= LARGEST_ARPACK + 2 * most:
        matrix = np.stack([product(row) for row in np.eye(dim)], axis=1)
        return dense_spectrum(matrix, most)
    basis = max(2 * most + 4, min(LARGEST_BASIS, LARGEST_STORED // dim))
    largest = Spectrum(np.zeros(0, complex), np.zeros((0, dim), complex))
    for tolerance in TOLERANCES:
        if not largest.values.size:
            largest = _arpack(product, scales, Search("LM", most, basis, tolerance))
    if not largest.values.size:
        raise UserError(
            "closed loop: the largest multipliers do not settle (give fewer parameters, such as "
            "those of one layer, and close over the rest in loss_fn)"
        )
    found = [largest, *swinging_spectra(product, scales, most)]
    values = np.concatenate([part.values for part in found])
    vectors = np.concatenate([part.vectors for part in found])
    order = _by_modulus(values)
    values, vectors = values[order], vectors[order]
    new = [i for i in range(values.size) if not _met_before(values, vectors, i)]
    return Spectrum(values[new], vectors[new])


def swinging_spectra(
    product: Product, scales: Float[np.ndarray, " dim"], most: int
) -> Iterator[Spectrum]:
    """Eigenvalues where swings lie: of most negative real and of largest imaginary parts."""
    for which in ("SR", "LI"):
        yield _arpack(product, scales, Search(which, most, 2 * most + 24, TOLERANCES[0], 4))


def quick_spectra(
    product: Product, scales: Float[np.ndarray, " dim"], most: int
) -> Iterator[Spectrum]:
    """`swinging_spectra`, and then the largest that are found soon."""
    yield from swinging_spectra(product, scales, most)
    yield _arpack(product, scales, Search("LM", most, 2 * most + 24, TOLERANCES[-1], 2))


def row_scales(product: Product, dim: int) -> Float[np.ndarray, " dim"]:
    """Scales d in which each row of ``D⁻¹ A D`` has a size of about 1, from products alone.

    An optimizer's memory of squares is minute beside the parameters, and the update divides by
    it: A has entries of 1e14, and rounding alone would make eigenvalues up. By random vectors of
    signs (Chen and Demmel 2000); rows of zeros keep the scale 1.
    """
    draw = np.random.default_rng(0)
    scales = np.ones(dim)
    for _ in range(BALANCINGS):
        probes = [product(scales * draw.choice((-1.0, 1.0), dim)) / scales for _ in range(2)]
        rows = np.max(np.abs(probes), axis=0)
        scales = np.where(rows > 0, scales * rows, scales)
        scales /= np.exp(np.mean(np.log(scales)))
    return scales


@dataclasses.dataclass(frozen=True)
class Search:
    """What ARPACK looks for, with ``basis`` vectors in memory."""

    which: str
    most: int
    basis: int
    tolerance: float
    restarts: int = 8


def _arpack(product: Product, scales: Float[np.ndarray, " dim"], search: Search) -> Spectrum:
    dim = len(scales)
    operator = LinearOperator(
        (dim, dim), matvec=lambda v: product(scales * np.real(v)) / scales, dtype=np.float64
    )
    try:
        values, vectors = eigs(
            operator,
            k=search.most,
            which=search.which,
            v0=np.random.default_rng(0).standard_normal(dim),
            ncv=min(dim - 1, search.basis),
            tol=search.tolerance,
            maxiter=search.restarts,
        )
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    own = scales[:, None] * vectors
    return Spectrum(values, (own / np.linalg.norm(own, axis=0)).T)


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
    balanced, (scales, _) = matrix_balance(matrix, permute=False, separate=True)
    shifted = balanced - shift * np.eye(len(matrix))
    factors = lu_factor(shifted, overwrite_a=True, check_finite=False)
    vector = np.random.default_rng(i).standard_normal(len(matrix)).astype(complex)
    for _ in range(3):
        with np.errstate(all="ignore"):
            vector = lu_solve(factors, vector, check_finite=False)
        vector /= np.linalg.norm(vector)
    vector = scales * vector
    return np.asarray(vector / np.linalg.norm(vector))


def _by_modulus(values: Complex[np.ndarray, " K"]) -> np.ndarray:
    """Falling modulus; of a conjugate pair the one above the axis comes first."""
    return np.lexsort((-values.imag, -np.round(np.abs(values), 10)))
