"""What an optimizer must be to have modes: alike at every step, with real memory."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers import small_part
from optdyn.dynamics import eigenmodes, identify, linearize, settle, stability_map, step_map
from optdyn.errors import UserError

pytestmark = pytest.mark.usefixtures("x64")


def pair(init: Any, update: Any) -> optax.GradientTransformation:
    return optax.GradientTransformation(init, update)


def rounded(g, s, x=None):
    v = 0.9 * s.astype(g.dtype) / 50 + g
    return -0.1 * v, jnp.round(v * 50).astype(jnp.int8)


def rotating(g, s, x=None):
    v = 0.9 * np.exp(0.5j) * s + g
    return -0.1 * v.real, v


def test_a_cycle_of_one_step_is_none() -> None:
    tx = optax.MultiSteps(optax.sgd(0.1, momentum=0.9), 1).gradient_transformation()
    modes = eigenmodes(linearize(tx))
    np.testing.assert_allclose(modes.beta[0], 0.9, rtol=1e-12)
    np.testing.assert_allclose(modes.alpha[0], 0.1, rtol=1e-12)


@pytest.mark.parametrize(
    ("tx", "told"),
    [
        (pair(lambda p: jnp.zeros(p.shape, complex), rotating), "complex128"),
        (pair(lambda p: jnp.zeros(p.shape, jnp.int8), rounded), "int8.* depends on the gradients"),
    ],
)
def test_memory_must_be_real_floats(tx: optax.GradientTransformation, told: str) -> None:
    with pytest.raises(UserError, match=told):
        linearize(tx)


KINDS = [jnp.int16, jnp.int32, jnp.int64, jnp.uint32, jnp.float32, jnp.float64]


@pytest.mark.parametrize(
    ("dtype", "own"),
    small_part(
        [(jnp.int32, False), (jnp.uint32, True), (jnp.float32, False), (jnp.int16, True)],
        itertools.product(KINDS, [False, True]),
    ),
)
def test_count_sets_counters_of_every_kind(dtype: Any, own: bool) -> None:
    tx = pair(
        lambda p: jnp.zeros(p.shape if own else (), dtype),
        lambda g, s, x=None: (-g / (1.0 + s), s + 1),
    )
    for count in (9, np.int64(9), jnp.int32(9)):
        assert pytest.approx(-0.1) == linearize(tx, count=count).D


def test_sums_of_gradients_are_no_counters() -> None:
    # Under gradients of 1 they look like one.
    tx = pair(jnp.zeros_like, lambda g, s, x=None: (-0.1 * (s + g), s + g))
    assert step_map(tx).clock.counters == ()
    assert eigenmodes(linearize(tx, count=9)).beta == pytest.approx([1.0])


def test_what_counts_down_is_frozen_too() -> None:
    tx = pair(lambda p: jnp.int32(10), lambda g, s, x=None: (-g / s, s - 1))
    assert pytest.approx(-0.1) == linearize(tx).D
    assert pytest.approx(-0.25) == linearize(tx, state=jnp.int32(4)).D
    with pytest.raises(UserError, match=r"count: .* counts down"):
        linearize(tx, count=3)


def test_count_leaves_integers_that_count_no_steps() -> None:
    tx = optax.apply_if_finite(optax.adam(0.1), 3)
    step = step_map(tx, count=1000)
    assert int(step.state.notfinite_count) == 0
    assert int(step.state.inner_state[0].count) == 1000


def test_flags_are_as_after_the_first_step() -> None:
    modes = eigenmodes(linearize(optax.optimistic_gradient_descent(0.1)))
    np.testing.assert_allclose(modes.impulse_response(3), [-0.2, 0.1, 0.0], atol=1e-15)
    first = pair(
        lambda p: {"v": jnp.zeros_like(p), "first": True},
        lambda g, s, x=None: (
            jnp.where(s["first"], -g, -0.1 * (0.9 * s["v"] + g)),
            {"v": 0.9 * s["v"] + g, "first": False},
        ),
    )
    np.testing.assert_allclose(eigenmodes(linearize(first)).alpha, [0.1], rtol=1e-12)


def test_an_integrator_is_stable_at_no_curvature() -> None:
    lin = linearize(optax.sgd(0.1, momentum=1.0))
    assert np.isinf(eigenmodes(lin).gain[0])
    assert stability_map(lin).edge == 0.0
    nearly = linearize(optax.sgd(0.1, momentum=1 - 1e-9))
    assert stability_map(nearly).edge == pytest.approx(40.0, rel=1e-6)


@pytest.mark.parametrize("thing", [None, "adam", optax.sgd, optax.MultiSteps])
def test_what_is_no_optimizer_is_refused(thing: Any) -> None:
    for call in (linearize, settle, identify):
        with pytest.raises(UserError, match=r"optimizer: .* is not one"):
            call(thing)
    for call in (eigenmodes, stability_map):
        with pytest.raises(UserError, match=r"(linear system|optimizer): .* is not one"):
            call(thing)


def test_what_the_users_code_raises_is_told() -> None:
    def fails(g, x=None):
        raise RuntimeError("out of order")

    def unseen(g, x=None):
        return jax.pure_callback(lambda a: a, jax.ShapeDtypeStruct(g.shape, g.dtype), g)

    with pytest.raises(UserError, match="out of order"):
        linearize(optax.stateless(fails))
    with pytest.raises(UserError, match="cannot differentiate"):
        linearize(optax.stateless(unseen))


@pytest.mark.parametrize(
    "point",
    [
        {"gradient": "a"},
        {"gradient": np.ones(2)},
        {"param": np.nan},
        {"h": [np.inf]},
        {"count": True},
        {"count": 3.0},
        {"state": (optax.TraceState(np.array(["a"])), optax.EmptyState())},
    ],
)
def test_operating_points_are_finite_numbers(point: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="allowed"):
        linearize(optax.sgd(0.1, momentum=0.9), **point)
    with pytest.raises(UserError, match="not finite"):
        linearize(optax.sgd(float("nan")))
