"""A mean over problems and its standard error."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

Value = TypeVar("Value", float, np.ndarray)


@dataclasses.dataclass(frozen=True)
class MeanAndError(Generic[Value]):
    """A mean ± its standard error: of one number, or of each point of a curve.

    The error is the sample standard deviation over √n. It is infinite where it is not known:
    for fewer than two values, or where one is not finite.
    """

    mean: Value
    standard_error: Value


def mean_and_error(values: Float[np.ndarray, " n"]) -> MeanAndError[float]:
    """The mean of ``values`` and its standard error."""
    found = mean_and_error_along(np.asarray(values)[:, None])
    return MeanAndError(float(found.mean[0]), float(found.standard_error[0]))


def mean_and_error_along(values: Float[np.ndarray, "n points"]) -> MeanAndError[np.ndarray]:
    """The mean of each column of ``values`` and its standard error."""
    with np.errstate(over="ignore", invalid="ignore"):  # a problem may have diverged
        mean = np.mean(values, axis=0)
        if len(values) < 2:
            return MeanAndError(mean, np.full_like(mean, np.inf))
        error = np.std(values, axis=0, ddof=1) / np.sqrt(len(values))
    known = np.all(np.isfinite(values), axis=0)
    return MeanAndError(mean, np.where(known, error, np.inf))
