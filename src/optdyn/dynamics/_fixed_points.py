"""Fixed points of an optimizer's state under a constant gradient: ``h = F(h, g)``."""

from __future__ import annotations

import dataclasses
import enum

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from optdyn.dynamics._step_map import Optimizer, StepMap, step_map
from optdyn.errors import UserError, require_number, require_positive_int
from optdyn.precision import double_precision

# Newton steps are tried in full and cut by these factors; the best is taken.
STEP_FACTORS = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 0.001)
# A state this much larger than any start has run away.
RUNAWAY = 1e8
ROWS = ("h", "residual", "error_estimate", "spectral_radius", "update")

States = Float[Array, "M N"]
Each = Float[Array, " M"]


class Status(enum.StrEnum):
    """How the search from one start ended."""

    CONVERGED = "converged"
    STALLED = "stalled"
    DIVERGED = "diverged"


@dataclasses.dataclass(frozen=True)
class FixedPoints:
    """The candidates of a search, one a row, in the order of their starts.

    ``h`` [M, N]; ``status`` [M]; ``residual`` [M] ``‖h − F(h, g)‖``;
    ``error_estimate`` [M] ``‖(I − J)⁻¹(F(h, g) − h)‖``, the distance to the fixed
    point to first order, which a small residual alone does not bound along slow
    modes; ``spectral_radius`` [M] of J = ∂F/∂h (below 1: attracting; NaN for a
    candidate that did not converge); ``update`` [M] Δx there (the drift);
    ``multiplicity`` [M]: how many candidates were merged into this one.
    """

    h: Float[np.ndarray, "M N"]
    status: tuple[Status, ...]
    residual: Float[np.ndarray, " M"]
    error_estimate: Float[np.ndarray, " M"]
    spectral_radius: Float[np.ndarray, " M"]
    update: Float[np.ndarray, " M"]
    multiplicity: Int[np.ndarray, " M"]
    gradient: float

    @property
    def converged(self) -> np.ndarray:
        """[M] bool: which candidates converged."""
        return np.array([status == Status.CONVERGED for status in self.status], bool)

    def unique(self, tolerance: float = 1e-6) -> FixedPoints:
        """The distinct fixed points among the converged, the most often found first.

        Candidates within ``tolerance·(1 + ‖h‖)`` of each other are one; the row with
        the smallest error estimate stands for them.
        """
        require_number("tolerance", tolerance)
        rows = np.flatnonzero(self.converged)
        rows = rows[np.argsort(self.error_estimate[rows], kind="stable")]
        groups = _group(self.h[rows], tolerance)
        leaders = np.array(sorted(set(groups.tolist())), int)
        counts = np.array([np.sum(self.multiplicity[rows][groups == k]) for k in leaders], int)
        order = np.argsort(-counts, kind="stable")
        chosen = rows[leaders[order]]
        rows_of = {name: getattr(self, name)[chosen] for name in ROWS}
        status = tuple(self.status[i] for i in chosen)
        return dataclasses.replace(self, status=status, multiplicity=counts[order], **rows_of)


def find_fixed_points(
    tx: Optimizer | StepMap,
    starts: Float[np.ndarray, "M N"],
    gradient: float = 0.0,
    *,
    param: float = 0.0,
    iterations: int = 500,
    newton_steps: int = 40,
    tolerance: float = 1e-9,
) -> FixedPoints:
    """Search for fixed points ``h = F(h, gradient)`` of one component of ``tx`` from many states.

    ``starts`` [M, N]: visited states (see `StepMap` for the vector h). First the map
    itself is run for ``iterations`` steps, which leads to attracting points; 0 leaves
    it out and finds repelling ones too. Then Newton's method in float64 for at most
    ``newton_steps``, each cut until ``‖h − F‖`` falls; ``param`` is held. Converged are
    candidates whose residual and error estimate are both at most
    ``tolerance·(1 + ‖h‖)``; an optimizer that computes in float32 cannot reach the
    default and stalls. For another state or count than the first, give `step_map`'s map.

    Raises `UserError` for an optimizer that is not component-wise or starts of a wrong
    shape; the outcome of the search itself is in `FixedPoints.status`.
    """
    require_positive_int("iterations", iterations, minimum=0)
    require_positive_int("newton_steps", newton_steps, minimum=0)
    require_number("tolerance", tolerance)
    step = step_map(tx)
    starts = np.asarray(starts, np.float64)
    if starts.ndim != 2 or starts.shape[1] != len(step.names) or len(starts) == 0:
        raise UserError(f"starts: shape {starts.shape} is not allowed ((M, {len(step.names)}))")
    with double_precision():
        held = _Held(step, jnp.asarray(gradient, float), jnp.asarray(param, float))
        h = _iterate(held, jnp.asarray(starts), iterations)
        residual, correction = _examine(held, h)
        for _ in range(newton_steps):
            if np.all(_within(h, residual, correction, tolerance) | ~_usable(h, starts)):
                break
            previous, h = h, _move(held, h, correction)
            residual, correction = _examine(held, h)
            if np.array_equal(previous, h, equal_nan=True):
                break
        update = _updates(held, h)
        usable = _usable(h, starts)
        found = usable & _within(h, residual, correction, tolerance)
        return FixedPoints(
            h=np.asarray(h),
            status=tuple(
                Status.CONVERGED if good else Status.STALLED if finite else Status.DIVERGED
                for good, finite in zip(found, usable, strict=True)
            ),
            residual=np.asarray(residual),
            error_estimate=_norms(correction),
            spectral_radius=_spectral_radii(held, np.asarray(h), found),
            update=np.asarray(update),
            multiplicity=np.ones(len(starts), int),
            gradient=float(gradient),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Held:
    """A step map with gradient and parameter held, compiled once for all values."""

    step: StepMap
    gradient: Float[Array, ""]
    param: Float[Array, ""]

    def __call__(self, h: Float[Array, " N"]) -> Float[Array, " N"]:
        return self.step(h, self.gradient, self.param)[0]


@jax.jit
def _iterate(held: _Held, starts: States, iterations: int) -> States:
    return jax.lax.fori_loop(0, iterations, lambda _, h: jax.vmap(held)(h), starts)


@jax.jit
def _examine(held: _Held, h: States) -> tuple[Each, States]:
    """The residual of each candidate and Newton's correction to it."""

    def correction(h: Float[Array, " N"]) -> tuple[Float[Array, ""], Float[Array, " N"]]:
        difference = held(h) - h
        # Reverse mode: learned optimizers define their own reverse pass.
        jacobian = jax.jacrev(held)(h)
        full = jnp.linalg.solve(jnp.eye(h.size) - jacobian, difference)
        full = jnp.where(jnp.isnan(full), jnp.inf, full)
        # With no residual there is nothing to correct, even where I − J is singular.
        return jnp.linalg.norm(difference), jnp.where(difference.any(), full, 0.0)

    # One at a time: LAPACK on a batch can wait for itself forever on a CPU with few threads.
    return jax.lax.map(correction, h)


@jax.jit
def _move(held: _Held, h: States, full: States) -> States:
    """The best of Newton's step and its shortened forms, candidate by candidate."""
    trials = jnp.stack([h, *(h + factor * full for factor in STEP_FACTORS)], axis=1)
    sizes = jax.vmap(jax.vmap(lambda h: jnp.linalg.norm(held(h) - h)))(trials)
    best = jnp.argmin(jnp.where(jnp.isfinite(sizes), sizes, jnp.inf), axis=1)
    return jnp.take_along_axis(trials, best[:, None, None], axis=1)[:, 0]


@jax.jit
def _updates(held: _Held, h: States) -> Each:
    return jax.vmap(lambda h: held.step(h, held.gradient, held.param)[1])(h)


@jax.jit
def _jacobian(held: _Held, h: Float[Array, " N"]) -> Float[Array, "N N"]:
    return jax.jacrev(held)(h)


def _spectral_radii(
    held: _Held, h: Float[np.ndarray, "M N"], found: np.ndarray
) -> Float[np.ndarray, " M"]:
    """Spectral radius of ∂F/∂h at each found candidate; computed once for coinciding ones."""
    radii = np.full(len(h), np.nan)
    rows = np.flatnonzero(found)
    groups = _group(h[rows], tolerance=1e-6)
    for leader in sorted(set(groups.tolist())):
        eigenvalues = np.linalg.eigvals(np.asarray(_jacobian(held, h[rows[leader]])))
        radii[rows[groups == leader]] = np.max(np.abs(eigenvalues), initial=0.0)
    return radii


def _group(h: Float[np.ndarray, "M N"], tolerance: float) -> Int[np.ndarray, " M"]:
    """For each row the first row within ``tolerance·(1 + ‖h‖)`` that leads a group."""
    leaders: list[int] = []
    groups = np.empty(len(h), int)
    for i, row in enumerate(h):
        near = np.linalg.norm(h[leaders] - row, axis=1) <= tolerance * (1 + np.linalg.norm(row))
        groups[i] = leaders[int(np.argmax(near))] if np.any(near) else i
        if groups[i] == i:
            leaders.append(i)
    return groups


def _norms(rows: Float[Array | np.ndarray, "M N"]) -> Float[np.ndarray, " M"]:
    return np.linalg.norm(np.asarray(rows), axis=1)


def _within(h: States, residual: Each, correction: States, tolerance: float) -> np.ndarray:
    allowed = tolerance * (1.0 + _norms(h))
    return (np.asarray(residual) <= allowed) & (_norms(correction) <= allowed)


def _usable(h: States, starts: Float[np.ndarray, "M N"]) -> np.ndarray:
    """Which candidates are finite and have not run away."""
    return _norms(h) <= RUNAWAY * (1.0 + np.max(_norms(starts)))
