"""What is measured of an optimizer's mechanisms, as results hold it."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float64

from optdyn.inner_loop._statistics import MeanAndError


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredDensity:
    """Of |g| over problems, components and steps: ``quantiles``, and which they are (``at``).

    ``count``, ``edges``: a histogram on a logarithmic axis.
    """

    at: Float64[np.ndarray, " quantiles"]
    quantiles: Float64[np.ndarray, " quantiles"]
    count: Float64[np.ndarray, " bins"]
    edges: Float64[np.ndarray, " bins+1"]


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredUpdate:
    """The update function at the initial state (``start``) and at the fixed point h* (``rest``).

    ``largest_part``: the part of the linear update that is left at each problem's largest
    gradient, at the initial state.
    """

    gradient: Float64[np.ndarray, " sizes"]
    start: Float64[np.ndarray, " sizes"]
    rest: Float64[np.ndarray, " sizes"]
    threshold_start: float
    threshold_rest: float
    rate_start: float
    rate_rest: float
    largest_part: MeanAndError[float]


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredSchedule:
    """The learning rate under zero gradients from the initial state, and on problems."""

    rate: Float64[np.ndarray, " steps"]
    on_problems: MeanAndError[Float64[np.ndarray, " steps"]]


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredAdaptation:
    """The learning rate at the fixed points h*(g) that constant gradients lead to.

    ``ratio``: of the rate at each problem's 95 % quantile of |g| to that at its 5 % quantile;
    ``slope_ratio``: the same of the slope.
    """

    gradient: Float64[np.ndarray, " constants"]
    rate: Float64[np.ndarray, " constants"]
    slope: Float64[np.ndarray, " constants"]
    ratio: MeanAndError[float]
    slope_ratio: MeanAndError[float]


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredPortrait:
    """States visited, in their principal components.

    ``explained``: each component's part of the variance; ``trajectories`` of some components;
    ``fixed_curve``: the points h*(g) at ``gradient``.
    """

    explained: Float64[np.ndarray, " components"]
    trajectories: Float64[np.ndarray, "problems steps components"]
    fixed_curve: Float64[np.ndarray, "constants components"]
    gradient: Float64[np.ndarray, " constants"]
    rest: Float64[np.ndarray, " components"]
    start: Float64[np.ndarray, " components"]


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredPath:
    """States on the way from h0 under zero gradients, the fixed point h* the last of them.

    ``step``: after how many steps (inf for h*). ``update``: Δx of each at the signed
    ``gradient``. ``portrait``: where they lie in the portrait.
    """

    step: Float64[np.ndarray, " stops"]
    gradient: Float64[np.ndarray, " gradients"]
    update: Float64[np.ndarray, "stops gradients"]
    portrait: Float64[np.ndarray, "stops components"]


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredLinear:
    """Of the optimizer linearised at h*: impulse response, and gain at angular frequencies."""

    impulse: Float64[np.ndarray, " impulses"]
    frequency: Float64[np.ndarray, " frequencies"]
    response: Float64[np.ndarray, " frequencies"]


@dataclasses.dataclass(frozen=True, eq=False)
class Mechanisms:
    """Everything measured of one optimizer; see the functions of `_nonlinear`."""

    density: MeasuredDensity
    update: MeasuredUpdate
    schedule: MeasuredSchedule
    adaptation: MeasuredAdaptation
    portrait: MeasuredPortrait
    path: MeasuredPath
    linear: MeasuredLinear
