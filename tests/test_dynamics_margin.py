"""The margin is true: trainings on digits run at 0.9 and at 1.1 of it, and moved a little."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from sklearn.datasets import load_digits

from optdyn.dynamics import closed_loop

IMAGES, LABELS = load_digits(return_X_y=True)
POOLED = IMAGES[:200].reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16) / 16.0
FULL = os.environ.get("SUITE") == "full"
NUDGE = 1e-6
STEPS = 16

OPTIMIZERS: dict[str, tuple[Callable[[float], Any], float]] = {
    "momentum": (lambda rate: optax.sgd(rate, momentum=0.9), 0.2),
    "adam": (lambda rate: optax.adam(rate, eps=1e-4), 0.02),
    "muon": (optax.contrib.muon, 0.02),
}


def start() -> dict[str, Any]:
    draw = np.random.default_rng(0).normal
    return {
        "w1": jnp.asarray(draw(size=(16, 4)) / 4.0),
        "b1": jnp.zeros(4),
        "w2": jnp.asarray(draw(size=(4, 10)) / 2.0),
        "b2": jnp.zeros(10),
    }


def loss(params: Any) -> Any:
    hidden = jnp.tanh(jnp.asarray(POOLED) @ params["w1"] + params["b1"][None])
    logits = hidden @ params["w2"] + params["b2"][None]
    labels = jnp.asarray(LABELS[:200])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def step_of(tx: optax.GradientTransformation) -> Callable[[Any], Any]:
    @jax.jit
    def step(at: Any) -> Any:
        params, state = at
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return step


def floats(at: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(at) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def moved(at: Any, by: np.ndarray) -> Any:
    """(x, s) with ``by`` added to its float leaves."""
    unravel = ravel_pytree(floats(at))[1]
    parts = iter(unravel(jnp.asarray(by)))
    return jax.tree.map(
        lambda leaf: leaf + next(parts) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, at
    )


def growth(step: Callable[[Any], Any], at: Any, direction: np.ndarray) -> float:
    """The factor a step of a small nudge, from a run with it and one without.

    The nudge is made small again after each step.
    """
    grown = 0.0
    deviation = direction.real / np.linalg.norm(direction.real)
    for _ in range(STEPS):
        after, other = step(at), step(moved(at, NUDGE * deviation))
        pair = zip(floats(other), floats(after), strict=True)
        difference = np.asarray(ravel_pytree([a - b for a, b in pair])[0]) / NUDGE
        size = float(np.linalg.norm(difference))
        grown += np.log(size)
        deviation = difference / size
    return float(np.exp(grown / STEPS))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", OPTIMIZERS if FULL else ["momentum"])
def test_a_nudge_shrinks_below_the_margin_and_grows_above_it(name: str) -> None:
    make, rate = OPTIMIZERS[name]
    step = step_of(make(rate))
    params = start()
    at = (params, make(rate).init(params))
    for _ in range(60):
        at = step(at)
    found = closed_loop(make(rate), loss, *at, num=2)
    assert np.isfinite(found.margin)
    slower, faster = (
        growth(step_of(make(part * found.margin * rate)), at, found.margin_direction)
        for part in (0.9, 1.1)
    )
    assert slower < 1.0 < faster
