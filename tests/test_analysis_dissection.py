"""One optimizer taken apart: operating points, the task's curvatures, and the summary."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers import small_part
from optdyn.dynamics import eigenmodes, step_map
from optdyn.dynamics._dissection import dissect, natural_linearization
from optdyn.errors import UserError
from optdyn.tasks import LinearRegression, Problem
from optdyn.tasks._curvature import task_curvatures


def naturally(tx: optax.GradientTransformation, **options):
    return natural_linearization(step_map(tx), **{"gradient_scale": 1.0, **options})


@pytest.mark.parametrize(
    ("tx", "where"),
    [
        (optax.sgd(0.1, momentum=0.9), "the initial state, at zero gradient"),
        (optax.optimistic_gradient_descent(0.1), "the initial state, at zero gradient"),
        (
            optax.adam(0.1),
            "the stationary state of gradients ±1, at zero gradient, counters at 20000",
        ),
        (optax.rmsprop(0.1), "the stationary state of gradients ±1, at zero gradient"),
        (
            optax.lion(0.1),
            "the stationary state of a constant gradient 1, at it, counters at 20000",
        ),
        (optax.sign_sgd(0.1), "the stationary state of a constant gradient 1, at it"),
    ],
    ids=["momentum", "optimistic", "adam", "rmsprop", "lion", "sign"],
)
def test_each_kind_has_its_operating_point(tx: optax.GradientTransformation, where: str) -> None:
    assert naturally(tx)[1] == where


def test_second_moments_are_those_of_the_gradients() -> None:
    lin, _ = naturally(optax.rmsprop(0.1, eps=1e-12), gradient_scale=0.02)
    assert pytest.approx(-0.1 / (np.sqrt(0.9) * 0.02), rel=1e-6) == lin.D
    lin, _ = naturally(optax.rmsprop(0.1, eps=1e-12), gradient_scale=0.02, count=7)
    nu = 0.9 * (1 - 0.9**7) * 0.02**2
    assert pytest.approx(-0.1 / np.sqrt(nu), rel=1e-6) == lin.D


@pytest.mark.parametrize(
    ("count", "scale"),
    small_part(
        [(1, 0.5), (10, 1e-7), (30_000, 0.5)], itertools.product([1, 10, 30_000], [0.5, 1e-7])
    ),
)
def test_moments_and_bias_corrections_are_of_one_step(count: int, scale: float) -> None:
    lin, where = naturally(optax.adam(0.1, eps=0.0), gradient_scale=scale, count=count)
    # After 'count' gradients ±s, a zero gradient is the next.
    rate = (1 - 0.9) / (1 - 0.9 ** (count + 1))
    second = 0.999 * (1 - 0.999**count) / (1 - 0.999 ** (count + 1)) * scale**2
    assert pytest.approx(-0.1 * rate / np.sqrt(second), rel=1e-6) == lin.D
    steps = min(count, 20_000)
    assert where == (
        f"the state after {steps} gradients ±{scale:.4g}, at zero gradient, counters at {count}"
    )


def test_what_an_optimizer_is_does_not_depend_on_the_count() -> None:
    found = dissect(optax.adam(0.1), count=10).identification
    assert (found.nearest.name, found.exact) == ("adam", True)


def test_gradients_are_of_the_size_that_no_clip_acts_on() -> None:
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    found = dissect(tx, gradient_scale=50.0)
    assert found.gradient_scale < 1.0
    assert found.summary()["gradient_scale"] == found.gradient_scale
    assert dissect(tx, gradient_scale=1e-4).gradient_scale == 1e-4


def test_flags_settle_and_counters_do_not() -> None:
    lin, _ = naturally(optax.optimistic_gradient_descent(0.1))
    assert eigenmodes(lin).feedthrough == pytest.approx(0.2, rel=1e-12)
    schedule = optax.linear_schedule(1.0, 0.0, 100)
    assert pytest.approx(-1.0, rel=1e-9) == naturally(optax.sgd(schedule))[0].D
    lin, where = naturally(optax.sgd(schedule), count=75)
    assert pytest.approx(-0.25, rel=1e-6) == lin.D
    assert where.endswith("counters at 75")


def test_what_grows_without_bound_is_seen_from_its_start() -> None:
    lin, where = naturally(optax.sgd(0.1, momentum=1.05))
    assert where == "the initial state, at zero gradient"
    np.testing.assert_allclose(eigenmodes(lin).beta, [1.05], rtol=1e-12)


def test_what_cannot_be_taken_apart() -> None:
    with pytest.raises(UserError, match="one factor scales them all"):
        dissect(optax.chain(optax.scale_by_trust_ratio(), optax.scale(-0.1)))
    with pytest.raises(UserError, match="treats a matrix as a whole"):
        dissect(optax.contrib.muon(0.1))
    pair = optax.LookaheadParams.init_synced(jnp.ones(2))
    for place in ({}, {"params": jnp.ones(2)}, {"params": pair, "leaf": "fast"}):
        with pytest.raises(UserError, match=r"no single component.*optdyn\.closed_loop"):
            dissect(optax.lookahead(optax.sgd(0.1), 5, 0.5), **place)
    with pytest.raises(UserError, match="gradient_scale"):
        dissect(optax.sgd(0.1), gradient_scale=-1.0)


def test_curvatures_of_linear_regression() -> None:
    values = task_curvatures(LinearRegression(n=3, low=-2.0, high=-1.0), num_problems=4)
    assert values.shape == (12,)
    assert np.all(np.diff(values) >= 0)
    assert 0.00999 < values[0] < values[-1] < 0.1001


@dataclasses.dataclass(frozen=True)
class Diagonal:
    """½ Σ c_i x_i² with known curvatures c."""

    curvatures: tuple[float, ...]

    def sample(self, key: jax.Array) -> Problem:
        del key
        c = jnp.array(self.curvatures)
        return Problem(jnp.ones(len(self.curvatures)), lambda x, c: 0.5 * jnp.sum(c * x**2), (c,))


def test_only_upward_curvatures_count() -> None:
    values = task_curvatures(Diagonal((-1.0, 0.0, 0.5, 2.0)), num_problems=1)
    np.testing.assert_allclose(values, [0.5, 2.0], rtol=1e-6)
    with pytest.raises(UserError, match="curve upwards nowhere"):
        task_curvatures(Diagonal((-1.0, 0.0)), num_problems=1)


def test_large_problems_show_the_range_of_their_curvatures() -> None:
    task = Diagonal((0.1, 50.0, 100.0) + (1.0,) * 300)
    values = task_curvatures(task, num_problems=1)
    # Four distinct eigenvalues: Lanczos finds them in four steps, and stops.
    np.testing.assert_allclose(values, [0.1, 1.0, 50.0, 100.0], rtol=1e-6)


def test_at_the_initial_state_all_that_components_share_is_initial() -> None:
    def update(gradients: jax.Array, rate: jax.Array, params: jax.Array | None = None):
        return -rate * gradients, 0.5 + 0.9 * (rate - 0.5)

    tx = optax.GradientTransformation(lambda params: jnp.ones(()), update)
    lin, where = naturally(tx)
    assert where == "the initial state, at zero gradient"
    assert lin.D == -1.0
