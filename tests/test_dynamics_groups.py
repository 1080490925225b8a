"""Leaves of a real tree that an optimizer treats alike, and results in words."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optdyn.dynamics import ParamGroups, eigenmodes, linearize, param_groups, stability_map
from optdyn.errors import UserError

pytestmark = pytest.mark.usefixtures("x64")

# The names tell nothing of what is done with the leaves.
TREE = {
    "one": np.ones((3, 4)),
    "two": np.zeros(4),
    "three": [np.full((2, 2), 0.5), np.ones(3)],
}


def matrices(tree):
    return {
        "one": tree["one"].ndim > 1,
        "two": tree["two"].ndim > 1,
        "three": [leaf.ndim > 1 for leaf in tree["three"]],
    }


def test_leaves_are_grouped_by_what_is_done_with_them() -> None:
    tx = optax.chain(
        optax.clip_by_global_norm(1e6),
        optax.trace(0.9),
        optax.add_decayed_weights(0.1, mask=matrices),
        optax.scale_by_learning_rate(optax.linear_schedule(0.1, 0.0, 100)),
    )
    found = param_groups(tx, TREE)
    assert [group.leaves for group in found.groups] == [("one", "three.0"), ("three.1", "two")]
    assert [group.components for group in found.groups] == [16, 7]
    for group, decay in zip(found.groups, (0.01, 0.0), strict=True):
        alpha, beta = group.modes
        np.testing.assert_allclose([alpha[0], beta[0]], [0.1, 0.9], rtol=1e-9)
        assert group.rate == pytest.approx(1.0, rel=1e-9)
        assert group.decay == pytest.approx(decay, rel=1e-9, abs=1e-15)
        assert group.schedule.startswith("the rate follows the step count: 1 at count 0")
        assert group.uniform
    rows = str(found).splitlines()
    assert rows[0].startswith("one, three.0: momentum with a schedule, rate 1, decay 0.01 a step")
    # At z = −1: 2 − decay = α·λ/(1 + β).
    assert [row.split()[-1] for row in rows if "stable" in row] == ["37.81", "38"]


@pytest.mark.full
def test_a_group_has_the_rate_of_the_trainings_own_count() -> None:
    tx = optax.chain(
        optax.trace(0.9), optax.scale_by_learning_rate(optax.linear_schedule(0.1, 0.0, 100))
    )
    half_way = param_groups(tx, TREE, count=50)
    assert half_way[0].rate == pytest.approx(0.5, rel=1e-9)


def test_components_of_one_leaf_that_differ_are_told() -> None:
    scales = np.array([1.0, 2.0, 1.0])
    tx = optax.stateless(lambda g, p: -0.1 * scales * g)
    (group,) = param_groups(tx, np.ones(3)).groups
    assert not group.uniform
    with pytest.raises(UserError, match="no leaf of floating-point numbers"):
        param_groups(optax.sgd(0.1), {"n": jnp.int32(1)})


PAIR = {"w": np.ones((4, 3)), "b": np.ones(3)}


def apart(w: optax.GradientTransformation, b: optax.GradientTransformation):
    return optax.partition({"w": w, "b": b}, {"w": "w", "b": "b"})


def test_rates_in_the_state_part_leaves() -> None:
    def one() -> optax.GradientTransformation:
        return optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9)

    tx = apart(one(), one())
    state = tx.init(PAIR)
    assert len(param_groups(tx, PAIR, state=state)) == 1
    state.inner_states["b"].inner_state.hyperparams["learning_rate"] = jnp.asarray(0.001)
    w, b = param_groups(tx, PAIR, state=state).groups
    assert (w.rate, b.rate) == pytest.approx((1.0, 0.01), rel=1e-9)


def test_schedules_that_part_late_are_two_groups() -> None:
    def from_count(n: int) -> optax.GradientTransformation:
        return optax.sgd(lambda count: jnp.where(count >= n, 0.1, 0.0))

    w, b = param_groups(apart(from_count(1000), from_count(2000)), PAIR).groups
    assert (w.leaves, b.leaves) == (("w",), ("b",))
    assert "from count 1000 on" in w.schedule
    assert "from count 2000 on" in b.schedule


def test_thresholds_part_leaves() -> None:
    def clipped(at: float) -> optax.GradientTransformation:
        return optax.chain(optax.clip(at), optax.sgd(0.1))

    w, b = param_groups(apart(clipped(1.0), clipped(5.0)), PAIR).groups
    found = [g.found.identification.nearest.hyperparameters["clip"] for g in (w, b)]
    assert found == pytest.approx([1.0, 5.0], rel=1e-6)


def test_a_frozen_leaf_is_a_group_of_rate_0() -> None:
    tx = apart(optax.sgd(0.1, momentum=0.9), optax.set_to_zero())
    w, b = param_groups(tx, PAIR).groups
    assert (w.leaves, b.leaves) == (("w",), ("b",))
    assert w.rate == pytest.approx(1.0, rel=1e-9)
    assert (b.rate, b.decay, b.modes[0].size, b.schedule) == (0.0, 0.0, 0, "")
    assert str(b.found).startswith("standing_still: no gradient changes any update")
    assert str(ParamGroups((b,))) == "b: stands still (every update is zero)"


def test_what_only_decays_has_no_rate() -> None:
    tx = optax.chain(
        optax.adam(0.01),
        optax.masked(optax.set_to_zero(), {"w": False, "b": True}),
        optax.add_decayed_weights(-0.1),
    )
    w, b = param_groups(tx, PAIR).groups
    assert (b.rate, b.decay) == (0.0, 0.1)
    assert b.found.stability.edge == np.inf
    assert "b: no gradient changes an update, decay 0.1 a step" in str(ParamGroups((w, b)))


def test_signs_have_no_rate_of_small_changes() -> None:
    tx = optax.chain(optax.scale_by_sign(), optax.scale(-0.01))
    (group,) = param_groups(tx, PAIR).groups
    assert group.rate == 0.0
    assert not group.found.responds


def test_a_coupled_leaf_is_in_no_group() -> None:
    tx = optax.chain(optax.scale_by_factored_rms(min_dim_size_to_factor=2), optax.scale(-0.1))
    found = param_groups(tx, PAIR)
    assert [group.leaves for group in found.groups] == [("b",)]
    assert [one.leaves for one in found.coupled] == [("w",)]
    with pytest.raises(UserError, match=r"^w: optimizer: not component-wise here"):
        param_groups(tx, {"w": PAIR["w"]})


def test_muon_beside_adam_leaves_adams_leaves_to_look_at() -> None:
    """Gradients ±1 lead to the second moment 1, of which a zero gradient leaves 0.999."""
    matrices = {"one": "muon", "two": "adam", "three": ["muon", "adam"]}
    tx = optax.partition({"muon": optax.contrib.muon(0.02), "adam": optax.adam(0.01)}, matrices)
    found = param_groups(tx, TREE)
    assert [group.leaves for group in found.groups] == [("three.1", "two")]
    alpha, beta = found[0].modes
    np.testing.assert_allclose([alpha[0], beta[0]], [0.001 / 0.999**0.5, 0.9], rtol=1e-6)
    (coupled,) = found.coupled
    assert (coupled.leaves, coupled.components) == (("one", "three.0"), 16)
    assert str(found).splitlines()[-1].startswith("one, three.0: the update of a component")
    assert str(found).endswith("as in Muon, Shampoo and centred gradients: see optdyn.closed_loop")


def test_adafactor_on_leaves_that_it_does_not_factor() -> None:
    """At zero gradient, v = 1 behind it: the rate times the root mean square of the parameters."""
    params = {"w": np.ones((4, 3)), "b": np.full(3, 2.0)}
    found = param_groups(optax.adafactor(0.01, min_dim_size_to_factor=3), params)
    (b,), (w,) = found.groups, found.coupled
    assert (b.leaves, w.leaves) == (("b",), ("w",))
    (both,) = param_groups(optax.adafactor(0.01), params).groups
    assert both.leaves == ("b", "w")
    # The next step takes 20001^-0.8 of v away.
    rate = 0.01 * 2.0 / (1.0 - 20001**-0.8) ** 0.5
    assert [b.rate, both.rate] == pytest.approx([rate, rate], rel=1e-6)
    row = "a factor common to several components is held at its value"
    assert f"  {row}" in str(found).splitlines()
    assert f"  {row}, in b" in str(ParamGroups((both,))).splitlines()


def test_results_print_as_a_verdict() -> None:
    lin = linearize(optax.chain(optax.trace(0.9), optax.scale(-0.1)))
    text = str(lin)
    assert len(text.splitlines()) <= 6
    assert "learning rate 1 a step in all" in text
    assert "rate 0.1 with momentum 0.9" in text
    assert "stable up to curvature 38" in text
    assert str(eigenmodes(lin)) in text
    assert "stable up to curvature 38" in str(stability_map(lin))
    assert "&lt;" not in lin._repr_html_()
    assert lin._repr_html_().startswith("<pre>linearised at gradient 0")
    turning = eigenmodes(linearize(optax.chain(optax.trace(-0.5), optax.scale(-0.1))))
    assert "oscillating by itself with a period of 2 steps" in str(turning)
    still = linearize(optax.scale_by_sign(), gradient=1.0)
    assert "no update changes with a small change of the gradient" in str(still)


def test_a_dead_input_does_not_stand_for_its_leaf() -> None:
    """The first pixel is black in every image: its second moment stays zero."""
    tx, params = optax.adam(1e-2), {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    gradients = {"w": jnp.ones((3, 2)).at[0].set(0.0), "b": jnp.ones(2)}
    _, state = jax.jit(tx.update)(gradients, tx.init(params), params)
    found = param_groups(tx, params, state=state)
    assert {leaf for group in found.groups for leaf in group.leaves} == {"w", "b"}
    for group in found.groups:
        # After one step v̂ = 1, held: the rate is that of the learning rate, momentum 0.9.
        assert group.modes[1][0] == pytest.approx(0.9, abs=1e-6)


def test_a_clip_that_acts_multiplies_the_rate_and_hides_nothing() -> None:
    """The factor is 1/‖(1, …, 1)‖ over 23 components; Adam's own rate does not depend on it."""
    clip, c = optax.clip_by_global_norm(1.0), 23**-0.5
    found = param_groups(optax.chain(clip, optax.sgd(0.1, momentum=0.9)), TREE)
    assert found[0].rate == pytest.approx(c, rel=1e-9)
    assert found[0].found.identification.exact
    assert f"all updates times {c:.3g} (a common factor, held)" in str(found)
    tx = optax.chain(clip, optax.adam(optax.linear_schedule(0.0, 0.01, 50), eps=1e-12))
    adam = param_groups(tx, TREE)[0]
    assert adam.rate == pytest.approx(0.01, rel=1e-3)
    fit = adam.found.identification.nearest
    assert fit.name == "adam"
    np.testing.assert_allclose(
        [fit.hyperparameters[name] for name in ("alpha", "beta1", "beta2")], [0.01, 0.9, 0.999]
    )


def test_a_trainings_memory_does_not_hide_what_the_optimizer_is() -> None:
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01))
    gradients = {"w": jnp.array([3.0, -1.0, 0.5, 2.0])}
    params, state = {"w": jnp.ones(4)}, tx.init({"w": jnp.ones(4)})
    for k in range(5):
        scaled = {"w": gradients["w"] / (k + 1)}
        state = tx.update(scaled, state, params)[1]
    found = param_groups(tx, params, state=state, gradient=gradients)[0].found.identification
    assert found.exact
    assert found.name == "adam"
