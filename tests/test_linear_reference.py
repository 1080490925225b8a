"""The best linear optimizers of a task, against the closed form of linear regression."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from optdyn.distillation import Fitting, LinearReference, Momenta, tune_linear_references
from optdyn.distillation._linear_reference import with_idle_modes
from optdyn.dynamics import eigenmodes, linearize
from optdyn.errors import UserError
from optdyn.inner_loop import Objective, ProblemSet
from optdyn.inner_loop._problem_set import VALIDATION_STREAM
from optdyn.meta_training import MetaTraining
from optdyn.precision import to_float64
from optdyn.tasks import LinearRegression

STEPS = 40
TASK = LinearRegression()
OBJECTIVE = Objective(STEPS, "first")
VALIDATION = ProblemSet(TASK, seed=0, number=8192, objective=OBJECTIVE, stream=VALIDATION_STREAM)


def weights_of_curvatures(
    curvature: np.ndarray, quadrature: np.ndarray, n: int = TASK.n
) -> np.ndarray:
    """What share of a problem's first loss lies along an eigenvector of each curvature.

    Along eigenvector i the loss is ``½ u_i``, ``u_i = (1 + λ_i) z²`` with z normal: the
    share is ``E[u_i / Σ_j u_j] = ∫ E[u e^(−tu)] E[e^(−tu)]^(n−1) dt``.
    """
    t, dt = np.geomspace(1e-6, 1e6, 501), np.log(1e12) / 500
    variance = 1.0 + curvature
    spread = 1.0 + 2.0 * t[:, None] * variance
    others = (spread**-0.5 @ quadrature) ** (n - 1)
    own = variance * spread**-1.5
    share = quadrature * ((t * dt * others) @ own)
    return share / share.sum()


NODES, QUADRATURE = np.polynomial.legendre.leggauss(100)
CURVATURE = 10.0 ** (TASK.low + (TASK.high - TASK.low) * (NODES + 1) / 2)
SHARE = weights_of_curvatures(CURVATURE, QUADRATURE / 2)


def closed_form(alpha: np.ndarray, beta: np.ndarray) -> float:
    """The meta-objective of modes on the distribution itself: no problem is sampled."""
    x, v, total = np.ones_like(CURVATURE), np.zeros((len(alpha), len(CURVATURE))), 0.0
    for _ in range(STEPS):
        v = beta[:, None] * v + alpha[:, None] * CURVATURE * x
        x = x - v.sum(axis=0)
        total += SHARE @ np.square(x)
    return float(total / STEPS)


def score(momenta: Momenta) -> float:
    return VALIDATION.score(CURVES(momenta))


CURVES = VALIDATION.curves(lambda momenta: momenta.as_optax())


@pytest.fixture(scope="module")
def tuned() -> dict[int, LinearReference]:
    protocol = MetaTraining(batch_size=64, unroll_length=STEPS, normalization="first")
    start = Momenta.of([2.0], [0.85])
    return tune_linear_references(
        TASK, protocol, start, 0, score, sizes=(1, 2), fitting=Fitting(0, 80, 3e-2)
    )


def test_the_closed_form_is_the_mean_over_problems():
    alpha, beta = [2.0, 0.5], [0.8, 0.3]
    sampled = score(Momenta.of(alpha, beta))
    assert sampled == pytest.approx(closed_form(np.array(alpha), np.array(beta)), rel=0.02)


def test_one_mode_reaches_the_best_momentum_of_the_distribution(tuned):
    found = minimize(
        lambda p: closed_form(p[:1], p[1:]), [2.0, 0.8], method="Nelder-Mead",
        options={"xatol": 1e-3, "fatol": 1e-6},
    )  # fmt: skip
    one = tuned[1]
    reached = closed_form(np.array(one.alpha), np.array(one.beta))
    assert reached == pytest.approx(found.fun, rel=0.01)


def test_a_second_mode_helps_and_the_slowest_comes_first(tuned):
    one, two = tuned[1], tuned[2]
    assert two.meta_objective < 0.97 * one.meta_objective
    assert two.beta[0] > two.beta[1]
    assert two.beta[0] > one.beta[0]
    assert (one.num_modes, two.num_modes) == (1, 2)


def test_the_modes_of_a_reference_are_its_numbers(x64):
    reference = LinearReference((2.0, 0.5), (0.9, 0.25), 0.1)
    modes = eigenmodes(linearize(to_float64(reference.momenta())))
    assert modes.beta.real == pytest.approx([0.9, 0.25], rel=1e-6)
    assert modes.alpha.real == pytest.approx([2.0, 0.5], rel=1e-6)


def test_idle_modes_change_nothing_and_are_told_apart():
    wide = with_idle_modes(Momenta.of([2.0], [0.8]), 4).values()
    assert wide["alpha"] == pytest.approx([2.0, 0.0, 0.0, 0.0])
    assert wide["beta"] == pytest.approx([0.8, 0.5, 0.2, 1 / 17], rel=1e-5)


def test_sizes_must_rise():
    with pytest.raises(UserError, match="sizes"):
        tune_linear_references(
            TASK, MetaTraining(), Momenta.of([1.0, 0.5], [0.8, 0.1]), 0, score, sizes=(1,)
        )
