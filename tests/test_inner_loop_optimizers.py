"""Optimizers of optax run in the inner loop as in optax's own loops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import helpers
from optdyn.errors import UserError
from optdyn.evaluation import evaluate
from optdyn.inner_loop import unroll, with_eval_params
from optdyn.meta_training import UnrollOptions, meta_value_and_grad
from optdyn.tasks import Problem

STEPS = 8


def loss(x: dict[str, jax.Array]) -> jax.Array:
    return jnp.sum(jnp.array([1.0, 3.0, 0.5]) * x["w"] ** 2) + 0.5 * jnp.sum((x["b"] - 1.0) ** 2)


START = {"w": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array([[0.3], [2.0]])}


@dataclasses.dataclass(frozen=True)
class Bowl:
    """The same quadratic from random starts."""

    def sample(self, key: jax.Array) -> Problem:
        return Problem(jax.tree.map(lambda x: x + jax.random.normal(key), START), loss)


def in_a_plain_loop(tx: optax.GradientTransformationExtraArgs, steps: int = STEPS) -> list[float]:
    """The losses of optax's own loop."""
    params, state = START, tx.init(START)
    update = optax.with_extra_args_support(tx).update

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(params, updates), state, value

    losses = []
    for _ in range(steps):
        params, state, value = step(params, state)
        losses.append(float(value))
    return [*losses, float(loss(params))]


OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "polyak": optax.polyak_sgd,
    "momo": lambda: optax.contrib.momo(0.1),
    "momo adam": lambda: optax.contrib.momo_adam(0.1),
    "backtracking": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15)
    ),
    "lbfgs": optax.lbfgs,
    "plateau": lambda: optax.chain(
        optax.adam(0.3), optax.contrib.reduce_on_plateau(patience=2, cooldown=0)
    ),
    "noise": lambda: optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(7)), optax.sgd(0.1)),
    "several steps at once": lambda: optax.MultiSteps(optax.adam(0.1), 3),
    "masked": lambda: optax.masked(optax.adam(0.1), {"w": True, "b": False}),
    "groups": lambda: optax.partition(
        {"slow": optax.sgd(0.01), "fast": optax.sgd(0.1, momentum=0.9)}, {"w": "slow", "b": "fast"}
    ),
    "norms": lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.lamb(0.1)),
    "finite": lambda: optax.apply_if_finite(optax.sgd(0.1), 3),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_losses_are_those_of_a_plain_loop(name: str) -> None:
    tx = OPTIMIZERS[name]()
    found = unroll(tx, Problem(START, loss), STEPS)
    np.testing.assert_allclose(found.losses, in_a_plain_loop(tx), rtol=2e-5, atol=1e-6)


def test_what_is_given_the_loss_is_given_its_own_problems_loss_in_an_evaluation() -> None:
    """Polyak's rate on ``½ c x²`` is f/|f'|² = 1/(2c): x halves at every step, whatever c."""

    @dataclasses.dataclass(frozen=True)
    class Parabola:
        def sample(self, key: jax.Array) -> Problem:
            c = jax.random.uniform(key, minval=0.5, maxval=2.0)
            return Problem(jnp.ones(()), lambda x, c: 0.5 * c * x**2, (c,))

    found = evaluate(optax.polyak_sgd(), Parabola(), seed=0, num_problems=6, num_steps=5)
    ratios = found.losses[:, 1:] / found.losses[:, :-1]
    np.testing.assert_allclose(ratios, 0.25, rtol=1e-5)


def test_lookahead_synchronises_every_fifth_step() -> None:
    start = optax.LookaheadParams.init_synced(jnp.array([1.0, -2.0]))
    problem = Problem(start, lambda p: jnp.sum(p.fast**2))
    found = unroll(optax.lookahead(optax.sgd(0.1), 5, 0.5), problem, 10)
    factor = 0.5 + 0.5 * 0.8**5
    np.testing.assert_allclose(found.params.slow, factor**2 * start.slow, rtol=1e-6)
    np.testing.assert_allclose(found.params.fast, found.params.slow)
    with pytest.raises(UserError, match="init_synced"):
        unroll(optax.lookahead(optax.sgd(0.1), 5, 0.5), Problem(START, loss), 2)


def test_schedule_free_is_judged_at_its_averages() -> None:
    schedule_free = optax.contrib.schedule_free_sgd(0.2)
    at = optax.contrib.schedule_free_eval_params
    found = unroll(with_eval_params(schedule_free, at), Problem(START, loss), STEPS)
    plain = unroll(schedule_free, Problem(START, loss), STEPS, record=("params", "states"))
    expected = [
        float(loss(at(*jax.tree.map(lambda leaf, k=k: leaf[k], pair))))
        for pair in [(plain.record["states"], plain.record["params"])]
        for k in range(STEPS)
    ]
    expected.append(float(loss(at(plain.state, plain.params))))
    np.testing.assert_allclose(found.losses, expected, rtol=1e-6)
    assert not np.allclose(found.losses, plain.losses, rtol=1e-2)


def test_parameters_of_sixteen_bits_are_rounded_as_optax_rounds_them() -> None:
    start = jnp.array([1.0, -0.7, 0.3], jnp.bfloat16)

    def narrow(x: jax.Array) -> jax.Array:
        return jnp.sum(x**2)

    tx = optax.adam(np.float32(0.05))
    found = unroll(tx, Problem(start, narrow), 20)
    params, state = start, tx.init(start)
    for _ in range(20):
        updates, state = tx.update(jax.grad(narrow)(params), state, params)
        params = optax.apply_updates(params, updates)
    assert found.params.dtype == jnp.bfloat16
    assert found.losses.dtype == jnp.float32
    np.testing.assert_allclose(
        np.asarray(found.params, np.float32), np.asarray(params, np.float32), rtol=0.02
    )


def test_a_state_that_the_first_step_widens_is_carried() -> None:
    """A rate of a wider type makes the momentum of `lars` wider than it begins."""
    start = {"w": jnp.ones((3, 2), jnp.bfloat16)}
    found = unroll(optax.lars(np.float32(100.0)), Problem(start, lambda p: jnp.sum(p["w"] ** 2)), 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(found.state)} >= {jnp.dtype(jnp.float32)}
    assert found.params["w"].dtype == jnp.bfloat16
    assert float(found.losses[-1]) < float(found.losses[0])
    growing = optax.GradientTransformation(
        lambda params: jnp.zeros(1), lambda g, state, params: (g, jnp.append(state, 0.0))
    )
    with pytest.raises(UserError, match="shapes of its state"):
        unroll(growing, Problem(START, loss), 2)


def test_an_optimizer_that_cannot_take_the_parameters_says_so() -> None:
    masked = optax.masked(optax.sgd(0.1), {"other": True})
    with pytest.raises(UserError, match="optimizer: its init fails on the problem's parameters"):
        unroll(masked, Problem(START, loss), 2)


# In meta-training


def test_a_line_search_has_no_reverse_pass() -> None:
    searching = helpers.Rate(jnp.float32(0.0), lambda: optax.scale_by_backtracking_linesearch(5))
    with pytest.raises(UserError, match=r'no reverse pass.*gradient="es"'):
        helpers.compiled_gradient(
            searching, Bowl(), jax.random.key(0), batch_size=2, options=UnrollOptions(num_steps=2)
        )


MADE = {
    "clipped by the norm": lambda: optax.clip_by_global_norm(0.5),
    "polyak": lambda: optax.scale_by_polyak(),
    "noise": lambda: optax.add_noise(0.1, 0.5, jax.random.key(3)),
    "groups": lambda: optax.partition(
        {"slow": optax.scale(0.1), "fast": optax.trace(0.9)}, {"w": "slow", "b": "fast"}
    ),
    "judged elsewhere": lambda: optax.trace(0.5),
}


@dataclasses.dataclass(frozen=True)
class JudgedElsewhere:
    """`helpers.Rate`, judged at half its parameters."""

    rate: helpers.Rate

    def as_optax(self) -> optax.GradientTransformation:
        return with_eval_params(
            self.rate.as_optax(), lambda _, params: jax.tree.map(lambda x: x / 2, params)
        )


jax.tree_util.register_dataclass(JudgedElsewhere, ["rate"], [])


@pytest.mark.parametrize("name", MADE)
@pytest.mark.usefixtures("x64")
def test_meta_gradients_of_any_optimizer_are_of_its_own_runs(name: str) -> None:
    """Each problem is met as where it is run alone: norms, leaves and losses are its own."""
    wrap = JudgedElsewhere if name == "judged elsewhere" else (lambda rate: rate)
    steps, batch, key = 4, 3, jax.random.key(0)

    def learned(at: jax.Array):
        return wrap(helpers.Rate(jnp.asarray(at, jnp.float64), MADE[name]))

    @jax.jit
    def alone(at: jax.Array) -> jax.Array:
        tx = learned(at).as_optax()
        problems = [Bowl().sample(jax.random.fold_in(key, i)) for i in range(batch)]
        return jnp.mean(jnp.stack([jnp.mean(unroll(tx, p, steps).losses[1:]) for p in problems]))

    @jax.jit
    def together(at: jax.Array):
        return meta_value_and_grad(
            learned(at), Bowl(), key, batch_size=batch, options=UnrollOptions(num_steps=steps)
        )

    value, gradient, found = together(-2.0)
    np.testing.assert_allclose(value, alone(-2.0), rtol=1e-10)
    difference = (alone(-2.0 + 1e-5) - alone(-2.0 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.tree.leaves(gradient)[0], difference, rtol=1e-6)
    assert (int(found.exploded), int(found.contained)) == (0, 0)


def test_a_state_that_grows_at_the_first_step_is_carried() -> None:
    monitored = optax.chain(optax.monitor({"norm": optax.tree.norm}), optax.sgd(0.1))
    found = unroll(monitored, Problem(START, loss), STEPS)
    plain = unroll(optax.sgd(0.1), Problem(START, loss), STEPS)
    np.testing.assert_array_equal(found.losses, plain.losses)
