"""A learned optimizer with one of its mechanisms taken away."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import optax

from optdyn.dynamics import reduce
from optdyn.dynamics._operating_point import OperatingPoint
from optdyn.optimizers._componentwise_rnn import ComponentwiseRNN

ABLATIONS = {
    "no schedule": "started at the fixed point instead of its initial state",
    "linear": "linearised at the fixed point: no saturation, no adaptation; initial transient kept",
    "linear, no schedule": "linearised at the fixed point and started there",
    "one mode": "the linear optimizer's leading mode alone, initial transient kept",
}
"""Each ablation and what is done to the learned optimizer."""


def ablated(
    optimizer: ComponentwiseRNN, point: OperatingPoint
) -> dict[str, optax.GradientTransformation]:
    """``optimizer`` without some of its mechanisms, by the names of `ABLATIONS`."""
    rested = dataclasses.replace(
        optimizer, h0=jnp.asarray(point.fixed_points.h[0], optimizer.h0.dtype)
    )
    return {
        "no schedule": rested.as_optax(),
        "linear": reduce(point.modes, h0=point.h0),
        "linear, no schedule": reduce(point.modes),
        "one mode": reduce(point.modes, keep=[0], h0=point.h0),
    }
