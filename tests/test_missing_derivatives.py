"""Where an update has no derivative: what is replaced, and what is refused by name."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import helpers
from optdyn.errors import UserError
from optdyn.inner_loop import unroll
from optdyn.meta_training import (
    MetaTraining,
    UnrollOptions,
    make_meta_step,
    meta_value_and_grad,
    start_training,
)
from optdyn.tasks import Problem

STEPS = 6
KEY = jax.random.key(0)
OPTIONS = UnrollOptions(num_steps=STEPS)


@dataclasses.dataclass(frozen=True)
class PartlyDead:
    """``c x₀²``, to which some problems' x₁ adds and others' does not: its gradient is 0 there."""

    def sample(self, key: jax.Array) -> Problem:
        alive = jax.random.bernoulli(key).astype(float)
        start = jnp.array([1.0, 2.0]) + 0.1 * jax.random.normal(key, (2,))
        return Problem(start, lambda x, alive: x[0] ** 2 + alive * x[1] ** 2, (alive,))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnedAdam:
    """Adam whose decay of the second moment is learned."""

    logit: jax.Array
    eps_root: float = dataclasses.field(default=0.0, metadata={"static": True})

    def as_optax(self) -> optax.GradientTransformation:
        b2 = jax.nn.sigmoid(self.logit)
        return optax.chain(
            optax.scale_by_adam(b2=b2, eps_root=self.eps_root),
            optax.scale(-0.1),
        )


def found(optimizer: object, batch: int = 4, options: UnrollOptions = OPTIONS):
    return jax.jit(
        lambda o: meta_value_and_grad(o, PartlyDead(), KEY, batch_size=batch, options=options)
    )(optimizer)


def difference(make, at: float, batch: int = 4) -> float:
    """Central difference of the mean over the problems, each run alone."""

    @jax.jit
    def mean(at: jax.Array) -> jax.Array:
        tx = make(at).as_optax()
        each = [
            jnp.mean(unroll(tx, PartlyDead().sample(jax.random.fold_in(KEY, i)), STEPS).losses[1:])
            for i in range(batch)
        ]
        return jnp.mean(jnp.stack(each))

    return float((mean(at + 1e-5) - mean(at - 1e-5)) / 2e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("componentwise", [True, False])
@pytest.mark.parametrize("bound", [None, 100.0])
def test_a_component_without_derivative_spoils_no_other(
    componentwise: bool, bound: float | None
) -> None:
    """Adam's root of a second moment of zero: the rate's gradient has no part in it."""

    def rate(at: jax.Array) -> helpers.Rate:
        return helpers.Rate(jnp.asarray(at, jnp.float64), optax.scale_by_adam, componentwise)

    options = UnrollOptions(num_steps=STEPS, max_cotangent_norm=bound)
    _, gradient, counts = found(rate(-2.0), options=options)
    np.testing.assert_allclose(gradient.log_rate, difference(rate, -2.0), rtol=1e-6)
    assert 0 < int(counts.contained) < 4
    assert int(counts.exploded) == 0


def test_a_meta_gradient_that_does_not_exist_is_refused_by_its_leaf() -> None:
    optimizer = LearnedAdam(jnp.float32(2.0))
    with pytest.raises(UserError, match=r"meta-gradient: \.logit is not a number .*eps_root > 0"):
        meta_value_and_grad(optimizer, PartlyDead(), KEY, batch_size=2, options=OPTIONS)
    protocol = MetaTraining(unroll_length=STEPS, batch_size=2)
    step = make_meta_step(PartlyDead(), protocol, seed=0)
    with pytest.raises(UserError, match=r"\.logit is not a number"):
        step(start_training(optimizer, protocol))


@pytest.mark.usefixtures("x64")
def test_what_the_message_suggests_helps() -> None:
    def learned(at: jax.Array) -> LearnedAdam:
        return LearnedAdam(jnp.asarray(at, jnp.float64), eps_root=1e-8)

    _, gradient, counts = found(learned(2.0))
    np.testing.assert_allclose(gradient.logit, difference(learned, 2.0), rtol=1e-6)
    assert (int(counts.exploded), int(counts.contained)) == (0, 0)
