"""Units for the state variables of a linear system in which they compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

HORIZON = 50
# Units differ by powers of this: a change of units rounds nothing, and is not made for nothing.
STEP = 2.0**10


def state_units(
    A: Float[np.ndarray, "N N"], B: Float[np.ndarray, " N"], C: Float[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    """Units [N] in which a gradient moves each variable about as far as that then moves x.

    Of ``h' = A h + B g``, ``Δx = C h``. A second moment of gradients of 1e-6, beside a mean
    of them, has the unit 1e-6: in units of 1 what couples the two looks like nothing, or
    like everything, to a solver of eigenvalues.
    """
    reach, sight = _largest(A, B), _largest(A.T, C)
    relevance = np.sqrt(reach * sight)
    most = np.max(relevance, initial=0.0)
    if most == 0.0:
        return np.ones(len(B))
    # What is not driven, or not seen, comes in beside what is.
    reach, sight = (np.where(size > 0.0, size, most) for size in (reach, sight))
    unit = np.sqrt(reach / sight)
    reference = unit[int(np.argmax(relevance))]
    return STEP ** np.round(np.log(unit / reference) / np.log(STEP))


def _largest(A: Float[np.ndarray, "N N"], v: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """The largest of |A^k v|, entry by entry, over the first steps."""
    largest = np.abs(v)
    for _ in range(HORIZON):
        v = A @ v
        if np.max(np.abs(v), initial=0.0) > 1e100:
            break
        largest = np.maximum(largest, np.abs(v))
    return largest
