"""The closed loop of real trainings against dense Jacobians, closed forms and actual runs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array
from jax.flatten_util import ravel_pytree
from scipy.linalg import matrix_balance

import optdyn
from optdyn.dynamics import Lens, closed_loop, linearize, stability_map
from optdyn.dynamics._multipliers import is_oscillating, iterated_spectrum, row_scales
from optdyn.dynamics._training_step import linearized_step
from optdyn.errors import UserError
from optdyn.inner_loop._evaluated import with_extra_args
from optdyn.precision import double_precision, to_float64

DATA = np.random.default_rng(0)
INPUTS = jnp.asarray(DATA.normal(size=(16, 3)), jnp.float32)
TARGETS = jnp.sin(INPUTS.sum(axis=1, keepdims=True))
START = {
    "w1": jnp.asarray(0.5 * DATA.normal(size=(3, 4)), jnp.float32),
    "b1": jnp.zeros(4),
    "w2": jnp.asarray(0.5 * DATA.normal(size=(4, 1)), jnp.float32),
}


def loss(params: Any) -> Any:
    hidden = jnp.tanh(INPUTS @ params["w1"] + params["b1"][None])
    return jnp.mean((hidden @ params["w2"] - TARGETS) ** 2)


def learned() -> optax.GradientTransformation:
    rnn = optdyn.ComponentwiseRNN.init(jax.random.key(0), optdyn.Architecture(units=3))
    return dataclasses.replace(rnn, w=jnp.array([0.01, -0.02, 0.01])).as_optax()


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "nesterov": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(1e-2),
    "adamw, clipped": lambda: optax.chain(
        optax.clip_by_global_norm(1e-2), optax.adamw(1e-2, weight_decay=0.1)
    ),
    "rmsprop": lambda: optax.rmsprop(1e-2),
    "lion": lambda: optax.lion(1e-3),
    "muon": lambda: optax.contrib.muon(1e-2),
    "lamb": lambda: optax.lamb(1e-2),
    "lars": lambda: optax.lars(0.1),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=2),
    "schedule-free": lambda: optax.contrib.schedule_free_sgd(0.1),
    "accumulated": lambda: optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
    "lookahead": lambda: optax.lookahead(optax.sgd(0.1, momentum=0.5), 3, 0.5),
    "sharpness-aware": lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2),
    "sharpness-aware, normalized": lambda: optax.contrib.sam(
        optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.05)), sync_period=2
    ),
    "coin betting": lambda: optax.contrib.cocob(),
    "polyak": lambda: optax.polyak_sgd(0.1),
    "learned": learned,
}
WITHOUT_DERIVATIVE = {"sharpness-aware, normalized", "polyak", "lars", "adafactor", "coin betting"}
"""At a minimum these divide by a norm of zero; coin betting adds up |g|."""
QUICK = {"adamw, clipped", "lion", "lamb", "accumulated", "lookahead"}
QUICK |= {"sharpness-aware, normalized", "learned"}
QUICK_AT_REST = {"adamw, clipped", "sharpness-aware"}


def at_rest(params: Any) -> Any:
    """The loss of a network that is to answer as it does at `START`: no gradient there."""
    like = jax.tree.map(lambda a, b: a.astype(b.dtype), START, params)
    wide = INPUTS.astype(params["w1"].dtype)

    def answer(p: Any) -> Any:
        return jnp.tanh(wide @ p["w1"] + p["b1"][None]) @ p["w2"]

    return jnp.mean((answer(params) - jax.lax.stop_gradient(answer(like))) ** 2)


def taken(params: Any) -> Any:
    """The parameters that the loss is taken at."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def of(loss_fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same loss for lookahead's pair of parameters."""
    return lambda params: loss_fn(taken(params))


def started(name: str) -> Any:
    return optax.LookaheadParams.init_synced(START) if name == "lookahead" else START


def gradients_of(loss_fn: Callable[[Any], Any], params: Any) -> tuple[Any, Any]:
    return jax.value_and_grad(loss_fn)(taken(params))


def trained(name: str, steps: int) -> tuple[Any, Any]:
    """Parameters and state after some steps."""
    tx = OPTIMIZERS[name]()
    wrapped = with_extra_args(tx)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        value, gradients = gradients_of(loss, params)
        updates, state = wrapped.update(
            gradients, state, params, value=value, grad=gradients, value_fn=loss
        )
        return optax.apply_updates(params, updates), state

    params = started(name)
    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def dense(
    tx: optax.GradientTransformation,
    loss_fn: Callable[[Any], Any],
    params: Any,
    state: Any,
    steps: int = 1,
) -> np.ndarray:
    """The Jacobian of some steps by `jax.jacfwd`, in float64: an independent way to it."""
    wrapped = with_extra_args(tx)
    with double_precision():
        wide = to_float64(params)
        kinds = jax.eval_shape(tx.init, wide)  # accumulators may be of a type of their own
        whole = (wide, jax.tree.map(lambda leaf, kind: leaf.astype(kind.dtype), state, kinds))
        leaves, treedef = jax.tree.flatten(whole)
        floats = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        flat, unravel = ravel_pytree([leaves[i] for i in floats])

        def run(z: Any) -> Any:
            filled = list(leaves)
            for i, leaf in zip(floats, unravel(z), strict=True):
                filled[i] = leaf
            x, s = jax.tree.unflatten(treedef, filled)
            for _ in range(steps):
                value, gradients = gradients_of(loss_fn, x)
                updates, s = wrapped.update(
                    gradients, s, x, value=value, grad=gradients, value_fn=loss_fn
                )
                x = optax.apply_updates(x, updates)
            after = jax.tree.leaves((x, s))
            return ravel_pytree([after[i].astype(jnp.float64) for i in floats])[0]

        return np.asarray(jax.jit(jax.jacfwd(run))(flat))


CYCLES = {"accumulated": 2, "lookahead": 3}
CYCLES |= {"sharpness-aware": 2, "sharpness-aware, normalized": 2}


def require_the_dense_ones(
    name: str, loss_fn: Callable[[Any], Any], params: Any, state: Any
) -> None:
    tx = OPTIMIZERS[name]()
    found = closed_loop(tx, of(loss_fn), params, state, num=3, margin=False)
    assert found.steps == CYCLES.get(name, 1)
    values = np.linalg.eigvals(dense(tx, loss_fn, params, state, found.steps))
    moduli = np.sort(np.abs(values))[::-1]
    np.testing.assert_allclose(np.abs(found.largest), moduli[: len(found.largest)], atol=1e-6)
    for value in [*found.largest, *found.oscillating]:
        assert np.min(np.abs(values - value)) < 1e-6
    swinging = np.sort(np.abs(values[is_oscillating(values)]))[::-1]
    np.testing.assert_allclose(
        np.abs(found.oscillating), swinging[: len(found.oscillating)], atol=1e-6
    )
    assert len(found.oscillating) == min(3, len(swinging))
    assert found.spectral_radius == pytest.approx(moduli[0], abs=1e-6)
    for i in range(len(found.oscillating)):
        assert sum(share[i] for share in jax.tree.leaves(found.shares)) == pytest.approx(1.0)


def chosen(names: set[str]) -> list[str]:
    full = os.environ.get("SUITE") == "full"
    return [name for name in OPTIMIZERS if full or name in names]


@pytest.mark.parametrize("name", chosen(QUICK))
def test_multipliers_are_the_dense_jacobians_eigenvalues(name: str) -> None:
    require_the_dense_ones(name, loss, *trained(name, 7))


@pytest.mark.parametrize("name", [n for n in chosen(QUICK_AT_REST) if n not in WITHOUT_DERIVATIVE])
def test_they_are_so_where_there_is_no_gradient(name: str) -> None:
    """At a minimum, with the state of a training that came by."""
    state = trained(name, 7)[1]
    assert all(not np.any(g) for g in jax.tree.leaves(jax.grad(at_rest)(START)))
    require_the_dense_ones(name, at_rest, started(name), state)


@pytest.mark.full
def test_a_kink_is_refused() -> None:
    """Coin betting remembers the sum of |g|, which has no derivative at a minimum."""
    state = trained("coin betting", 7)[1]
    with pytest.raises(UserError, match="the step has no derivative here"):
        require_the_dense_ones("coin betting", at_rest, started("coin betting"), state)


def test_products_alone_find_what_a_dense_matrix_shows() -> None:
    matrix = np.random.default_rng(1).normal(size=(120, 120)) / 11.0
    found = iterated_spectrum(lambda v: matrix @ v, np.ones(120), 6)
    values = np.linalg.eigvals(matrix)
    np.testing.assert_allclose(
        np.abs(found.values[:6]), np.sort(np.abs(values))[::-1][:6], rtol=1e-7
    )
    for value, vector in zip(found.values, found.vectors, strict=True):
        np.testing.assert_allclose(matrix @ vector, value * vector, atol=1e-7)


def test_minute_memories_make_no_multipliers_up() -> None:
    """Second moments of 1e-16 beside parameters of 1: entries of 1e14 in the derivative."""
    inputs = INPUTS * jnp.array([1.0, 1e-4, 1e-7])[None]

    def seen(params: Any) -> Any:
        hidden = jnp.tanh(inputs @ params["w1"] + params["b1"][None])
        return jnp.mean((hidden @ params["w2"] - TARGETS) ** 2)

    tx, params = optax.adam(1e-2), START
    state = tx.init(params)
    for _ in range(30):
        updates, state = tx.update(jax.grad(seen)(params), state, params)
        params = optax.apply_updates(params, updates)
    with double_precision():
        step = linearized_step(tx, seen, *to_float64((params, state)))
        dense = step.matrix()
        assert np.max(np.abs(dense)) > 1e12

        def product(v: np.ndarray) -> np.ndarray:
            return np.asarray(step.times(jnp.asarray(v), 1.0))

        found = iterated_spectrum(product, row_scales(product, step.dim), 4)
    balanced, (scales, _) = matrix_balance(dense, permute=False, separate=True)
    values = np.linalg.eigvals(balanced)
    for value, vector in zip(found.values, found.vectors, strict=True):
        assert np.min(np.abs(values - value)) < 1e-6
        own = vector / scales
        assert np.linalg.norm(balanced @ own - value * own) < 1e-6 * np.linalg.norm(own)
    np.testing.assert_allclose(np.max(np.abs(found.values)), np.max(np.abs(values)), rtol=1e-8)


@pytest.mark.full
def test_a_large_network_under_adam_has_the_margin_of_its_preconditioned_curvature() -> None:
    """Beyond dense matrices, with dead inputs: beside the lens, which goes another way."""
    inputs = jnp.pad(jnp.asarray(DATA.normal(size=(32, 12)), jnp.float32), ((0, 0), (0, 4)))
    targets = jnp.sin(inputs.sum(axis=1))
    one, two = jax.random.split(jax.random.key(0))
    params = {
        "w1": jax.random.normal(one, (16, 40)) / 4,
        "b1": jnp.zeros(40),
        "w2": jax.random.normal(two, (40,)) / 6,
    }

    def of_network(params: Any) -> Any:
        hidden = jax.nn.relu(inputs @ params["w1"] + params["b1"][None])
        return jnp.mean((hidden @ params["w2"] - targets) ** 2)

    tx = optax.adam(3e-2, eps=1e-4)
    state = tx.init(params)
    for _ in range(400):
        updates, state = tx.update(jax.grad(of_network)(params), state, params)
        params = optax.apply_updates(params, updates)
    found = closed_loop(tx, of_network, params, state, num=4)
    assert found.margin_direction.size > 2000
    assert found.frozen
    beside = optdyn.Lens(tx, of_network).scalars(state, params)
    assert found.margin == pytest.approx(beside["margin"], rel=0.02)


def test_a_step_that_no_linear_map_is_near_is_refused() -> None:
    """A Polyak step at the minimum, ``f(x) / ‖g‖² g``: as steep in each direction."""
    tx, x = optax.polyak_sgd(10.0), jnp.zeros(3)
    with pytest.raises(UserError, match="not linear however near"):
        closed_loop(tx, quadratic([1.0, 2.0, 3.0]), x, tx.init(x))
    away = jnp.ones(3)
    closed_loop(tx, quadratic([1.0, 2.0, 3.0]), away, tx.init(away))


def quadratic(curvatures: list[float]) -> Callable[[Any], Any]:
    return lambda x: 0.5 * jnp.sum(jnp.array(curvatures) * x**2)


@pytest.mark.parametrize(
    ("tx", "edge"),
    [
        (optax.sgd(0.1), 20.0),
        (optax.sgd(0.1, momentum=0.9), 38.0),
        (optax.sgd(0.1, momentum=0.5, nesterov=True), 15.0),
    ],
)
def test_the_margin_on_a_quadratic_is_the_edge_over_the_curvature(
    tx: optax.GradientTransformation, edge: float
) -> None:
    x = jnp.ones(3)
    for top in (4.0, 80.0):
        found = closed_loop(tx, quadratic([0.1, 1.0, top]), x, tx.init(x))
        assert found.margin == pytest.approx(edge / top, rel=2e-4)
        swings_apart = top > edge
        assert bool(np.any(np.abs(found.oscillating) > 1.0)) == swings_apart
        if swings_apart:
            assert found.oscillating[0].real < -1.0
            assert found.curvature[0] == pytest.approx(top, rel=1e-6)
            assert found.period[0] == pytest.approx(2.0)


def test_negative_curvature_is_descent_and_not_too_long_a_step() -> None:
    tx, x = optax.sgd(0.1), jnp.ones(2)
    found = closed_loop(tx, quadratic([-2.0, 5.0]), x, tx.init(x))
    assert found.spectral_radius == pytest.approx(1.2, abs=1e-9)
    assert found.oscillating.size == 0
    assert found.margin == pytest.approx(4.0, rel=2e-4)
    assert "negative curvature" in str(found)


def test_a_dead_input_is_held_fixed() -> None:
    tx, x = optax.adam(0.1), jnp.array([1.0, 2.0])
    found = closed_loop(tx, lambda x: x[0] ** 2 + 0.0 * x[1], x, tx.init(x), margin=False)
    assert found.frozen >= 1
    assert np.all(np.isfinite(found.largest))


def test_a_step_without_a_derivative_or_a_finite_value_is_refused() -> None:
    tx, x = optax.adam(0.1), jnp.ones(2)
    with pytest.raises(UserError, match="no derivative along"):
        closed_loop(tx, lambda x: 0.0 * jnp.sum(x), x, tx.init(x))
    with pytest.raises(UserError, match="not finite"):
        closed_loop(tx, lambda x: jnp.sum(jnp.sqrt(-x)), x, tx.init(x))
    with pytest.raises(UserError, match=r"params\['a'\]: int32 is not allowed"):
        closed_loop(tx, loss, {"a": jnp.arange(3)}, tx.init(x))


def test_what_stop_gradient_holds_still_moves_with_the_step() -> None:
    """Learning from one's own target (TD(0)): the step is x -> x - 0.1 (1 - 5G) x."""
    turn = jnp.array([[0.0, 5.0], [-5.0, 0.0]])

    def loss(x: Array) -> Array:
        return 0.5 * jnp.sum((x - jax.lax.stop_gradient(turn @ x)) ** 2)

    tx, x = optax.sgd(0.1), jnp.ones(2)
    found = closed_loop(tx, loss, x, tx.init(x))
    np.testing.assert_allclose(found.largest, [0.9 + 0.5j, 0.9 - 0.5j], rtol=1e-12)


def test_a_detached_denominator_has_its_derivative() -> None:
    def update(gradient: Array, state: Any, params: Any = None) -> tuple[Array, Any]:
        return -0.1 * gradient / jax.lax.stop_gradient(jnp.abs(gradient) + 1.0), state

    tx, x = optax.GradientTransformation(lambda _: (), update), jnp.array([1.0, 2.0])
    found = closed_loop(tx, lambda x: 0.5 * jnp.sum(x**2 * jnp.array([1.0, 3.0])), x, ())
    expected = [1 - 0.1 / (1 + 1) ** 2, 1 - 0.1 * 3 / (1 + 6) ** 2]
    np.testing.assert_allclose(found.largest, sorted(expected, reverse=True), rtol=1e-12)
    assert pytest.approx(-0.1 / 9) == linearize(tx, gradient=2.0).D


def test_slow_swings_apart_count_where_shorter_steps_end_them() -> None:
    """Two momenta in a chain, at a curvature where they swing apart with a period of 55."""
    tx = optax.chain(optax.trace(0.9), optax.trace(0.9), optax.scale(-0.01))
    x = jnp.ones(1)
    found = closed_loop(tx, lambda x: 0.5 * 0.2463 * jnp.sum(x**2), x, tx.init(x))
    assert found.margin == pytest.approx(stability_map(linearize(tx)).edge / 0.2463, rel=1e-3)
    assert found.margin < 1


def test_weight_decay_alone_can_overshoot() -> None:
    tx, x = optax.chain(optax.add_decayed_weights(25.0), optax.sgd(0.1)), jnp.ones(2)
    found = closed_loop(tx, lambda x: 0.0 * jnp.sum(x), x, tx.init(x))
    assert found.margin == pytest.approx(2 / 2.5, rel=1e-3)


def test_memory_in_whole_numbers_is_refused() -> None:
    def update(gradient: Array, state: Array, params: Any = None) -> tuple[Array, Array]:
        memory = 0.9 * state + gradient
        return -0.1 * memory, jnp.round(memory).astype(jnp.int8)

    tx = optax.GradientTransformation(lambda p: jnp.zeros(p.shape, jnp.int8), update)
    with pytest.raises(UserError, match="int8 that changes"):
        closed_loop(tx, lambda x: jnp.sum(x**2), jnp.array([3.0, 5.0]), jnp.zeros(2, jnp.int8))


def test_growth_along_negative_curvature_does_not_hide_the_margin_of_a_cycle() -> None:
    """Four accumulated gradients of one batch are one step of what is accumulated for."""
    hills = jnp.array([4.0, -1.0])
    inner = optax.sgd(0.1, momentum=0.5)
    tx = optax.MultiSteps(inner, 4).gradient_transformation()
    params = jnp.array([0.3, 0.1])
    loss_fn = lambda x: 0.5 * jnp.sum(hills * x**2)  # noqa: E731
    found = closed_loop(tx, loss_fn, params, tx.init(params))
    single = closed_loop(inner, loss_fn, params, inner.init(params))
    # 2(1 + β)/(α·λ)
    assert found.margin == pytest.approx(7.5, rel=1e-3)
    assert single.margin == pytest.approx(7.5, rel=1e-3)
    growth = single.spectral_radius ** (1 / 4)
    assert f"grows without swinging: {growth:.6g} a step" in str(found)


def test_a_best_loss_of_infinity_is_no_step_that_is_not_finite() -> None:
    plateau = optax.contrib.reduce_on_plateau(patience=3, accumulation_size=4)
    tx, params = optax.chain(optax.sgd(0.1), plateau), jnp.ones(2)
    found = closed_loop(tx, lambda x: jnp.sum(x**2), params, tx.init(params))
    assert found.margin == pytest.approx(10.0, rel=1e-3)


def test_a_loss_with_a_gradient_of_its_own_is_as_any_other() -> None:
    """As JAX's documentation writes one: the forward rule calls the function itself."""

    @jax.custom_vjp
    def own(x: Any) -> Any:
        return jnp.sum(x**2)

    own.defvjp(lambda x: (own(x), x), lambda x, g: (2 * x * g,))
    tx, params = optax.adam(0.1), jnp.ones(3)
    found = closed_loop(tx, own, params, tx.init(params))
    plain = closed_loop(tx, lambda x: jnp.sum(x**2), params, tx.init(params))
    np.testing.assert_allclose(found.largest, plain.largest, rtol=1e-12)


@pytest.mark.parametrize(
    "look", [closed_loop, lambda tx, *at: Lens(tx, at[0]).scalars(at[2], at[1])]
)
def test_the_state_of_other_parameters_is_refused(look: Any) -> None:
    tx, params = optax.adam(0.1), jnp.ones(3)
    with pytest.raises(UserError, match=r"state\[0\]\.mu has shape \(4,\), but for these params"):
        look(tx, lambda x: jnp.sum(x**2), params, tx.init(jnp.ones(4)))


def test_a_margin_of_averaged_parameters_does_not_speak_of_the_learning_rate() -> None:
    tx, x = optax.lookahead(optax.sgd(0.1), 3, 0.5), jnp.ones(2)
    params = optax.LookaheadParams.init_synced(x)
    free = optax.contrib.schedule_free_sgd(0.1)
    loops = [
        closed_loop(tx, lambda p: jnp.sum(p.fast**2), params, tx.init(params)),
        closed_loop(free, lambda p: jnp.sum(p**2), x, free.init(x)),
    ]
    for found in loops:
        assert "times all updates, those by averaging too" in str(found)
        assert "learning rate" not in str(found)
