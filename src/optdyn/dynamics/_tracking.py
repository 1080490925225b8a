"""Modes followed through meta-training: which mode of one checkpoint is which of the next."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import scipy.optimize
from jaxtyping import Complex, Float

from optdyn.dynamics._eigenmodes import Eigenmodes, timescale
from optdyn.errors import UserError

OVERLAP_WEIGHT = 1.0
"""What eigenvectors at a right angle cost, in the unit of a distance 1 between eigenvalues."""


@dataclasses.dataclass(frozen=True)
class Tracks:
    """Modes matched between S checkpoints: column j is one mode throughout.

    ``index`` [S, N]: its place in each checkpoint's modes. ``beta``, ``alpha``,
    ``gain`` [S, N]: as in `Eigenmodes`. ``step`` [S−1, N]: the cost of each match,
    which says where a track is doubtful. Columns by the largest share that the mode has
    of a checkpoint's summed gain, falling: one that mattered at any time comes early.
    """

    index: np.ndarray
    beta: Complex[np.ndarray, "S N"]
    alpha: Complex[np.ndarray, "S N"]
    gain: Float[np.ndarray, "S N"]
    step: Float[np.ndarray, "transitions N"]

    @property
    def timescale(self) -> Float[np.ndarray, "S N"]:
        """Steps in which each mode decays by a factor e (`optdyn.dynamics.timescale`)."""
        return timescale(self.beta)


def track_modes(checkpoints: Sequence[Eigenmodes]) -> Tracks:
    """Match the modes of each checkpoint to those of the one before.

    The assignment of least total cost (Kuhn 1955): the distance of eigenvalues plus
    one minus the overlap ``√(|l_iᵀ r_j| |l_jᵀ r_i|)`` of eigenvectors (at most 1), plus
    the difference of the modes' shares of the summed gain, by which a mode that
    stands out is known again when training has moved all vectors.

    Raises `UserError` for no checkpoints or ones of different state sizes.
    """
    sizes = {len(modes.beta) for modes in checkpoints}
    if len(sizes) != 1:
        raise UserError(f"checkpoints: state sizes {sorted(sizes)} are not allowed (one size)")
    index, steps = [np.arange(sizes.pop())], []
    for before, after in itertools.pairwise(checkpoints):
        cost = match_cost(before, after)
        _, column = scipy.optimize.linear_sum_assignment(cost)
        index.append(column[index[-1]])
        steps.append(cost[index[-2], index[-1]])
    rows = zip(checkpoints, index, strict=True)
    order = np.argsort(-np.max([_share(m)[i] for m, i in rows], axis=0), kind="stable")
    places = np.stack(index)[:, order]

    pairs = list(zip(checkpoints, places, strict=True))
    return Tracks(
        index=places,
        beta=np.stack([modes.beta[row] for modes, row in pairs]),
        alpha=np.stack([modes.alpha[row] for modes, row in pairs]),
        gain=np.stack([modes.gain[row] for modes, row in pairs]),
        step=np.array(steps).reshape(len(steps), places.shape[1])[:, order],
    )


def match_cost(before: Eigenmodes, after: Eigenmodes) -> Float[np.ndarray, "N N"]:
    """[i, j]: what it costs to take mode i of ``before`` for mode j of ``after``."""
    distance = np.abs(before.beta[:, None] - after.beta[None, :])
    forward, backward = np.abs(before.L @ after.R), np.abs(after.L @ before.R).T
    overlap = np.minimum(np.sqrt(forward * backward), 1.0)
    share = np.abs(_share(before)[:, None] - _share(after)[None, :])
    return distance + OVERLAP_WEIGHT * (1.0 - overlap) + share


def _share(modes: Eigenmodes) -> Float[np.ndarray, " N"]:
    """Each mode's part of the summed gain; 0 where the sum is not a positive number."""
    total = np.sum(modes.gain)
    return modes.gain / total if 0 < total < np.inf else np.zeros(len(modes.gain))
