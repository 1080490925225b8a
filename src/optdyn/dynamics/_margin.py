"""The margin: by what factor all updates can grow before a direction swings apart."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import jax.numpy as jnp
import numpy as np

from optdyn.dynamics._multipliers import (
    Product,
    inverse_iteration,
    is_oscillating,
    quick_spectra,
    row_scales,
)

if TYPE_CHECKING:
    from jaxtyping import Bool, Complex, Float, PyTree

LARGEST_WHOLE = 500
"""Entries up to which the search for the margin finds all eigenvalues at every factor."""
STEP_UP = 1.5
ROUNDING = 1e-9
SHORTEST_PERIOD = 3.0
"""Steps; a swing as fast as this comes from a step that is too long, whatever the curvature."""
LONGEST_PERIOD = 12.0
"""Steps: what swings more slowly than this in a plane, and grows, does so at any step's length."""
ONE_LINE = 1e-6
SOUGHT = 4
"""Multipliers of each kind among which one that swings apart is sought, in large trainings."""
LARGEST_MARGIN = 1e6
MARGIN_TOLERANCE = 1e-4


class LinearStep(Protocol):
    """The derivative of one training step, as `TrainingStep` has it."""

    @property
    def params(self) -> PyTree: ...
    @property
    def frozen(self) -> Bool[np.ndarray, " dim"]: ...
    @property
    def dim(self) -> int: ...
    @property
    def num_params(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def times(self) -> Callable[..., Any]: ...
    @property
    def course(self) -> Callable[..., Any]: ...
    def matrix(self, factor: float = 1.0, /) -> Float[np.ndarray, "dim dim"]: ...
    def curvature_along(self, v: Float[np.ndarray, " n"], /) -> float: ...
    def params_of(self, z: np.ndarray, /) -> PyTree: ...


def _scaled(step: LinearStep, dense: np.ndarray, factor: float) -> np.ndarray:
    """The step's matrix where all updates are ``factor`` times as large."""
    if step.steps > 1:
        return step.matrix(factor)
    n = step.num_params
    unchanged = np.eye(n, len(dense))
    scaled = dense.copy()
    scaled[:n] = factor * (dense[:n] - unchanged) + unchanged
    scaled[:, step.frozen] = 0.0
    scaled[step.frozen] = 0.0
    return scaled


def product_of(step: LinearStep, factor: float) -> Product:
    return lambda v: np.asarray(step.times(jnp.asarray(v), factor), np.float64)


Direction: TypeAlias = "Complex[np.ndarray, ' dim'] | None"


def any_margin(step: LinearStep, dense: np.ndarray | None) -> tuple[float, Direction]:
    """The margin of swings of any period, if shorter steps end them; else of fast ones alone."""
    margin, edge = _margin(_too_long(step, dense, float("inf")))
    return (margin, edge) if margin > 0.0 else _margin(_too_long(step, dense, LONGEST_PERIOD))


def _too_long(
    step: LinearStep, dense: np.ndarray | None, longest_period: float
) -> Callable[[float], Direction]:
    """The direction that swings apart with all updates times a factor; None if there is none.

    Its multiplier is outside the unit circle and turns within ``longest_period`` steps, and the
    loss curves upwards along it; where it turns within `SHORTEST_PERIOD` steps, however the loss
    curves (weight decay alone can overshoot). One that takes more than `LONGEST_PERIOD` steps
    counts where it goes to and fro along one line of the parameters: a preconditioner can also
    turn descent slowly in a plane, at any step's length. Of a cycle of steps, cycles are meant;
    one that its steps turn round within a cycle counts, too.
    """

    @functools.cache
    def scales() -> np.ndarray:
        return row_scales(product_at(1.0), step.dim)

    def product_at(factor: float) -> Product:
        return (
            product_of(step, factor) if dense is None else _scaled(step, dense, factor).__matmul__
        )

    def found(factor: float) -> Iterator[tuple[complex, np.ndarray]]:
        if dense is not None and step.dim <= LARGEST_WHOLE:
            scaled = _scaled(step, dense, factor)
            values = np.linalg.eigvals(scaled).astype(complex)
            for i in suspects(values):
                yield values[i], inverse_iteration(scaled, values, i)
            return
        for spectrum in quick_spectra(product_at(factor), scales(), SOUGHT):
            for i in suspects(spectrum.values):
                yield spectrum.values[i], spectrum.vectors[i]

    def outside(factor: float) -> Direction:
        return next((v for value, v in found(factor) if counts(value, v, factor)), None)

    def counts(value: complex, vector: Complex[np.ndarray, " dim"], factor: float) -> bool:
        turn = abs(np.angle(value))
        if turn >= 2 * np.pi / SHORTEST_PERIOD:
            return True
        turned = step.steps > 1 and _turned_round(step, vector, factor)
        if not (turned or is_oscillating(np.array([value]))[0]):
            return False
        slow = turn < 2 * np.pi / LONGEST_PERIOD and not turned
        if slow and not _on_one_line(vector[: step.num_params]):
            return False
        return curvature_of(step, vector) > 0

    def suspects(values: Complex[np.ndarray, " K"]) -> list[int]:
        """The most negative real parts first: they are nearly always the ones."""
        size = np.abs(values)
        swinging = (size > 1.0 + ROUNDING) & (values.imag >= 0)
        turning = np.abs(np.angle(values)) >= 2 * np.pi / longest_period
        if step.steps == 1:
            swinging &= is_oscillating(values)
        else:
            turning |= ~is_oscillating(values)  # by how far within a cycle is seen later
        return sorted(np.flatnonzero(swinging & turning), key=lambda i: values[i].real)

    return outside


def _turned_round(step: LinearStep, vector: Complex[np.ndarray, " dim"], factor: float) -> bool:
    """Whether a step of the cycle turns the parameters' part of a direction round."""
    parts = [np.asarray(step.course(jnp.asarray(p), factor)) for p in (vector.real, vector.imag)]
    path = np.concatenate([vector[None], parts[0] + 1j * parts[1]])[:, : step.num_params]
    return bool(np.any(np.sum(path[1:] * path[:-1].conj(), axis=1).real < 0.0))


def _on_one_line(x: Complex[np.ndarray, " num_params"]) -> bool:
    """Whether x is a real vector times a complex number."""
    size = float(np.vdot(x, x).real)
    # |xᵀx| = xᴴx for a real vector, whatever its phase; it is less for one that turns.
    return size > 0 and abs(complex(x @ x)) >= (1.0 - ONE_LINE) * size


def _margin(too_long: Callable[[float], Direction]) -> tuple[float, Direction]:
    """The factor on all updates from which on a direction swings apart, and that direction."""
    inside, outside = 1.0, 1.0
    edge = too_long(1.0)
    if edge is not None:
        while (found := too_long(inside)) is not None:
            edge, outside, inside = found, inside, inside / STEP_UP
            if inside < 1 / LARGEST_MARGIN:
                return 0.0, edge
    else:
        while edge is None:
            inside, outside = outside, outside * STEP_UP
            if outside > LARGEST_MARGIN:
                return float("inf"), None
            edge = too_long(outside)
    while outside / inside > 1 + MARGIN_TOLERANCE:
        middle = float(np.sqrt(inside * outside))
        if (found := too_long(middle)) is not None:
            edge, outside = found, middle
        else:
            inside = middle
    return float(np.sqrt(inside * outside)), edge


def curvature_of(step: LinearStep, vector: Complex[np.ndarray, " dim"]) -> float:
    """vᴴHv / vᴴv over the parameters; NaN where the direction has no part there."""
    x = vector[: step.num_params]
    size = float(np.vdot(x, x).real)
    if size <= np.finfo(float).eps ** 2:
        return float("nan")
    parts = [part for part in (x.real, x.imag) if np.any(part)]
    return sum(step.curvature_along(np.ascontiguousarray(part)) for part in parts) / size
