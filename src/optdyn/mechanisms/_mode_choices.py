"""Losses of a learned optimizer reduced to chosen sets of its modes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import chain

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from optdyn.dynamics import Eigenmodes, linear_optimizer, truncate
from optdyn.dynamics._eigenmodes import modal_coordinates
from optdyn.dynamics._operating_point import OperatingPoint
from optdyn.inner_loop._problem_set import ProblemSet

NESTED = (1, 2, 4, 8)
SINGLES = (2,)


def modes_by_group(modes: Eigenmodes) -> list[list[int]]:
    """Indices of the modes, the strongest first, with a conjugate pair as one group."""
    first = np.flatnonzero(modes.beta.imag >= 0)
    return [modes.with_conjugates([int(j)]).tolist() for j in first]


def choices(modes: Eigenmodes) -> dict[str, list[int]]:
    """Sets of modes to look at, by name: nested ones from the strongest on, and single ones."""
    groups = modes_by_group(modes)
    sets = {"all modes": list(chain.from_iterable(groups))}
    for size in (size for size in NESTED if size < len(groups)):
        name = "the strongest mode" if size == 1 else f"the {size} strongest modes"
        sets[name] = list(chain.from_iterable(groups[:size]))
    for place in (place for place in SINGLES if place <= len(groups)):
        sets[f"mode {place} alone"] = groups[place - 1]
    return dict(sorted(sets.items(), key=lambda item: (len(item[1]), item[1])))


def kept_modes_curves(
    validation: ProblemSet, point: OperatingPoint, sets: Sequence[Sequence[int]]
) -> list[Float[np.ndarray, " steps"]]:
    """The mean loss curve [T + 1] of `reduce(point.modes, keep, h0)` for each of ``sets``.

    Compiled once for them all. NaN or inf from where a problem diverged.
    Raises `UserError` for an index that is not a mode's.
    """
    modes = point.modes
    whole = truncate(modes, "all")
    every = np.arange(whole.size)
    start = modal_coordinates(modes, every) @ (point.h0 - modes.linearization.state)
    losses = validation.curves(
        lambda C, D: linear_optimizer(dataclasses.replace(whole, C=C, D=D), start)
    )
    curves = []
    for keep in sets:
        kept = modes.with_conjugates(keep)
        dropped = np.setdiff1d(every, kept)
        C = np.where(np.isin(every, kept), whole.C, 0.0)
        D = whole.D + float(np.sum(modes.alpha[dropped]).real)
        found = losses(jnp.asarray(C), jnp.asarray(D))
        curves.append(validation.mean_curve(found).mean)
    return curves
