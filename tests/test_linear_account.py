"""What linear dynamics account for, on optimizers where the answer is known."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optdyn.distillation import linear_account, share_of_advantage
from optdyn.dynamics import step_map
from optdyn.dynamics._operating_point import operating_point
from optdyn.errors import UserError
from optdyn.inner_loop import Objective, ProblemSet
from optdyn.optimizers._baselines import gradient_descent
from optdyn.tasks import LinearRegression

PROBLEMS = ProblemSet(LinearRegression(n=3), 0, 8, Objective(20), "accounted")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Momentum:
    """Momentum whose update is ``saturation·tanh(·/saturation)`` of the usual one.

    Its velocity starts at ``start``.
    """

    alpha: jax.Array
    beta: jax.Array
    start: jax.Array
    saturation: jax.Array

    def as_optax(self) -> optax.GradientTransformation:
        def init(params):
            return jax.tree.map(lambda p: jnp.full((*p.shape, 1), self.start, p.dtype), params)

        def update(gradients, state, params=None):
            del params
            v = jax.tree.map(
                lambda g, v: self.beta * v + self.alpha * g[..., None], gradients, state
            )
            limit = self.saturation
            return jax.tree.map(lambda v: -limit * jnp.tanh(v[..., 0] / limit), v), v

        return optax.GradientTransformation(init, update)


def account_of(start: float, saturation: float):
    optimizer = Momentum(*map(jnp.asarray, (0.5, 0.7, start, saturation)))
    histories = PROBLEMS.gradient_histories(lambda o: o.as_optax(), 4)(optimizer)
    point = operating_point(step_map(optimizer), histories)
    return linear_account(PROBLEMS, optimizer, point, gradient_descent(0.1))


def test_all_of_a_linear_optimizers_advantage_is_linear():
    account = account_of(start=0.0, saturation=1e4)
    assert account.deviation == pytest.approx(0.0, abs=1e-4)
    assert account.ratio == pytest.approx(1.0, rel=1e-4)
    assert account.linear_dynamics.fraction == pytest.approx(1.0, abs=1e-4)
    assert account.initial_transient.fraction == pytest.approx(0.0, abs=1e-4)
    assert account.nonlinearity.fraction == pytest.approx(0.0, abs=1e-4)
    assert set(account.diverged.values()) == {0}


def test_an_initial_velocity_is_the_transient_and_no_linear_dynamics():
    account, rested = account_of(start=0.3, saturation=1e4), account_of(0.0, 1e4)
    at_rest = account.scores["linear at rest"].mean
    assert at_rest == pytest.approx(rested.scores["full"].mean, rel=1e-4)
    assert abs(account.initial_transient.fraction) > 0.01
    assert account.nonlinearity.fraction == pytest.approx(0.0, abs=1e-4)


def test_what_saturates_is_nonlinear_and_the_three_parts_add_up():
    account = account_of(start=0.1, saturation=0.5)
    parts = (account.linear_dynamics, account.initial_transient, account.nonlinearity)
    assert sum(part.fraction for part in parts) == pytest.approx(1.0, abs=1e-6)
    assert abs(account.nonlinearity.fraction) > 0.01
    assert account.deviation > 0.01


def test_a_share_has_the_paired_standard_error_of_a_ratio():
    rng = np.random.default_rng(0)
    baseline = 1.0 + 0.1 * rng.normal(size=4000)
    learned = baseline - 0.5 - 0.05 * rng.normal(size=4000)
    after = baseline - 0.25 - 0.05 * rng.normal(size=4000)
    share = share_of_advantage(baseline, after, learned, baseline)
    assert share.fraction == pytest.approx(0.5, abs=4 * share.standard_error)
    expected = math.sqrt(0.05**2 + (0.5 * 0.05) ** 2) / 0.5 / math.sqrt(4000)
    assert share.standard_error == pytest.approx(expected, rel=0.05)


def test_a_diverged_step_has_no_share_and_other_problems_are_refused():
    ones = np.ones(3)
    assert math.isnan(share_of_advantage(ones * np.inf, ones, ones / 2, ones).fraction)
    with pytest.raises(UserError, match="same problems"):
        share_of_advantage(ones, np.ones(2), ones, ones)
