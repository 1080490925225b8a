"""One component of a real tree of parameters, in a training's own state."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics_helpers import random_rnn
from helpers import small_part
from optdyn.dynamics import eigenmodes, linearize, settle, stability_map, step_map
from optdyn.dynamics._place import leaf_names
from optdyn.errors import UserError
from optdyn.inner_loop import with_eval_params

pytestmark = pytest.mark.usefixtures("x64")

TREE = {
    "embed": np.full((5, 2), 0.3),
    "layers": [
        {"w": np.linspace(-1.0, 1.0, 12).reshape(4, 3), "b": np.ones(3)},
        {"w": np.full((2, 2, 2), 0.5), "scale": np.ones(())},
    ],
    "head": np.ones((3, 1)),
}
DECAYED = jax.tree.map(lambda p: p.ndim > 1, TREE)


def real_training() -> optax.GradientTransformation:
    """A clip that does not act, decay of matrices alone, rates by path, a schedule."""

    def kinds(params: Any) -> Any:
        def kind(path: Any, leaf: Any) -> str:
            name = jax.tree_util.keystr(path)
            return "slow" if "embed" in name else "plain" if "scale" in name else "fast"

        return jax.tree_util.tree_map_with_path(kind, params)

    schedule = optax.linear_schedule(0.5, 0.0, 300)
    return optax.chain(
        optax.clip_by_global_norm(1e3),
        optax.partition(
            {
                "slow": optax.sgd(1e-3),
                "fast": optax.sgd(1e-2, momentum=0.9),
                "plain": optax.inject_hyperparams(optax.sgd)(learning_rate=0.25),
            },
            kinds,
        ),
        optax.add_decayed_weights(-0.02, mask=DECAYED),
        optax.masked(optax.scale(3.0), {**jax.tree.map(lambda p: False, TREE), "head": True}),
        optax.scale_by_schedule(schedule),
    )


FIRST_KINDS = [
    ("layers.0.b", 1, 1e-2, 0.9, 0.0),
    ("head", (2, 0), 3e-2, 0.9, 0.06),
]
KINDS = [
    *FIRST_KINDS,
    ("['layers'][1]['w']", (1, 0, 1), 1e-2, 0.9, 0.02),
    ("embed", (4, 1), 1e-3, 0.0, 0.02),
    ("layers.0.w", (3, 2), 1e-2, 0.9, 0.02),
    ("layers.1.scale", (), 0.25, 0.0, 0.0),
]


@pytest.mark.parametrize(("leaf", "index", "rate", "beta", "decay"), small_part(FIRST_KINDS, KINDS))
def test_each_kind_of_leaf_has_its_closed_form(
    leaf: str, index: Any, rate: float, beta: float, decay: float
) -> None:
    tx, now = real_training(), 0.5 * (1 - 100 / 300)
    lin = linearize(tx, params=TREE, leaf=leaf, index=index, count=100, gradient=0.1)
    modes = eigenmodes(lin)
    found = modes.alpha[0].real if beta else modes.feedthrough
    assert found == pytest.approx(rate * now, rel=1e-9)
    if beta:
        assert modes.beta[0].real == pytest.approx(beta, rel=1e-9)
    assert lin.weight_decay == pytest.approx(-decay * now, rel=1e-9, abs=1e-15)
    assert lin.held == ""
    assert lin.varies
    assert lin.count == 100


def test_a_training_state_is_taken_as_it_is() -> None:
    tx = optax.adamw(1e-2, weight_decay=0.1, mask=DECAYED)
    state, rng = tx.init(TREE), np.random.default_rng(0)
    gradients, update = TREE, jax.jit(tx.update)
    for _ in range(7):
        gradients = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), TREE)
        _, state = update(gradients, state, TREE)
    lin = linearize(
        tx, params=TREE, state=state, leaf="layers.0.w", index=(1, 2), gradient=gradients
    )
    mu, nu = (np.float64(t["layers"][0]["w"][1, 2]) for t in (state[0].mu, state[0].nu))
    g, k = float(gradients["layers"][0]["w"][1, 2]), 8

    def update(m: float, v: float, g: float) -> float:
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        root = np.sqrt(v / (1 - 0.999**k)) + 1e-8
        return -1e-2 * (m / (1 - 0.9**k) / root + 0.1 * TREE["layers"][0]["w"][1, 2])

    assert lin.names == ("0.mu.layers.0.w", "0.nu.layers.0.w")
    np.testing.assert_allclose(lin.state, [mu, nu], rtol=1e-15)
    assert lin.drift == pytest.approx(float(update(mu, nu, g)), rel=1e-12)
    e = 1e-6
    slopes = [
        (update(mu, nu, g + e) - update(mu, nu, g - e)) / (2 * e),
        (update(mu + e, nu, g) - update(mu - e, nu, g)) / (2 * e),
        (update(mu, nu + e, g) - update(mu, nu - e, g)) / (2 * e),
    ]
    np.testing.assert_allclose([lin.D, *lin.C], np.array(slopes, float), rtol=1e-7)
    assert lin.weight_decay == pytest.approx(-1e-3, rel=1e-12)


def test_settling_a_tree() -> None:
    tx = optax.adam(0.1)
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(3)}
    state = settle(tx, 0.5, params=params, leaf="b")
    lin = linearize(tx, params=params, leaf="b", state=state)
    alone = linearize(tx, state=settle(tx, 0.5))
    np.testing.assert_allclose(lin.C, alone.C, rtol=1e-12)
    assert stability_map(lin).edge == pytest.approx(38 * 0.5 / 0.1, rel=1e-3)


def test_a_learned_optimizer_within_a_tree() -> None:
    tx = random_rnn("gru", 3).as_optax()
    lin = linearize(tx, params=TREE, leaf="layers.0.w", index=(2, 1), gradient=0.3)
    alone = linearize(tx, gradient=0.3)
    for name in ("A", "B", "C", "D"):
        np.testing.assert_allclose(getattr(lin, name), getattr(alone, name), rtol=1e-12, atol=1e-15)


def raveled(gradients, state, params=None):
    flat, unravel = jax.flatten_util.ravel_pytree(gradients)
    state = 0.9 * state + flat
    return unravel(-0.1 * state), state


def history(gradients, state, params=None):
    state = jnp.concatenate([gradients[None], state[:-1]])
    return -0.1 * (state[0] + state[-1]), state


def test_any_layout_of_the_state() -> None:
    tx = optax.GradientTransformation(
        lambda p: jnp.zeros(jax.flatten_util.ravel_pytree(p)[0].shape), raveled
    )
    lin = linearize(tx, params=TREE, leaf="head", index=(1, 0))
    np.testing.assert_allclose([lin.A[0, 0], lin.B[0], lin.C[0]], [0.9, 1.0, -0.09])
    tx = optax.GradientTransformation(lambda p: jnp.zeros((3, *p.shape)), history)
    lin = linearize(tx, params=jnp.ones((2, 2)), index=(1, 1))
    np.testing.assert_allclose(lin.impulse_response(4), [-0.1, 0.0, -0.1, 0.0], atol=1e-15)


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ({"leaf": "layers.9.w"}, r"leaf: 'layers.9.w' is not in params .*layers.0.w"),
        ({}, r"leaf: not given \(allowed: embed"),
        ({"leaf": "head", "index": (3, 0)}, r"index: \(3, 0\) is not in head .*\(3, 1\)"),
        ({"leaf": "head", "index": 1}, "index: 1 is not in head"),
        ({"leaf": "head", "gradient": {"w": 1.0}}, "gradient: a tree of 1 components"),
        ({"leaf": "head", "gradient": np.nan}, "gradient: nan"),
        ({"leaf": "head", "state": optax.sgd(0.1, 0.9).init(jnp.ones(1))}, "state: not a state"),
    ],
)
def test_what_is_not_in_the_tree_is_refused(place: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        linearize(optax.sgd(0.1, momentum=0.9), params=TREE, **place)


def test_leaves_of_one_dotted_name_are_told_apart() -> None:
    tree = {"a": [np.ones(2)], "a.0": np.ones(2)}
    assert leaf_names(tree) == ["['a'][0]", "['a.0']"]
    tx = optax.multi_transform(
        {"slow": optax.sgd(0.1), "fast": optax.sgd(0.7)}, {"a": ["slow"], "a.0": "fast"}
    )
    with pytest.raises(UserError, match=r"leaf: 'a.0' is the name of 2 leaves .*\['a.0'\]"):
        linearize(tx, params=tree, leaf="a.0")
    assert pytest.approx(-0.7) == linearize(tx, params=tree, leaf="['a.0']").D


def test_a_state_that_grows_at_the_first_step_is_taken() -> None:
    tx = optax.chain(optax.monitor({"norm": optax.tree.norm}), optax.sgd(0.1, momentum=0.9))
    state = tx.init(UNEVEN)
    for _ in range(2):
        _, state = jax.jit(tx.update)(PUSHED, state, UNEVEN)
    lin = linearize(tx, params=UNEVEN, leaf="b", state=state, gradient=PUSHED)
    np.testing.assert_allclose([lin.A[0, 0], lin.C[0], lin.D], [0.9, -0.09, -0.1], rtol=1e-12)
    assert lin.held == ""


def test_an_optimizer_with_evaluation_parameters_is_taken() -> None:
    tx = with_eval_params(optax.sgd(0.1, momentum=0.9), lambda state, params: params)
    assert eigenmodes(linearize(tx)).beta[0].real == pytest.approx(0.9, rel=1e-12)


def test_leaves_need_a_tree_and_floats() -> None:
    with pytest.raises(UserError, match="leaf: needs params="):
        linearize(optax.sgd(0.1), leaf="w")
    tree = {"w": jnp.ones(2), "n": jnp.int32(3)}
    with pytest.raises(UserError, match="leaf: n is int32"):
        linearize(optax.sgd(0.1), params=tree, leaf="n")
    with pytest.raises(UserError, match=r"leafs: unknown \(allowed: count"):
        step_map(optax.sgd(0.1), leafs="w")


# --- couplings -------------------------------------------------------------------------------
def test_a_clip_that_does_not_act_is_no_coupling() -> None:
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
    modes = eigenmodes(linearize(tx))
    assert modes.alpha[0].real == pytest.approx(0.1, rel=1e-12)
    assert modes.beta[0].real == pytest.approx(0.9, rel=1e-12)
    with pytest.raises(UserError, match="one factor common to all components acts here"):
        linearize(tx, gradient=5.0)


FEW = [optax.adam(0.1)]


@pytest.mark.parametrize(
    "after", small_part(FEW, [optax.sgd(0.1), optax.sgd(0.1, momentum=0.9), *FEW])
)
def test_a_clip_that_acts_is_a_factor(after: optax.GradientTransformation) -> None:
    """Clipping by the norm is a gradient times its factor, for one component among others."""
    gradients = jax.tree.map(lambda p: 0.2 + 0.1 * p, TREE)
    factor = 0.31
    clip = optax.clip_by_global_norm(factor * float(optax.tree.norm(gradients)))
    place = {"params": TREE, "leaf": "layers.0.w", "index": (0, 1), "gradient": gradients}
    lin = linearize(optax.chain(clip, after), **place)
    free = linearize(optax.chain(optax.scale(factor), after), **place)
    for name in ("A", "B", "C", "D", "E", "drift"):
        np.testing.assert_allclose(
            getattr(lin, name), getattr(free, name), rtol=1e-8, atol=1e-12, err_msg=name
        )
    assert "all updates times 0.31" in lin.held


def test_a_trust_ratio_is_a_factor() -> None:
    tx = optax.chain(optax.trace(0.9), optax.scale_by_trust_ratio(), optax.scale(-0.1))
    gradients = jax.tree.map(lambda p: 0.2 + 0.1 * p, TREE)
    place = {"params": TREE, "leaf": "layers.0.w", "index": (0, 1), "gradient": gradients}
    lin = linearize(tx, **place)
    w, g = TREE["layers"][0]["w"], gradients["layers"][0]["w"]
    ratio = float(jnp.linalg.norm(w) / jnp.linalg.norm(g))
    assert pytest.approx(-0.1 * ratio, rel=1e-8) == lin.D
    assert lin.C[0] == pytest.approx(-0.09 * ratio, rel=1e-8)
    assert "common" in lin.held


UNEVEN = {"w": np.linspace(-1.0, 1.2, 96).reshape(12, 8), "b": np.linspace(0.5, 2.0, 5)}
PUSHED = {"w": np.cos(UNEVEN["w"] * 7.0), "b": np.array([3.0, -0.4, 0.5, 0.9, -1.0])}


SMALL, SLICE = ("b", (0,)), ("w", (3, 2))
FACTORS = {
    "trust_ratio": (optax.chain(optax.scale_by_trust_ratio(), optax.scale(-0.1)), "at its value"),
    "unitwise_clip": (
        optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(0.1)), "all updates times",
    ),
    "norm_of_parameters": (
        optax.chain(optax.sgd(0.1), optax.scale_by_param_block_rms()), "at its value",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "place"),
    small_part(
        [("trust_ratio", SMALL), ("unitwise_clip", SLICE), ("norm_of_parameters", SMALL)],
        itertools.product(FACTORS, (SMALL, SLICE)),
    ),
)
def test_the_factor_of_a_small_leaf_or_of_a_slice_is_held(
    name: str, place: tuple[str, tuple[int, ...]]
) -> None:
    """At a held factor an update is proportional to its gradient."""
    (tx, words), (leaf, index) = FACTORS[name], place
    updates, _ = jax.jit(tx.update)(PUSHED, tx.init(UNEVEN), UNEVEN)
    lin = linearize(tx, params=UNEVEN, leaf=leaf, index=index, gradient=PUSHED)
    factor = float(updates[leaf][index]) / PUSHED[leaf][index]
    assert pytest.approx(factor, rel=1e-9) == lin.D
    assert words in lin.held


def test_a_norm_that_is_only_written_down_is_no_factor() -> None:
    tx = optax.chain(optax.snapshot("norm", optax.tree.norm), optax.sgd(0.1))
    lin = linearize(tx, params=UNEVEN, leaf="b", gradient=PUSHED)
    assert lin.held == ""
    assert pytest.approx(-0.1) == lin.D


def towards_the_mean(gradients: Any, params: Any) -> Any:
    return jax.tree.map(lambda g, p: -0.1 * g - 0.1 * (p - jnp.mean(p)), gradients, params)


@pytest.mark.parametrize(
    "tx",
    [
        optax.contrib.muon(0.1),
        optax.chain(optax.centralize(), optax.sgd(0.1)),
        optax.stateless(towards_the_mean),
        pytest.param(optax.adafactor(0.1, min_dim_size_to_factor=2), marks=pytest.mark.full),
    ],
    ids=["muon", "centralize", "centred_parameters", "adafactor"],
)
def test_what_turns_updates_is_refused(tx: optax.GradientTransformation) -> None:
    gradients = jax.tree.map(lambda p: 0.2 + 0.1 * p**2, TREE)
    with pytest.raises(UserError, match=r"not component-wise here.*closed_loop"):
        linearize(tx, params=TREE, leaf="layers.0.w", index=(1, 1), gradient=gradients)


def test_a_leaf_that_muon_leaves_to_adam() -> None:
    tx, params = optax.contrib.muon(0.1), {"w": jnp.ones((3, 3)), "b": jnp.ones(3)}
    state = settle(tx, 0.5, params=params, leaf="b")
    lin = linearize(tx, params=params, state=state, leaf="b", index=2)
    assert eigenmodes(lin).beta[0].real == pytest.approx(0.9, rel=1e-9)


def test_a_scalar_leaf_under_a_clip_that_acts() -> None:
    """ĝ = g·c/‖g‖ with the factor held: the scalar's own answer is the rate times it."""
    params = {"w": np.ones((2, 3)), "scale": np.ones(())}
    gradients = {"w": np.full((2, 3), 2.0), "scale": np.array(5.0)}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    found = linearize(tx, params=params, leaf="scale", gradient=gradients).D
    assert found == pytest.approx(-0.1 / 7.0, rel=1e-9)
