"""Readable optimizers: parts, chain, fitting, what they keep, and their export as code."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers import small_part
from optdyn.distillation import (
    LADDER,
    AdaptiveScaling,
    Demonstration,
    Distilled,
    Fitting,
    Forgetting,
    Guess,
    Momenta,
    Saturation,
    Schedule,
    advantage_kept,
    as_code,
    extended,
    fit,
    from_values,
    imitate,
    imitation_error,
    leading_momentum,
    tuned_in_parts,
)
from optdyn.dynamics import eigenmodes, linearize
from optdyn.errors import UserError
from optdyn.evaluation import EVALUATION_STREAM, ProblemSet, evaluator
from optdyn.inner_loop._unroll import unroll
from optdyn.meta_training import MetaTraining
from optdyn.precision import to_float64
from optdyn.tasks import LinearRegression

WHOLE = Distilled(
    Momenta.of([0.3, 0.1], [0.2, 0.9]),
    adaptive=AdaptiveScaling.of(0.95, 0.4, 1e-3),
    saturation=Saturation.of(0.7, 0.6),
    forgetting=Forgetting.of(2.0, 0.7),
    schedule=Schedule.of([-0.5, 0.8], [0.6, 0.97]),
)
SIZES = {
    "one momentum": Distilled(Momenta.of([0.3], [0.9])),
    "saturation": dataclasses.replace(WHOLE, adaptive=None, schedule=None, forgetting=None),
    "schedule": dataclasses.replace(WHOLE, adaptive=None, saturation=None),
    "adaptive": WHOLE.without("forgetting").without("schedule"),
    "whole": WHOLE,
}
FEW = ["one momentum", "adaptive", "whole"]
"""The fewest parts, some, and all."""


def updates_of(tx: optax.GradientTransformation, gradients: jax.Array) -> np.ndarray:
    """[T, ...] what ``tx`` does with these gradients [T, ...]."""
    state, updates, step = tx.init(jnp.zeros_like(gradients[0])), [], jax.jit(tx.update)
    for gradient in gradients:
        update, state = step(gradient, state)
        updates.append(update)
    return np.stack(updates)


def gradients_of_every_size(steps: int = 30) -> jax.Array:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(steps, 5)) * 10.0 ** rng.uniform(-4, 3, (steps, 5)))


def test_momenta_alone_are_aggregated_momentum(x64):
    modes = eigenmodes(linearize(to_float64(Distilled(Momenta.of([0.5, 0.25], [0.75, 0.5])))))
    assert modes.beta.real == pytest.approx([0.75, 0.5], rel=1e-6)
    assert modes.alpha.real == pytest.approx([0.5, 0.25], rel=1e-6)
    assert modes.feedthrough == pytest.approx(0.0, abs=1e-12)


def test_a_full_power_is_rmsprop_with_adams_correction(x64):
    part = AdaptiveScaling(jnp.asarray(2.0), jnp.asarray(60.0), jnp.log(1e-3))
    g = gradients_of_every_size()
    gamma = float(jax.nn.sigmoid(2.0))
    adam = optax.scale_by_adam(b1=0.0, b2=gamma, eps=0.0, eps_root=1e-3)
    assert updates_of(part.as_optax(), g) == pytest.approx(updates_of(adam, g), rel=1e-9)


def test_saturation_is_linear_below_its_threshold_and_a_power_above(x64):
    tx = to_float64(Saturation.of(0.5, 0.75)).as_optax()
    g = jnp.asarray([1e-12, 0.5, 5e11, -5e11, 0.0])
    update = np.asarray(tx.update(g, tx.init(g))[0])
    assert update[:2] == pytest.approx([1e-12, 0.25], rel=1e-6)
    assert update[2] == pytest.approx(0.5 * 1e12**0.25, rel=1e-6)
    assert update[3] == -update[2]
    assert update[4] == 0.0


def test_the_schedule_relaxes_to_one(x64):
    tx = to_float64(Schedule.of([-0.5, 0.8], [0.6, 0.9])).as_optax()
    k = np.arange(300)
    expected = np.exp(-0.5 * 0.6**k + 0.8 * 0.9**k)
    assert updates_of(tx, jnp.ones((300, 1)))[:, 0] == pytest.approx(expected, rel=1e-6)


def test_a_large_gradient_makes_momentum_forget(x64):
    forgetting = to_float64(Forgetting.of(2.0, 0.5))
    tx = Distilled(to_float64(Momenta.of([1.0], [0.9])), forgetting=forgetting).as_optax()
    updates = updates_of(tx, jnp.asarray([[1e-9], [0.0], [8.0]]))[:, 0]
    assert updates[:2] == pytest.approx([-1e-9, -0.9e-9], rel=1e-6)
    # Of the old velocity 1/(1 + (8/2)^½) = 1/3 is kept.
    assert updates[2] + 8.0 == pytest.approx(-0.81e-9 / 3.0, rel=1e-5)


def test_values_make_the_same_optimizer_again():
    again = from_values(WHOLE.values())
    assert jax.tree.structure(again) == jax.tree.structure(WHOLE)
    for old, new in zip(jax.tree.leaves(WHOLE), jax.tree.leaves(again), strict=True):
        assert new == pytest.approx(np.asarray(old), rel=1e-5)
    assert WHOLE.size == 15
    assert WHOLE.name == "2 momenta, adaptive scaling, saturation, forgetting, schedule"


@pytest.mark.parametrize("name", small_part(FEW, SIZES))
def test_the_exported_code_gives_the_same_updates(name, x64):
    optimizer = to_float64(SIZES[name])
    code = as_code(optimizer, "a test")
    names: dict[str, Any] = {}
    exec(compile(code, name, "exec"), names)
    g = gradients_of_every_size()
    expected = updates_of(optimizer.as_optax(), g)
    with jax.numpy_rank_promotion("allow"):  # the code is for users, who have the default
        assert updates_of(names["distilled"](), g) == pytest.approx(expected, rel=1e-6)
    assert len(code.splitlines()) <= 24
    assert {line.split()[1] for line in code.splitlines() if line.startswith("import")} == {
        "jax", "jax.numpy", "optax"
    }  # fmt: skip


def test_the_exported_code_runs_without_this_package_on_any_pytree(tmp_path):
    program = as_code(WHOLE) + (
        "\nimport sys\n"
        "tx, x = distilled(), {'a': jnp.ones(3), 'b': [jnp.ones((2, 2))]}\n"
        "state = tx.init(x)\n"
        "step = jax.jit(tx.update)\n"
        "for _ in range(100):\n"
        "    updates, state = step(jax.tree.map(lambda p: 2 * p, x), state, x)\n"
        "    x = optax.apply_updates(x, updates)\n"
        "assert max(float(jnp.abs(p).max()) for p in jax.tree.leaves(x)) < 0.1\n"
        "assert 'optdyn' not in sys.modules\n"
    )
    path = tmp_path / "program.py"
    path.write_text(program)
    subprocess.run([sys.executable, str(path)], check=True, timeout=120)


def test_imitation_finds_the_momentum_that_was_shown():
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(20, 40)).astype(np.float32)
    tx = optax.sgd(0.2, momentum=0.8)
    updates = updates_of(tx, jnp.asarray(gradients.T)).T
    start = Distilled(Momenta.of([0.4], [0.5]))
    shown = Demonstration(gradients, updates)
    still = Distilled(Momenta(jnp.asarray(-30.0), jnp.ones(1), jnp.zeros(1)))
    assert imitation_error(still, shown) == pytest.approx(1.0, rel=1e-4)
    found = imitate(start, shown, Fitting(imitation_steps=400))
    assert imitation_error(found, shown) < 0.01 < imitation_error(start, shown)
    assert found.momenta.alpha[0] == pytest.approx(0.2, rel=0.02)
    assert found.momenta.beta[0] == pytest.approx(0.8, rel=0.02)


def test_fitting_lowers_the_meta_objective_on_unseen_problems():
    task = LinearRegression(n=3)
    protocol = MetaTraining(unroll_length=20, batch_size=4, normalization="first")
    start = extended(Distilled(Momenta.of([0.2], [0.3])), "schedule", Guess(1.0, 0.5, 1.0, 1.0))
    problems = ProblemSet(task, 0, 16, protocol.objective, EVALUATION_STREAM)
    run = evaluator(Distilled.as_optax, problems)

    def score(optimizer: Distilled) -> float:
        return run(optimizer).mean

    fitted = fit(start, task, protocol, Fitting(meta_steps=40), 0, score)
    assert score(fitted) < 0.8 * score(start)
    # A fit that only does harm gives back where it started.
    assert fit(start, task, protocol, Fitting(meta_steps=12), 0, lambda o: -score(o)) is start


@pytest.mark.parametrize("name", small_part(FEW, SIZES))
def test_a_widened_optimizer_does_the_same_to_the_bit(name):
    optimizer = SIZES[name]
    whole = optimizer.whole()
    assert whole.size == 15
    assert jax.tree.structure(whole) == jax.tree.structure(WHOLE)
    g = gradients_of_every_size().astype(jnp.float32)
    np.testing.assert_array_equal(
        updates_of(whole.as_optax(), g), updates_of(optimizer.as_optax(), g)
    )
    assert optimizer.widened(optimizer) == optimizer


def test_tuned_momentum_is_a_size_exactly():
    found = tuned_in_parts({"momentum": {"alpha": 0.3, "beta": 0.9}})["momentum"]
    assert found.name == "1 momentum"
    g = gradients_of_every_size().astype(jnp.float32)
    expected = updates_of(optax.sgd(0.3, momentum=0.9), g)
    assert updates_of(found.as_optax(), g) == pytest.approx(expected, rel=1e-5)


def test_tuned_adaptive_baselines_do_in_parts_as_they_do_under_a_constant_gradient(x64):
    tuned = {
        "rmsprop": {"alpha": 0.01, "gamma": 0.95},
        "adam": {"alpha": 0.02, "beta1": 0.8, "beta2": 0.97},
    }
    found = tuned_in_parts(tuned)
    g = jnp.broadcast_to(jnp.asarray([0.3, -5.0]), (400, 2))
    for name, rate in (("rmsprop", 0.01), ("adam", 0.02)):
        assert list(found[name].parts()) == ["adaptive", "momenta"]
        last = updates_of(to_float64(found[name]).as_optax(), g)[-1]
        assert last == pytest.approx([-rate, rate], rel=5e-3)
    # Without memory for gradients, Adam is what the parts say, at every step.
    memoryless = tuned_in_parts({"adam": {"alpha": 0.02, "beta1": 0.0, "beta2": 0.97}})["adam"]
    g = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2.0, (60, 3)))
    expected = updates_of(optax.adam(0.02, b1=0.0, b2=0.97), g)
    got = updates_of(to_float64(memoryless).as_optax(), g)
    assert got == pytest.approx(expected, rel=5e-3)


def test_the_ladder_adds_one_part_at_a_time_and_hardly_changes_what_is_done():
    guess = Guess(alpha=0.5, beta=0.9, threshold=100.0, gradient=0.3)
    problem = LinearRegression().sample(jax.random.key(0))
    current, sizes, losses = None, [], []
    for added in LADDER:
        current = extended(current, added, guess)
        sizes.append(current.size)
        losses.append(float(unroll(current.as_optax(), problem, 50).losses[-1]))
    assert sizes == [2, 4, 6, 10, 13, 15]
    assert list(current.parts()) == ["adaptive", "saturation", "momenta", "forgetting", "schedule"]
    assert np.ptp(np.log(losses[1:])) < 0.5
    with pytest.raises(UserError, match="part: unknown value 'gears'"):
        extended(current, "gears", guess)


def test_the_leading_momentum_of_an_analysed_optimizer():
    both = eigenmodes(linearize(optax.sgd(0.5, momentum=0.75)))
    assert leading_momentum(both) == pytest.approx((0.5, 0.75), rel=1e-9)
    plain = eigenmodes(linearize(optax.sgd(0.5)))
    assert leading_momentum(plain) == pytest.approx((0.5, 0.05), rel=1e-9)


def test_the_advantage_kept_is_a_ratio_of_means_with_its_error():
    rng = np.random.default_rng(0)
    baseline = rng.uniform(1.0, 2.0, 64)
    learned = 0.5 * baseline
    exact = advantage_kept(0.6 * baseline, learned, baseline)
    assert exact.fraction == pytest.approx(0.8, rel=1e-12)
    assert exact.standard_error == pytest.approx(0.0, abs=1e-12)
    # The spread of many repetitions is what the standard error says.
    repeated = [
        advantage_kept(learned + 0.1 * rng.normal(size=64), learned, baseline) for _ in range(500)
    ]
    spread = np.std([kept.fraction for kept in repeated])
    assert np.mean([kept.standard_error for kept in repeated]) == pytest.approx(spread, rel=0.1)
    assert np.isnan(advantage_kept(learned, baseline, learned).fraction)
    assert np.isnan(advantage_kept(np.full(64, np.inf), learned, baseline).fraction)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Momenta.of([0.1], [1.0]), r"beta: 1.0 is not allowed \(above 0, below 1\)"),
        (lambda: Momenta.of([0.0], [0.5]), "alpha: 0.0 is not allowed"),
        (lambda: Saturation.of(float("inf"), 0.5), "threshold: inf is not allowed"),
        (lambda: Schedule.of([1.0], [0.0]), "decay: 0.0 is not allowed"),
        (
            lambda: WHOLE.without("momenta"),
            r"part: 'momenta' .* adaptive, saturation, forgetting, schedule",
        ),
        (lambda: from_values({"momenta": {"alpha": [1.0]}}), "distilled optimizer: bad values"),
        (lambda: Demonstration(np.ones((2, 3)), np.ones((3, 2))), "demonstration: shapes"),
        (lambda: Fitting(meta_steps=-1), "meta_steps: -1 is not allowed"),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
