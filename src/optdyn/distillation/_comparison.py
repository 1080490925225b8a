"""How much of an optimizer's advantage another one keeps."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from optdyn.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Kept:
    """``fraction`` ± ``standard_error`` of an advantage over a baseline that is kept.

    1: all of it, 0: no better than the baseline. NaN where a run diverged or there
    is no advantage to keep.
    """

    fraction: float
    standard_error: float


def advantage_kept(
    candidate: Float[np.ndarray, " problems"],
    learned: Float[np.ndarray, " problems"],
    baseline: Float[np.ndarray, " problems"],
) -> Kept:
    """``mean(baseline − candidate)/mean(baseline − learned)`` of meta-objectives.

    On the same problems. Raises `UserError` for different numbers of problems.
    """
    return share_of_advantage(baseline, candidate, learned, baseline)


def share_of_advantage(
    before: Float[np.ndarray, " problems"],
    after: Float[np.ndarray, " problems"],
    learned: Float[np.ndarray, " problems"],
    baseline: Float[np.ndarray, " problems"],
) -> Kept:
    """``mean(before − after)/mean(baseline − learned)`` of meta-objectives.

    What the step from one optimizer to another wins of a learned one's advantage. On the
    same problems; the standard error is that of a ratio of means (delta method, paired).
    Raises `UserError` for different numbers of problems.
    """
    if not before.shape == after.shape == learned.shape == baseline.shape:
        raise UserError("advantage: the meta-objectives are not of the same problems")
    with np.errstate(invalid="ignore"):  # both may have diverged
        rows = np.stack([before - after, baseline - learned]).astype(np.float64)
    if not np.all(np.isfinite(rows)) or not np.mean(rows[1]) > 0:
        return Kept(float("nan"), float("nan"))
    won, whole = np.mean(rows, axis=1)
    fraction = won / whole
    if rows.shape[1] < 2:
        return Kept(float(fraction), float("inf"))
    spread = np.std(rows[0] - fraction * rows[1], ddof=1) / whole
    return Kept(float(fraction), float(spread / np.sqrt(rows.shape[1])))
