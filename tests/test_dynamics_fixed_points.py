"""Fixed points against closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics_helpers import learned
from optdyn.dynamics import Status, find_fixed_points, step_map
from optdyn.errors import UserError

pytestmark = pytest.mark.usefixtures("x64")


def state_only(next_state) -> optax.GradientTransformation:
    """An optimizer whose only purpose is its state's map ``h' = next_state(h, g)``."""

    def update(gradients, state, params=None):
        return state, jax.tree.map(next_state, state, gradients)

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def test_moments_under_a_constant_gradient() -> None:
    starts = np.random.default_rng(0).uniform(size=(5, 2))
    found = find_fixed_points(step_map(optax.adam(0.1), count=10**6), starts, gradient=0.5)
    assert found.status == (Status.CONVERGED,) * 5
    np.testing.assert_allclose(found.h, np.tile([0.5, 0.25], (5, 1)), rtol=1e-9)
    np.testing.assert_allclose(found.spectral_radius, 0.999, rtol=1e-9)
    np.testing.assert_allclose(found.update, -0.1, rtol=1e-6)


def test_repelling_points_need_newton_alone() -> None:
    # h' = h + h/2 − h³/2: repelling at 0 (slope 1.5), attracting at ±1 (slope 0).
    tx = state_only(lambda h, g: h + 0.5 * h - 0.5 * h**3 + g)
    starts = np.array([[-1.3], [-0.9], [0.05], [0.9]])
    iterated = find_fixed_points(tx, starts)
    np.testing.assert_allclose(iterated.h[:, 0], [-1, -1, 1, 1], atol=1e-9)
    polished = find_fixed_points(tx, starts, iterations=0)
    np.testing.assert_allclose(polished.h[:, 0], [-1, -1, 0, 1], atol=1e-9)
    np.testing.assert_allclose(polished.spectral_radius, [0, 0, 1.5, 0], atol=1e-6)
    unique = polished.unique()
    np.testing.assert_array_equal(unique.multiplicity, [2, 1, 1])
    assert unique.h[0, 0] == pytest.approx(-1.0)
    assert unique.converged.all()


def test_no_fixed_point_stalls() -> None:
    # h' − h = 1 + h²/10 has no zero; Newton stops where it is smallest.
    tx = state_only(lambda h, g: h + 1.0 + 0.1 * h**2)
    found = find_fixed_points(tx, np.array([[0.3]]), iterations=0)
    assert found.status == (Status.STALLED,)
    assert found.residual[0] == pytest.approx(1.0, rel=0.1)
    assert np.isnan(found.spectral_radius[0])
    assert len(found.unique().h) == 0


def test_run_away_states_diverge() -> None:
    found = find_fixed_points(optax.trace(1.5), np.array([[1.0], [0.0]]))
    assert found.status == (Status.DIVERGED, Status.CONVERGED)
    found = find_fixed_points(state_only(lambda h, g: jnp.exp(h)), np.array([[1.0]]))
    assert found.status == (Status.DIVERGED,)


def test_error_estimate_sees_slow_modes() -> None:
    # Residual 1e-7 at distance 1e-3 from the fixed point of a mode with β = 0.9999.
    tx = optax.trace(0.9999)
    found = find_fixed_points(tx, np.array([[1e-3]]), iterations=0, newton_steps=0)
    assert found.status == (Status.STALLED,)
    assert found.residual[0] == pytest.approx(1e-7, rel=1e-6)
    assert found.error_estimate[0] == pytest.approx(1e-3, rel=1e-6)


def test_a_line_of_fixed_points() -> None:
    tx = state_only(lambda h, g: h + g)
    found = find_fixed_points(tx, np.array([[0.3], [0.7]]))
    assert found.status == (Status.CONVERGED,) * 2
    assert len(found.unique().h) == 2
    assert find_fixed_points(tx, np.array([[0.3]]), gradient=1.0).status == (Status.STALLED,)


def test_learned_optimizer_under_a_constant_gradient() -> None:
    _, step = learned("gru_reset_after")
    starts = step.h[None] + 0.1 * np.random.default_rng(0).normal(size=(6, step.h.size))
    unique = find_fixed_points(step, starts, gradient=0.1).unique()
    assert unique.multiplicity.sum() == 6
    for h in unique.h:
        np.testing.assert_allclose(step(jnp.asarray(h), jnp.asarray(0.1))[0], h, atol=1e-12)


def test_bad_starts() -> None:
    with pytest.raises(UserError, match="starts"):
        find_fixed_points(optax.adam(0.1), np.zeros((3, 1)))
    with pytest.raises(UserError, match="starts"):
        find_fixed_points(optax.adam(0.1), np.zeros(2))
