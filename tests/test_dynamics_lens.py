"""The lens on a training: its numbers against closed forms and the dense closed loop."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optdyn
from optdyn.dynamics import Lens, closed_loop
from optdyn.errors import UserError

CURVATURES = jnp.array([0.5, 1.0, 3.0])


def loss(params: Any) -> Any:
    return 0.5 * jnp.sum(CURVATURES * params["w"] ** 2)


def after(tx: optax.GradientTransformation, steps: int) -> tuple[Any, Any]:
    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = {"w": jnp.ones(3)}
    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.mark.parametrize(
    ("tx", "rate", "momentum", "edge"),
    [
        (optax.sgd(0.1), 0.1, 0.0, 2.0),
        (optax.sgd(0.1, momentum=0.9), 1.0, 0.9, 3.8),
        (optax.sgd(0.1, momentum=0.5, nesterov=True), 0.2, 0.5, 2.25),
    ],
)
def test_momentum_has_its_own_rate_and_edge(
    tx: optax.GradientTransformation, rate: float, momentum: float, edge: float
) -> None:
    params, state = after(tx, 3)
    found = Lens(tx, loss).scalars(state, params)
    assert found["rate/w"] == pytest.approx(rate, rel=1e-5)
    assert found["momentum/w"] == pytest.approx(momentum, abs=1e-6)
    assert found["sharpness_edge"] == pytest.approx(edge, rel=1e-5)
    margin = closed_loop(tx, loss, params, state).margin
    assert found["margin"] == pytest.approx(margin, rel=1e-3)


def test_adam_is_at_its_edge_where_38_over_the_rate_says() -> None:
    tx = optax.adam(1e-2, eps=1e-3)
    params, state = after(tx, 50)
    found = Lens(tx, loss).scalars(state, params)
    nu, count = state[0].nu["w"], 51
    rate = 1e-2 / (jnp.sqrt(0.999 * nu / (1 - 0.999**count)) + 1e-3)
    # Bias correction of the first moment: rates are larger by 1 / (1 - 0.9^51).
    preconditioned = float(jnp.max(rate * CURVATURES)) / (1 - 0.9**count)
    expected = 38.0 / preconditioned
    assert found["margin"] == pytest.approx(expected, rel=1e-3)
    assert found["momentum/w"] == pytest.approx(0.9, abs=1e-6)


def test_masks_and_partitions_give_each_leaf_its_own_numbers() -> None:
    decayed = optax.add_decayed_weights(0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9), decayed, optax.scale(-0.01))
    params = {"w": jnp.ones((20, 30)), "b": jnp.ones(30)}
    lens = Lens(tx, lambda p: jnp.sum(p["w"] ** 2) + jnp.sum(p["b"] ** 2))
    found = lens.scalars(tx.init(params), params, curvature=False)
    assert found["decay/w"] == pytest.approx(1e-3, rel=1e-5)
    assert found["decay/b"] == pytest.approx(0.0, abs=1e-9)
    assert found["rate/w"] == pytest.approx(0.1, rel=1e-5)
    both = optax.partition(
        {"slow": optax.sgd(1e-3), "fast": optax.sgd(1e-2, momentum=0.9)},
        {"w": "slow", "b": "fast"},
    )
    found = Lens(both, lens.loss_fn).scalars(both.init(params), params, curvature=False)
    assert found["rate/w"] == pytest.approx(1e-3, rel=1e-5)
    assert found["rate/b"] == pytest.approx(1e-1, rel=1e-5)


def test_coupled_optimizers_get_the_margin_of_the_closed_loop() -> None:
    tx = optax.lamb(1e-2)
    params, state = after(tx, 5)
    found = Lens(tx, loss).scalars(state, params)
    assert found["margin"] == pytest.approx(closed_loop(tx, loss, params, state).margin, rel=1e-3)


def test_bfloat16_parameters_and_batches() -> None:
    tx = optax.sgd(0.1, momentum=0.9)
    params = {"w": jnp.ones(64, jnp.bfloat16)}
    scales = jnp.linspace(0.1, 4.0, 64)
    lens = Lens(tx, lambda p, batch: 0.5 * jnp.sum(batch * p["w"].astype(jnp.float32) ** 2))
    found = lens.scalars(tx.init(params), params, scales)
    assert found["margin"] == pytest.approx(38.0 / 4.0, rel=0.03)
    assert all(isinstance(value, float) for value in found.values())
    with pytest.raises(UserError, match="batch: loss_fn needs one"):
        lens.scalars(tx.init(params), params)


def test_lanczos_counts_its_products() -> None:
    """The top multiplier of a large network takes at most 2 · 20 + 2 gradients."""
    calls = []

    def counted(params: Any) -> Any:
        jax.debug.callback(lambda: calls.append(1))
        return 0.5 * jnp.sum(jnp.linspace(0.0, 0.8, 4000).at[-1].set(1.0) * params**2)

    tx, params = optax.sgd(0.5, momentum=0.9), jnp.ones(4000)
    found = Lens(tx, counted).scalars(tx.init(params), params)
    assert len(calls) <= 42
    assert found["sharpness"] == pytest.approx(0.5, rel=1e-3)
    assert np.isfinite(found["margin"])


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_clip_that_acts_is_counted_as_the_dense_jacobian_has_it(nesterov: bool) -> None:
    tx = optax.chain(
        optax.clip_by_global_norm(0.3), optax.sgd(0.5, momentum=0.6, nesterov=nesterov)
    )

    def bent(params: Any) -> Any:
        return loss(params) + jnp.sum(params["w"]) ** 2 + 0.1 * jnp.sum(params["w"] ** 4)

    params = {"w": jnp.array([0.7, -0.4, 1.1])}
    state = tx.init(params)
    found = Lens(tx, bent).scalars(state, params)
    size = jnp.linalg.norm(jax.grad(bent)(params)["w"])
    assert found["clip_factor"] == pytest.approx(float(0.3 / size), rel=1e-4)
    whole = closed_loop(tx, bent, params, state)
    assert found["margin"] == pytest.approx(whole.margin, rel=1e-3)
    own = complex(found["multiplier/0/real"], found["multiplier/0/imag"])
    assert np.min(np.abs(whole.largest - own)) < 1e-4


def test_a_clip_that_does_not_act_and_clips_of_single_gradients() -> None:
    params = {"w": jnp.array([0.7, -0.4, 1.1])}
    far = optax.chain(optax.clip_by_global_norm(1e3), optax.rmsprop(0.01, initial_scale=1.0))
    found = Lens(far, loss).scalars(far.init(params), params)
    assert found["clip_factor"] == pytest.approx(1.0, rel=1e-3)
    each = optax.chain(optax.clip(1.0), optax.sgd(0.5))
    state = each.init(params)
    found = Lens(each, loss).scalars(state, params)
    assert found["margin"] == pytest.approx(closed_loop(each, loss, params, state).margin, rel=1e-3)


def test_cycles_of_steps_have_the_margin_of_the_whole_cycle() -> None:
    tx = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    params, state = after(tx, 2)
    found = Lens(tx, loss).scalars(state, params)
    assert found["margin"] == pytest.approx(20.0 / 3.0, rel=1e-3)
    assert "rate/w" not in found


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_leaf_has_its_own_numbers_beside_one_that_is_treated_as_a_whole(dtype: Any) -> None:
    """Muon on the matrix; momentum, in the precision of the parameters, on the vector."""
    kinds = {"w": optax.contrib.muon(0.1), "b": optax.sgd(0.1, momentum=0.5)}
    tx = optax.partition(kinds, {"w": "w", "b": "b"})
    params = {"w": jnp.eye(3, dtype=dtype), "b": jnp.ones(4, dtype)}
    found = Lens(tx, loss).scalars(tx.init(params), params, curvature=False)
    assert found["rate/b"] == pytest.approx(0.2, rel=1e-5)
    assert found["momentum/b"] == pytest.approx(0.5, rel=1e-5)
    assert np.isnan([found["rate/w"], found["momentum/w"], found["decay/w"]]).all()


def test_a_trust_ratio_leaves_no_rate_to_any_leaf() -> None:
    tx, params = optax.lamb(0.1), {"w": jnp.ones((2, 3)), "b": jnp.zeros(4)}
    state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)[1]
    found = Lens(tx, loss).scalars(state, params, curvature=False)
    assert np.isnan(list(found.values())).all()


def test_an_average_of_updates_has_its_rates() -> None:
    """Adam, then the mean of its updates: the rate of Adam, which fades with the larger β."""
    tx = optax.chain(optax.adam(0.01, b1=0.9, eps=1e-12), optax.ema(0.5))
    params, state = after(tx, 50)
    found = Lens(tx, loss).scalars(state, params, curvature=False)
    alone = Lens(optax.adam(0.01, b1=0.9, eps=1e-12), loss).scalars(state[0], params)
    assert found["rate/w"] == pytest.approx(alone["rate/w"], rel=1e-4)
    assert found["momentum/w"] == pytest.approx(0.9, rel=1e-4)


def test_schedule_free_parameters_follow_what_they_are_averaged_with() -> None:
    """A constant gradient moves all three sequences by the learning rate a step."""
    tx = optax.contrib.schedule_free_sgd(0.1)
    params, state = after(tx, 10)
    found = Lens(tx, loss).scalars(state, params, curvature=False)
    assert found["rate/w"] == pytest.approx(0.1, rel=1e-4)
    assert found["decay/w"] == 0.0
    assert 0.8 < found["momentum/w"] < 1.0


def test_steps_on_a_plateau_are_no_cycle() -> None:
    plateau = optax.chain(optax.adam(0.02), optax.contrib.reduce_on_plateau(patience=3))
    params, state = after(optax.adam(0.02), 10)
    alone = Lens(optax.adam(0.02), loss).scalars(state, params)
    found = Lens(plateau, loss).scalars((state, plateau.init(params)[1]), params)
    assert found["rate/w"] == pytest.approx(alone["rate/w"], rel=1e-5)
    assert found["margin"] == pytest.approx(alone["margin"], rel=1e-4)


@pytest.mark.parametrize("inner", [optax.adam, optax.sgd])
def test_a_warm_up_begins_at_a_rate_of_zero(inner: Any) -> None:
    tx = inner(optax.linear_schedule(0.0, 0.1, 10))
    params = {"w": jnp.ones(3)}
    found = Lens(tx, loss).scalars(tx.init(params), params, curvature=False)
    assert found["rate/w"] == 0.0


def test_the_second_look_compiles_nothing() -> None:
    traced = []

    def watched(params: Any, batch: Any) -> Any:
        traced.append(1)
        return jnp.sum(batch * params["w"] ** 2)

    tx = optax.sgd(1e-2, momentum=0.9)
    lens, params = Lens(tx, watched), {"w": jnp.ones(3)}
    lens.scalars(tx.init(params), params, jnp.ones(3))
    before = len(traced)
    lens.scalars(tx.init(params), {"w": 2 * jnp.ones(3)}, 2 * jnp.ones(3))
    assert len(traced) == before


def test_rates_that_go_by_a_leafs_size_are_those_of_the_whole_leaf() -> None:
    params = {"w": jnp.ones((16, 12)), "b": jnp.ones(12)}
    mask = lambda tree: jax.tree.map(lambda x: x.size > 100, tree)  # noqa: E731
    tx = optax.chain(
        optax.stateless(lambda u, _: jax.tree.map(lambda g: g / g.shape[0], u)),
        optax.add_decayed_weights(0.1, mask=mask),
        optax.scale(-0.01),
    )
    found = optdyn.Lens(tx, lambda p: 0.0).scalars(tx.init(params), params, curvature=False)
    assert found["decay/w"] == pytest.approx(0.001)
    assert found["decay/b"] == 0.0
    assert found["rate/w"] == pytest.approx(0.01 / 16)
    assert found["rate/b"] == pytest.approx(0.01 / 12)


def test_what_cannot_be_read_is_nan_and_a_rate_of_zero_is_zero() -> None:
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
    loss = lambda p: jnp.sum(p["w"] ** 2) + jnp.sum(p["b"] ** 2)  # noqa: E731
    lars = optdyn.Lens(optax.lars(0.1), loss).scalars(optax.lars(0.1).init(params), params)
    assert np.isnan(lars["rate/w"])
    warm = optax.sgd(optax.linear_schedule(0.0, 0.1, 10), momentum=0.9)
    found = optdyn.Lens(warm, loss).scalars(warm.init(params), params, curvature=False)
    assert found["rate/w"] == 0.0


def test_memory_that_never_fades_leaves_the_margin_to_the_closed_loop() -> None:
    x, loss = jnp.array([1.0, 2.0]), lambda x: jnp.sum(jnp.array([1.0, 3.0]) * x**2)
    tx = optax.contrib.schedule_free_sgd(0.1)
    state = tx.init(x)
    found = optdyn.Lens(tx, loss).scalars(state, x)
    assert found["margin"] == optdyn.closed_loop(tx, loss, x, state).margin


def test_what_the_lens_cannot_look_at_is_refused() -> None:
    tx, x = optax.sgd(0.1), jnp.ones(2)
    lens = optdyn.Lens(tx, lambda x: jnp.sum(x**2))
    with pytest.raises(UserError, match=r"within jax\.jit"):
        jax.jit(lens.scalars)(tx.init(x), x)
    whole = {"x": x, "n": jnp.int32(1)}
    with pytest.raises(UserError, match=r"params\['n'\]: int32"):
        optdyn.Lens(tx, lambda p: jnp.sum(p["x"] ** 2)).scalars(tx.init(whole), whole)


def test_gradients_whose_squares_underflow_count_as_dead() -> None:
    tx, x = optax.adam(0.1), jnp.ones(3)
    curvature = jnp.array([2.0, 1.0, 1e-25])
    state = tx.update(curvature * x, tx.init(x))[1]
    found = Lens(tx, lambda x: 0.5 * jnp.sum(curvature * x**2)).scalars(state, x)
    assert np.isfinite(found["margin"])
    assert found["sharpness_edge"] == pytest.approx(3.8, rel=1e-4)
