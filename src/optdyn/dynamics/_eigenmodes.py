"""Eigenmodes: a linearised optimizer as momentum with N timescales (eqs. 3–5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Complex, Float, Int

from optdyn.dynamics import _words as words
from optdyn.dynamics._linearization import Linearization, Matrix, Vector, state_units
from optdyn.errors import UserError, whole_number
from optdyn.in_words import InWords

# So far, relatively, a matrix without a full set of eigenvectors is moved to have one: so little
# that the sum of the modes keeps ACCURATE, but a solver takes very small entries for zero.
NUDGES = 10.0 ** np.arange(-15, -9)
ACCURATE = 1e-7
# Beyond this condition number of the eigenvectors half of all digits are lost.
DEGENERATE = 1e8
# Modes with |β| below this part of ‖A‖ are gone after one step.
VANISHING = 1e-11
# Rounding makes coincident zeros this large.
COINCIDENT_ZERO = 1e-5
# What is left of a sum whose terms cancel to this part of them is rounding.
CANCELLED = 1e-12
# A mode whose response is this small beside the largest is not driven.
UNDRIVEN = 1e-14

ModeValues = Complex[np.ndarray, " N"]
ModeVectors = Complex[np.ndarray, "N N"]


def timescale(beta: Complex[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Steps in which modes with eigenvalues ``beta`` decay by a factor e: ``−1/ln|β|``.

    0 at β = 0, inf at |β| = 1, negative for a growing mode (its steps to grow by e).
    """
    with np.errstate(divide="ignore"):
        return np.asarray(1.0 / (0.0 - np.log(np.abs(beta))))


@dataclasses.dataclass(frozen=True)
class Eigenmodes(InWords):
    """``v_j ← β_j v_j + α_j g``, ``Δx = −Σ_j v_j − feedthrough·g`` with the updated v.

    (Deviations from the operating point; around it Δx = drift. With Δx = C h + D g,
    h' = A h + B g and A = R diag(β) L: ``α_j = −(C r_j)(l_jᵀ B)/β_j``, which is
    ``−(wᵀ r_j)(l_jᵀ B)`` where Δx = wᵀh', and ``feedthrough = −D − Σ_j α_j``.)

    Arrays of length N, complex128, by falling steady-state gain; a conjugate pair
    stands together, the one with positive imaginary part first. ``delayed``: what a
    mode with β = 0 adds, ``−delayed_j·g``, ``lag_j`` steps later; zero for all others (a
    pure delay has no form ``α β^k``). Such a mode has α = 0. ``lag`` [N] is 1 for it, but
    where modes with β = 0 hand a gradient on for several steps (a Jordan block) 1, 2, …:
    they stand for those steps together, and are kept or dropped together.

    ``R`` [N, N] has the right eigenvectors as columns, ``L`` [N, N] the left ones as
    rows, ``L R = I``. ``condition_number``: that of R in the 2-norm (columns of unit
    length), after a change of units where those of the state are very unlike
    (`state_units`). ``degenerate``: it exceeds 1e8. Then single modes mean nothing, only their
    sum does; the vectors are those of A moved by a few rounding errors, which splits
    coincident ones. `impulse_mismatch` says what is lost.
    """

    beta: Complex[np.ndarray, " N"]
    alpha: Complex[np.ndarray, " N"]
    delayed: Complex[np.ndarray, " N"]
    lag: Int[np.ndarray, " N"]
    feedthrough: float
    drift: float
    condition_number: float
    R: Complex[np.ndarray, "N N"]
    L: Complex[np.ndarray, "N N"]
    linearization: Linearization

    def verdict(self) -> list[str]:
        """The leading modes, what oscillates, and up to where they are stable."""
        # The theory of stability is built upon this record.
        from optdyn.dynamics._theory import stable_range, steady_rate

        rate = steady_rate(self) / self.linearization.period
        if self.linearization.D == 0.0 and not np.any(self.used & (self.gain > 0.0)):
            return ["no update changes with a small change of the gradient"]
        stable = words.edge_in_words(stable_range(self))
        return [*words.modes_in_words(self, rate), stable]

    @property
    def degenerate(self) -> bool:
        """Whether eigenvectors are too near to parallel to speak of single modes."""
        return not self.condition_number <= DEGENERATE

    @property
    def timescale(self) -> Float[np.ndarray, " N"]:
        """Steps in which each mode decays by a factor e, also where β is that of a whole cycle."""
        return timescale(self.beta) * self.linearization.period

    @property
    def gain(self) -> Float[np.ndarray, " N"]:
        """Steady-state gain ``|α/(1−β)|``: the learning rate a mode adds up to."""
        return _gain(self.beta, self.alpha, self.delayed)

    def impulse_response(self, steps: int) -> Float[np.ndarray, " steps"]:
        """Δx_k of a unit gradient at k = 0, less the drift (`Linearization.impulse_response`)."""
        response = self.mode_response("all", steps)
        response[0] -= self.feedthrough
        return response

    def mode_response(self, keep: Sequence[int] | str, steps: int) -> Float[np.ndarray, " steps"]:
        """What the modes ``keep`` add to `impulse_response`, conjugates included.

        Raises `UserError` as `with_conjugates` does.
        """
        steps, kept = whole_number("steps", steps), self.with_conjugates(keep)
        powers = self.beta[None, kept] ** np.arange(steps)[:, None]
        response = -np.real(powers @ self.alpha[kept])
        late = kept[(self.lag[kept] > 0) & (self.lag[kept] < steps)]
        np.subtract.at(response, self.lag[late], self.delayed[late].real)
        return response

    @property
    def used(self) -> Bool[np.ndarray, " N"]:
        """The modes that the gradient or x drives and that move x."""
        lin = self.linearization
        sizes = [np.abs(_products(lin.C, self.R, self.L, drive)) for drive in (lin.B, lin.E)]
        return np.any([s > UNDRIVEN * np.max(s, initial=0.0) for s in sizes], axis=0) | self.chained

    @property
    def chained(self) -> Bool[np.ndarray, " N"]:
        """The modes that hand a gradient on to one another, if there are any."""
        return (self.lag > 0) & (np.max(self.lag, initial=0) > 1)

    def frequency_response(self, frequency: Float[np.ndarray, " F"]) -> Complex[np.ndarray, " F"]:
        """Δx/g for ``g_k = e^{iωk}`` at each angular frequency ω (radians a step)."""
        z = np.exp(1j * np.atleast_1d(np.asarray(frequency, np.float64)))[:, None]
        late = self.delayed / z**self.lag
        memory = np.sum(self.alpha * z / (z - self.beta) + late, axis=1)
        return -(memory + self.feedthrough)

    def with_conjugates(self, keep: Sequence[int] | str) -> Int[np.ndarray, " K"]:
        """``keep`` sorted, without repeats, and with the conjugate of each of its modes.

        ``"all"`` stands for all of them.
        Raises `UserError` for an index that is not a mode's.
        """
        n = len(self.beta)
        if isinstance(keep, str) and keep == "all":
            return np.arange(n)
        if isinstance(keep, str) or not np.iterable(keep):
            raise UserError(f"keep: {keep!r} is not allowed ('all', or indices of modes)")
        for j in keep:
            if not isinstance(j, int | np.integer) or not -n <= j < n:
                raise UserError(f"keep: no mode {j!r} (allowed: 0 to {n - 1})")
        chosen = {int(j) % n for j in keep}
        partners = {j + int(np.sign(self.beta[j].imag)) for j in chosen}
        if np.any(self.chained[sorted(chosen)]):
            partners |= set(np.flatnonzero(self.chained).tolist())
        return np.array(sorted(chosen | partners), int)


def eigenmodes(lin: Linearization) -> Eigenmodes:
    """Diagonalise the linearised optimizer ``lin`` (eqs. 3–5).

    Raises `UserError` for anything but a `Linearization`.

    >>> import optax
    >>> from optdyn.dynamics import linearize
    >>> modes = eigenmodes(linearize(optax.sgd(0.5, momentum=0.75)))
    >>> modes.beta.real.tolist(), modes.alpha.real.tolist(), modes.feedthrough
    ([0.75], [0.5], 0.0)
    """
    require_linear(lin)
    units = state_units(lin.A, lin.B, lin.C)
    A = lin.A * units[None, :] / units[:, None]
    norm = float(np.linalg.norm(A, 2)) if lin.size else 0.0
    beta, R = np.linalg.eig(A)
    condition = float(np.linalg.cond(R)) if lin.size else 1.0
    if condition <= DEGENERATE:
        return _modes(lin, units, norm, condition, beta, R, 0)
    tried: list[tuple[float, Eigenmodes]] = []
    for nudge in NUDGES:
        modes = _modes(lin, units, norm, condition, *_nearly_diagonal(A, norm, nudge))
        tried.append((impulse_mismatch(lin, modes), modes))
        if tried[-1][0] <= ACCURATE:
            break
    return min(tried, key=lambda pair: pair[0])[1]


def _modes(
    lin: Linearization,
    units: Vector,
    norm: float,
    condition: float,
    beta: ModeValues,
    R: ModeVectors,
    lags: int,
) -> Eigenmodes:
    """The modes with eigenvalues ``beta`` and vectors R (in ``units``), ``lags`` chained first."""
    beta = beta.astype(complex)
    R, L = _with_inverse(beta, R.astype(complex))
    R, L = R * units[:, None], L / units[None, :]
    product = _conjugate_rows(beta, _products(lin.C, R, L, lin.B))
    beta = np.where(np.abs(beta) <= VANISHING * norm, 0.0, beta)
    lag = np.where(beta == 0, 1, 0)
    if lags > 1:
        product[:lags] = _handed_on((L[:lags] @ lin.A @ R[:, :lags]).real, lin, R, L)
        lag[:lags] = np.arange(1, lags + 1)
    alpha = _lag_zero(beta, product)
    delayed = np.where(beta == 0, -product, 0.0)
    order = np.argsort(-_gain(beta, alpha, delayed), kind="stable")
    return Eigenmodes(
        beta=beta[order],
        alpha=alpha[order],
        delayed=delayed[order],
        lag=lag[order],
        feedthrough=-lin.D - float(np.sum(alpha).real),
        drift=lin.drift,
        condition_number=condition,
        R=R[:, order],
        L=L[order],
        linearization=lin,
    )


def require_linear(system: object) -> None:
    """Raise `UserError` unless ``system`` is a `Linearization`."""
    if not isinstance(system, Linearization):
        raise UserError(
            f"linear system: {type(system).__name__} is not one (allowed: what linearize(tx) gives)"
        )


def _nearly_diagonal(A: Matrix, norm: float, size: float) -> tuple[ModeValues, ModeVectors, int]:
    """``β``, ``R`` where A has no full set of eigenvectors, and the number m of zeros among them.

    The m zeros come first, with a basis of what A brings to zero in m steps; the others are
    the eigenvectors of A moved by ``size`` of its norm.
    """
    T, Z, m = scipy.linalg.schur(
        A, "real", sort=lambda re, im=0.0: np.hypot(re, im) <= COINCIDENT_ZERO * norm
    )
    rest = T[m:, m:]
    nudge = np.random.default_rng(0).standard_normal(rest.shape)
    beta, vectors = np.linalg.eig(rest + size * norm * nudge)
    across = scipy.linalg.solve_sylvester(T[:m, :m], -rest, -T[:m, m:])
    others = Z[:, :m] @ across @ vectors + Z[:, m:] @ vectors
    others = others / np.linalg.norm(others, axis=0)
    return np.concatenate([np.zeros(m), beta]), np.column_stack([Z[:, :m], others]), m


def _handed_on(
    block: Float[np.ndarray, "m m"], lin: Linearization, R: ModeVectors, L: ModeVectors
) -> Float[np.ndarray, " m"]:
    """What the first m modes, whose dynamics are ``block``, add 1, 2, …, m steps later."""
    m = len(block)
    h, taps = (L[:m] @ lin.B).real, np.empty(m)
    for k in range(m):
        taps[k] = (lin.C @ R[:, :m]).real @ h
        h = block @ h
    return taps


def impulse_mismatch(lin: Linearization, modes: Eigenmodes, steps: int = 200) -> float:
    """How far the summed modes are from the linear system's own impulse response.

    The largest difference over ``steps`` steps, relative to the largest response.
    """
    exact = lin.impulse_response(steps)
    largest = np.max(np.abs(exact))
    difference = np.max(np.abs(modes.impulse_response(steps) - exact))
    return float(difference / largest) if largest > 0 else float(difference)


def truncate(modes: Eigenmodes, keep: Sequence[int] | str) -> Linearization:
    """The linear system of the kept modes alone, in real modal coordinates.

    State s_j = (C r_j)(l_jᵀ(h − h*)) for a real mode, its real and imaginary part for
    a conjugate pair (which is kept together). Kept whole: the feed-through and the
    drift. Dropped with a mode: everything that it does, so of the direct response
    only the part α_j that momentum without it would not have.

    ``keep``: indices of modes, or ``"all"``. Raises `UserError` for any other.
    """
    lin = modes.linearization
    kept = modes.with_conjugates(keep)
    dropped = np.setdiff1d(np.arange(lin.size), kept)
    into = modal_coordinates(modes, kept)
    beta = modes.beta[kept]
    blocks = [
        [[b.real, -b.imag], [b.imag, b.real]] if b.imag > 0 else [[b.real]]
        for b in beta
        if b.imag >= 0
    ]
    A = scipy.linalg.block_diag(*blocks) if blocks else np.zeros((0, 0))
    C = 1.0 + np.sign(beta.imag)
    chained = modes.chained[kept]
    if np.any(chained):
        R, L = modes.R[:, kept[chained]].real, modes.L[kept[chained]].real
        A[np.ix_(chained, chained)], C[chained] = L @ lin.A @ R, lin.C @ R
    lag_zero_x = _lag_zero(modes.beta, _products(lin.C, modes.R, modes.L, lin.E))
    return dataclasses.replace(
        lin,
        A=A,
        B=into @ lin.B,
        C=C,
        D=lin.D + float(np.sum(modes.alpha[dropped]).real),
        E=into @ lin.E,
        weight_decay=lin.weight_decay + float(np.sum(lag_zero_x[dropped]).real),
        residual=into @ lin.residual,
        state=np.zeros(len(kept)),
        names=tuple(f"mode {j}" for j in kept),
        comoving=np.zeros(len(kept)),
    )


def modal_coordinates(modes: Eigenmodes, kept: Int[np.ndarray, " K"]) -> Float[np.ndarray, "K N"]:
    """The real matrix that takes h − h* to the state s [K] of `truncate`."""
    weight = np.where(modes.chained, 1.0, modes.linearization.C @ modes.R)
    rows = weight[kept, None] * modes.L[kept]
    return np.where((modes.beta[kept].imag < 0)[:, None], -rows.imag, rows.real)


def _with_inverse(beta: ModeValues, R: ModeVectors) -> tuple[ModeVectors, ModeVectors]:
    """R with exactly conjugate columns for conjugate pairs, and its inverse with such rows.

    Inverted is the real matrix of real and imaginary parts. To make rows of a complex inverse
    conjugate afterwards would lose all digits where vectors are nearly parallel.
    """
    first, second = np.flatnonzero(beta.imag > 0), np.flatnonzero(beta.imag < 0)
    real = R.real.copy()
    real[:, second] = R.imag[:, first]
    rows = np.linalg.inv(real).astype(complex)
    rows[first] = (rows[first] - 1j * rows[second]) / 2
    rows[second] = np.conj(rows[first])
    columns = real.astype(complex)
    columns[:, first] += 1j * real[:, second]
    columns[:, second] = np.conj(columns[:, first])
    return columns, rows


def _conjugate_rows(beta: ModeValues, rows: ModeValues) -> ModeValues:
    """``rows`` made exactly conjugate for conjugate pairs and real for real modes."""
    rows = rows.copy()
    rows[beta.imag == 0] = rows[beta.imag == 0].real
    second = np.flatnonzero(beta.imag < 0)
    rows[second] = np.conj(rows[second - 1])
    return rows


def _products(C: Vector, R: ModeVectors, L: ModeVectors, B: Vector) -> ModeValues:
    """``(C r_j)(l_jᵀ B)``, and 0 where that is the rounding of what cancels."""
    product = (C @ R) * (L @ B)
    terms = (np.abs(C) @ np.abs(R)) * (np.abs(L) @ np.abs(B))
    return np.where(np.abs(product) > CANCELLED * terms, product, 0.0)


def _lag_zero(beta: ModeValues, product: ModeValues) -> ModeValues:
    """α of modes whose response is ``product·β^(k−1)`` from k = 1 on; 0 at β = 0."""
    vanished = beta == 0
    return np.where(vanished, 0.0, -product / np.where(vanished, 1.0, beta))


def _gain(beta: ModeValues, alpha: ModeValues, delayed: ModeValues) -> Vector:
    total = np.abs(alpha + delayed)
    # A mode that is not driven has no gain, even where 1 − β is zero too.
    driven = total > UNDRIVEN * np.max(total, initial=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(driven, total / np.abs(1.0 - beta), 0.0)
