"""Evolution strategies and the combination with the exact meta-gradient, in closed form."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optdyn.errors import UserError
from optdyn.meta_training import (
    MetaTraining,
    UnrollOptions,
    make_meta_step,
    meta_value_and_grad,
    start_training,
)
from optdyn.meta_training._evolution import estimates, moments_of
from optdyn.meta_training._unroll_options import Setting
from optdyn.random_streams import keys_at
from optdyn.tasks import Problem

SIGMA = 0.1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shift:
    """An optimizer whose every step is θ, whatever the gradient: after one from 0, x = θ."""

    theta: jax.Array

    def as_optax(self):
        def update(g, state, params=None):
            return jnp.broadcast_to(self.theta, g.shape), state

        return optax.GradientTransformation(lambda params: jnp.zeros(params.shape), update)


CENTRE = np.array([3.0, -2.0, 1.0, 0.5])


@dataclasses.dataclass(frozen=True)
class Bowl:
    """``½‖x − a‖²`` from x = 0: one step of `Shift` gives the meta-objective ``½‖θ − a‖²``."""

    def sample(self, key):
        return Problem(jnp.zeros(4), lambda x: 0.5 * jnp.sum((x - CENTRE) ** 2))


@dataclasses.dataclass(frozen=True)
class Ripples:
    """``½(x − 1)² + sin(kx + φ) / k``, φ uniform, k = 1/SIGMA: chaotic, of mean ``½(x − 1)²``."""

    def sample(self, key):
        phase = jax.random.uniform(key, (), minval=0.0, maxval=2 * math.pi)
        return Problem(
            jnp.zeros(1),
            lambda x, phase: jnp.sum(0.5 * (x - 1) ** 2 + SIGMA * jnp.sin(x / SIGMA + phase)),
            (phase,),
        )


def estimate(theta, task, key, batch_size, **options):
    """Value, gradient with respect to θ, and diagnostics of a compiled estimate."""
    value, gradient, diagnostics = jax.jit(
        lambda opt: meta_value_and_grad(
            opt, task, key, batch_size=batch_size, options=UnrollOptions(**options)
        )
    )(Shift(theta))
    return value, gradient.theta, diagnostics


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("pairs", [1, 4])
def test_evolution_strategies_on_a_quadratic_have_its_gradient_and_the_known_variance(pairs):
    # On a quadratic a pair's difference is exactly 2σ ε·g, so its estimate is (ε·g) ε:
    # of mean g, and of variance |g|² + g_i² in entry i, by the normal's fourth moment.
    theta, count = jnp.array([0.5, 1.0, -1.0, 2.0]), 4096 // pairs
    options = UnrollOptions(num_steps=1, es_sigma=SIGMA, es_pairs=pairs)
    keys = keys_at(jax.random.key(0), jnp.arange(count))
    (losses, sound, contained), rows = jax.jit(
        lambda opt: estimates(opt, keys, Setting(Bowl(), options))
    )(Shift(theta))
    g = theta - CENTRE
    variance = (jnp.sum(g**2) + g**2) / pairs
    np.testing.assert_array_less(
        jnp.abs(jnp.mean(rows.theta, axis=0) - g), 4.5 * jnp.sqrt(variance / count)
    )
    np.testing.assert_allclose(jnp.var(rows.theta, axis=0), variance, rtol=0.15)
    # The smoothed objective lies σ²/2 for each entry above the plain one.
    smoothed = 0.5 * jnp.sum(g**2) + 0.5 * SIGMA**2 * theta.size
    np.testing.assert_allclose(jnp.mean(losses), smoothed, rtol=1e-3)
    assert sound.all()
    assert not contained.any()


@pytest.mark.usefixtures("x64")
def test_evolution_strategies_are_the_mean_over_problems():
    theta, key = jnp.array([0.5, 1.0, -1.0, 2.0]), jax.random.key(0)
    setting = Setting(Bowl(), UnrollOptions(num_steps=1, es_sigma=SIGMA))
    keys = keys_at(key, jnp.arange(6))
    rows = jax.jit(lambda opt: estimates(opt, keys, setting)[1])(Shift(theta)).theta
    _, gradient, diagnostics = estimate(
        theta, Bowl(), key, 6, num_steps=1, gradient="es", es_sigma=SIGMA
    )
    np.testing.assert_allclose(gradient, jnp.mean(rows, axis=0), rtol=1e-12)
    assert diagnostics.exact_share == 0.0


@pytest.mark.usefixtures("x64")
def test_the_combination_varies_less_than_either_estimate():
    # At θ = 1 the exact gradient of a problem is cos(1/σ + φ), of variance 1/2. A pair gives
    # cos(1/σ + φ) sin(ε) ε, of variance (1 + 3 e⁻²) / 4. Both have mean zero.
    batch, repetitions = 16, 1024
    of_exact, of_es = 0.5, (1 + 3 * math.exp(-2)) / 4
    keys = keys_at(jax.random.key(4), jnp.arange(repetitions))

    def gradients(name):
        options = UnrollOptions(num_steps=1, gradient=name, es_sigma=SIGMA)

        @jax.jit
        @jax.vmap
        def estimate(key):
            _, gradient, diagnostics = meta_value_and_grad(
                Shift(jnp.ones(1)), Ripples(), key, batch_size=batch, options=options
            )
            return gradient.theta[0], diagnostics.exact_share

        return estimate(keys)

    variances = {}
    for name in ("exact", "es", "combined"):
        found, shares = gradients(name)
        variances[name] = float(jnp.var(found) * batch)
        assert abs(jnp.mean(found)) < 4.5 * jnp.std(found) / math.sqrt(repetitions)
    np.testing.assert_allclose(variances["exact"], of_exact, rtol=0.15)
    np.testing.assert_allclose(variances["es"], of_es, rtol=0.15)
    # What the best weights would give, and a little for weights that 16 problems tell.
    best = 1 / (1 / of_exact + 1 / of_es)
    assert best * 0.9 < variances["combined"] < best * 1.25
    assert variances["combined"] < 0.75 * min(of_exact, of_es)
    np.testing.assert_allclose(jnp.mean(shares), of_es / (of_es + of_exact), atol=0.05)


def test_gradients_that_are_not_finite_are_left_out_of_the_moments():
    rows = {
        "a": jnp.array([[1.0, 2.0], [jnp.nan, 1.0], [3.0, 4.0], [9.0, 9.0]]),
        "b": jnp.arange(4.0),
    }
    moments = moments_of(rows, jnp.array([True, True, True, False]))
    assert moments.number == 2
    np.testing.assert_array_equal(moments.mean()["a"], [2.0, 3.0])
    np.testing.assert_array_equal(moments.mean()["b"], 1.0)
    np.testing.assert_array_equal(moments.squares["a"], [10.0, 20.0])


@dataclasses.dataclass(frozen=True)
class Cliff:
    """Beyond x = 0.9 the loss and its gradient are not finite."""

    def sample(self, key):
        return Problem(jnp.zeros(2), lambda x: jnp.sum((x - 1) ** 2 + jnp.sqrt(0.9 - x)))


def test_beyond_a_cliff_evolution_strategies_alone_tell_the_way_back():
    value, gradient, diagnostics = estimate(
        jnp.ones(2),
        Cliff(),
        jax.random.key(1),
        64,
        num_steps=1,
        gradient="combined",
        es_sigma=0.3,
    )
    assert value == jnp.inf
    assert int(diagnostics.exploded) == 64
    assert diagnostics.exact_share == 0.0
    assert jnp.all(gradient > 0)  # descent leads back


@pytest.mark.parametrize("name", ["es", "combined"])
def test_a_perturbation_that_explodes_is_limited_and_counted(name):
    # A loss of thousands counts as ten times its first value, which is about a half.
    _, gradient, diagnostics = estimate(
        jnp.full(1, 60.0),
        Ripples(),
        jax.random.key(0),
        8,
        num_steps=1,
        gradient=name,
        es_sigma=40.0,
    )
    # A slope of at most 10 · 0.6 / 80, times ε; the exact gradient is 59.
    assert jnp.abs(gradient[0]) < (0.3 if name == "es" else 60.0)
    assert 0 < int(diagnostics.contained) <= 8


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["es", "combined"])
def test_chunks_leave_the_estimate_unchanged(name):
    def found(chunk):
        settings = {"num_steps": 2, "gradient": name, "es_pairs": 2, "chunk": chunk}
        value, gradient, _ = estimate(jnp.ones(1), Ripples(), jax.random.key(1), 4, **settings)
        return [value, gradient[0]]

    np.testing.assert_allclose(found(2), found(None), rtol=1e-10)


@pytest.mark.parametrize("name", ["es", "combined"])
def test_meta_training_finds_the_optimum_whatever_the_estimator(name):
    protocol = MetaTraining(
        unroll_length=1, batch_size=4, learning_rate=0.3, decay_every=20, gradient=name
    )
    meta_step = make_meta_step(Bowl(), protocol, seed=0)
    state = start_training(Shift(jnp.zeros(4)), protocol)
    for _ in range(100):
        state, metrics = meta_step(state)
    np.testing.assert_allclose(state.optimizer.theta, CENTRE, atol=0.15)
    assert metrics.meta_objective < 0.05


def test_what_an_estimator_cannot_do_is_refused():
    with pytest.raises(UserError, match="gradient: unknown value 'both'"):
        MetaTraining(gradient="both")
    with pytest.raises(UserError, match=r"es_sigma: 0\.0 is not allowed"):
        UnrollOptions(es_sigma=0.0)
    with pytest.raises(UserError, match="es_pairs: 0 is not allowed"):
        MetaTraining(es_pairs=0)
    with pytest.raises(UserError, match="batch size: 1 is not allowed with the gradient 'comb"):
        meta_value_and_grad(
            Shift(jnp.ones(4)),
            Bowl(),
            jax.random.key(0),
            batch_size=1,
            options=UnrollOptions(gradient="combined"),
        )
