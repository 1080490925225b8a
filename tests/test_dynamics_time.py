"""Steps that depend on the step count, come in cycles, or draw random numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers import small_part
from optdyn.dynamics import (
    closed_loop_radius,
    dissect,
    eigenmodes,
    identify,
    linearize,
    settle,
    stability_map,
    step_map,
)
from optdyn.dynamics._schedules import counting
from optdyn.errors import UserError

pytestmark = pytest.mark.usefixtures("x64")


def every(k: int, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.MultiSteps(inner, k, accumulator_dtype=jnp.float64).gradient_transformation()


def at_steps(k: int, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Acts at every k-th step of a counter that never starts anew."""
    return optax.conditionally_mask(inner, lambda step: step % k == 0)


def factor_a_step(tx: optax.GradientTransformation, curvature: float, steps: int) -> float:
    """|x| shrinks by this a step on curvature·x²/2, from the optimizer's own run."""

    def advance(carry: Any, _: None) -> tuple[Any, jax.Array]:
        x, state, total = carry
        update, state = tx.update(curvature * x, state, x)
        return (x + update, state, total), x[0]

    x = jnp.ones(1)
    path = jax.lax.scan(advance, (x, tx.init(x), 0.0), None, length=steps)[1]
    size = np.maximum.reduceat(np.abs(np.asarray(path)), np.arange(0, steps, 12))
    middle, last = len(size) // 2, len(size) - 1
    return float((size[last] / size[middle]) ** (1.0 / (12 * (last - middle))))


FEW_CYCLES = {
    "mask": (at_steps(2, optax.sgd(0.1)), 5.0, 0.5**0.5),
    "both": (at_steps(3, every(2, optax.sgd(0.1, momentum=0.5))), 0.5, None),
    "behind_a_memory": (optax.chain(optax.trace(0.9), at_steps(2, optax.scale(-0.02))), 0.1, None),
}
CYCLES = {
    **FEW_CYCLES,
    "multi_steps": (every(4, optax.sgd(0.1)), 5.0, 0.5**0.25),
    "apply_every": (optax.chain(optax.apply_every(3), optax.sgd(0.1)), 1.0, None),
}


@pytest.mark.parametrize("name", small_part(FEW_CYCLES, CYCLES))
def test_cycles_are_composed(name: str) -> None:
    tx, curvature, radius = CYCLES[name]
    lin = linearize(tx)
    if radius is None:
        radius = factor_a_step(tx, curvature, 600)
    assert closed_loop_radius(lin, np.array([curvature]))[0] == pytest.approx(radius, rel=1e-6)


def test_one_map_from_cycle_to_cycle() -> None:
    """Momentum after 4 gathered gradients: one step of momentum a cycle."""
    lin = linearize(every(4, optax.sgd(0.1, momentum=0.9)))
    modes = eigenmodes(lin)
    assert lin.period == 4
    assert modes.beta[0].real == pytest.approx(0.9, rel=1e-12)
    assert modes.alpha[0].real == pytest.approx(0.1, rel=1e-12)
    assert modes.timescale[0] == pytest.approx(-4 / np.log(0.9), rel=1e-12)
    assert stability_map(lin).edge == pytest.approx(38.0, rel=1e-6)
    assert "cycles of 4" in str(lin)


def test_an_object_with_two_methods_is_an_optimizer() -> None:
    """Heavy ball on the mean of 4 gradients."""
    tx = optax.MultiSteps(optax.sgd(0.1, momentum=0.9), 4, accumulator_dtype=jnp.float64)
    assert not isinstance(tx, optax.GradientTransformation)
    assert stability_map(tx).edge == pytest.approx(38.0, rel=1e-6)
    found = identify(tx, candidates=["momentum"])
    assert found.exact
    assert found.nearest.hyperparameters == pytest.approx({"alpha": 0.1, "beta": 0.9}, rel=1e-6)


def test_a_cycle_starts_where_the_state_is() -> None:
    tx, x = every(3, optax.sgd(0.5)), jnp.zeros(1)
    _, state = tx.update(jnp.ones(1), tx.init(x), x)
    lin = linearize(tx, state=state, gradient=1.0)
    assert [one.D != 0.0 for one in lin.cycle] == [False, True, False]
    assert lin.drift == pytest.approx(-0.5, rel=1e-12)


def test_an_optimizer_in_cycles_is_recognised() -> None:
    found = identify(every(3, optax.sgd(0.1, momentum=0.9)), candidates=["momentum", "nesterov"])
    assert found.exact
    assert found.nearest.hyperparameters["beta"] == pytest.approx(0.9, rel=1e-6)
    assert found.name == "momentum in cycles of 3 steps"


def in_a_growing_cycle(gradients, state, params=None):
    """Acts when a counter is up, which then starts anew, each time from higher."""
    left, limit = state
    act = left == 0
    return jnp.where(act, -0.1, 0.0) * gradients, (
        jnp.where(act, limit, left - 1),
        limit + act.astype(jnp.int32),
    )


def test_cycles_of_no_length_are_refused() -> None:
    tx = optax.GradientTransformation(lambda p: (jnp.int32(0), jnp.int32(1)), in_a_growing_cycle)
    with pytest.raises(UserError, match="not the same at every step"):
        linearize(tx)


@pytest.mark.parametrize(
    "tx",
    [
        optax.noisy_sgd(0.1, eta=0.01, gamma=0.55, key=0),
        pytest.param(optax.add_noise(0.1, 0.5, jax.random.key(0)), marks=pytest.mark.full),
        optax.chain(
            optax.scale_by_adam(), optax.add_noise(1e-3, 0.5, jax.random.key(0)), optax.clip(0.7)
        ),
        optax.GradientTransformation(
            lambda p: jnp.int32(0),
            lambda g, s, p=None: (
                -0.1 * g * jax.random.bernoulli(jax.random.fold_in(jax.random.key(0), s)),
                s + 1,
            ),
        ),
    ],
    ids=["noisy_sgd", "add_noise", "behind_a_clip", "dropped_by_count"],
)
def test_randomness_is_refused_by_name(tx: optax.GradientTransformation) -> None:
    for call in (linearize, identify, dissect):
        with pytest.raises(UserError, match="random"):
            call(tx)


WARM_UP = optax.warmup_cosine_decay_schedule(0.01, 0.1, 100, 1000, end_value=0.02)


def test_a_schedule_is_told_from_a_bias_correction() -> None:
    step = step_map(optax.adamw(WARM_UP))
    found = counting(step, 1.0)
    names = [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(step.state)
    ]
    assert [names[i] for i in found.transient] == ["[0].count"]
    schedule = found.schedule
    assert schedule is not None
    assert [names[i] for i in schedule.counters] == ["[2].count"]
    assert (schedule.peak, schedule.end_count) == (100, 1000)
    np.testing.assert_allclose([schedule.start, schedule.end], [0.1, 0.2], rtol=1e-9)


def test_a_schedule_without_an_end() -> None:
    schedule = counting(step_map(optax.sgd(lambda count: 0.1 / jnp.sqrt(1 + count))), 1.0).schedule
    assert schedule is not None
    assert (schedule.peak, schedule.end_count) == (0, None)
    assert "still changing" in schedule.words(0.1)


def test_adam_under_a_schedule_is_adam() -> None:
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(WARM_UP))
    found = identify(tx, candidates=["adam", "momentum"])
    assert found.name == "adam with a schedule"
    assert found.exact
    assert found.nearest.hyperparameters["alpha"] == pytest.approx(0.1, rel=1e-6)
    assert "0.1 at count 0, 1 at count 100, 0.2 from count 1000 on" in str(found)


def test_a_warm_up_is_looked_at_at_its_peak() -> None:
    tx = optax.sgd(optax.warmup_cosine_decay_schedule(0.0, 0.1, 100, 1000), momentum=0.9)
    found = dissect(tx)
    assert found.stability.edge == pytest.approx(38.0, rel=1e-9)
    assert "count 100" in found.where
    assert "0 at count 0, 1 at count 100, 0 from count 1000 on" in str(found)
    ended = dissect(tx, count=5000)
    assert ended.part_of_peak == 0.0
    assert "here it is 0" in str(ended)
    half = dissect(tx, state=step_map(tx, count=50).state)
    assert half.part_of_peak == pytest.approx(0.5, rel=1e-9)
    assert stability_map(tx, count=100).edge == pytest.approx(38.0, rel=1e-9)


def test_a_schedule_of_the_weight_decay_alone() -> None:
    tx = optax.chain(
        optax.trace(0.9),
        optax.add_decayed_weights(optax.linear_schedule(0.5, 0.0, 100)),
        optax.scale_by_learning_rate(0.1),
    )
    found = dissect(tx, params=np.ones(2))
    assert found.schedule is None
    assert found.rate == pytest.approx(1.0, rel=1e-9)
    assert found.linearization.weight_decay == pytest.approx(-0.05, rel=1e-9)
    assert found.decay_in_words == (
        "the weight decay follows the step count: 0.05 at count 0, 0 from count 100 on"
    )


def test_a_weight_decay_that_follows_the_rate_is_no_second_schedule() -> None:
    found = counting(step_map(optax.adamw(WARM_UP, weight_decay=0.1), params=np.ones(1)), 1.0)
    assert found.decay is None
    assert found.schedule is not None
    assert found.schedule.peak == 100


@pytest.mark.parametrize(("first", "last"), [(5000, 5050), (777_000, 777_002)])
def test_a_short_phase_of_a_schedule_is_seen(first: int, last: int) -> None:
    tx = optax.sgd(lambda k: jnp.where((k >= first) & (k < last), 1.0, 0.1))
    schedule = counting(step_map(tx), 1.0).schedule
    assert schedule is not None
    assert (schedule.peak, schedule.end_count) == (first, last)
    np.testing.assert_allclose([schedule.start, schedule.end], [0.1, 0.1], rtol=1e-9)


def test_bias_correction_is_seen_after_it_has_died_out() -> None:
    """An average that corrects its bias: at rest α = 0.01, stable below 380."""
    found = dissect(optax.chain(optax.ema(0.9), optax.scale(-0.1)))
    assert found.stability.edge == pytest.approx(380.0, rel=1e-9)
    assert found.schedule is None


def test_a_memory_in_low_precision_rounds_no_derivative() -> None:
    tx = optax.adam(0.01, mu_dtype=jnp.bfloat16)
    lin = linearize(tx, state=settle(tx, 1.0), count=10**6)
    # The coefficient itself is a bfloat16 in this optimizer.
    assert lin.C[0] == pytest.approx(-0.01 * 0.8984375 / np.sqrt(0.999), rel=1e-7)
