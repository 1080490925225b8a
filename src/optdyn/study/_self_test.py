"""Short checks that an installation computes what it should: a few seconds in all."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Key

from optdyn.dynamics import eigenmodes, linearize
from optdyn.meta_training import (
    MetaTraining,
    UnrollOptions,
    make_meta_step,
    meta_value_and_grad,
    start_training,
)
from optdyn.optimizers import Architecture, ComponentwiseRNN, Encoding
from optdyn.precision import double_precision, to_float64
from optdyn.pretrained import PRETRAINED, load_shipped
from optdyn.random_streams import stream
from optdyn.tasks import LinearRegression

STREAM = "self-test"
TASK = LinearRegression(n=3)
ALPHA, BETA = 0.5, 0.75
LARGEST_ERROR = 1e-9
LARGEST_SLOPE_ERROR = 1e-5
STEP = 1e-5
META_STEPS, AVERAGED = 30, 5
LEAST_IMPROVEMENT = 0.8


@dataclasses.dataclass(frozen=True)
class Check:
    """Whether something is as it should be, and what was found; how many seconds that took."""

    name: str
    ok: bool
    found: str
    seconds: float


Finding = tuple[bool, str]


def run_check(name: str, check: Callable[[], Finding]) -> Check:
    """What ``check`` finds; an error in it is a fault that it finds."""
    started = time.monotonic()
    try:
        ok, found = check()
    except Exception as error:
        # Whatever is broken may raise anything: that is what the check is for.
        ok, found = False, f"{type(error).__name__}: {error}"
    return Check(name, ok, " ".join(found.split()), round(time.monotonic() - started, 2))


def shipped_weights_are_intact() -> Finding:
    """Every file that ships agrees with its card."""
    if not PRETRAINED:
        return False, "none are in the package"
    for task in PRETRAINED:
        load_shipped(task)
    return True, ", ".join(PRETRAINED)


def momentum_is_recovered() -> Finding:
    """The modes of momentum are the (α, β) that it was made with."""
    modes = eigenmodes(linearize(optax.sgd(ALPHA, momentum=BETA)))
    alpha, beta = complex(modes.alpha[0]), complex(modes.beta[0])
    error = max(abs(alpha - ALPHA), abs(beta - BETA))
    return error < LARGEST_ERROR, f"learning rate {alpha.real:.12g}, momentum {beta.real:.12g}"


def meta_gradient_is_the_slope() -> Finding:
    """The meta-gradient along itself is the meta-objective's central difference, in float64."""
    key_init, key_readout, key_problems = jax.random.split(stream(0, STREAM), 3)
    options = UnrollOptions(num_steps=6, normalization="first")
    with double_precision():
        rnn = to_float64(_initialized(key_init, Architecture(units=3)))
        theta, unravel = ravel_pytree(rnn)
        theta = theta + 0.1 * jax.random.normal(key_readout, theta.shape)

        @jax.jit
        def value_and_gradient(vector: jax.Array) -> tuple[jax.Array, jax.Array]:
            value, gradient, _ = meta_value_and_grad(
                unravel(vector), TASK, key_problems, batch_size=2, options=options
            )
            return value, ravel_pytree(gradient)[0]

        _, gradient = value_and_gradient(theta)
        slope = float(jax.numpy.linalg.norm(gradient))
        ahead, _ = value_and_gradient(theta + STEP * gradient / slope)
        behind, _ = value_and_gradient(theta - STEP * gradient / slope)
    difference = (float(ahead) - float(behind)) / (2 * STEP)
    error = abs(difference / slope - 1.0)
    return error < LARGEST_SLOPE_ERROR, f"relative difference {error:.1g}"


@functools.partial(jax.jit, static_argnums=1)
def _initialized(key: Key[Array, ""], architecture: Architecture) -> ComponentwiseRNN:
    """Random meta-parameters, by one program in the place of many small ones."""
    return ComponentwiseRNN.init(key, architecture)


def training_lowers_the_loss() -> Finding:
    """A few meta-steps on linear regression lower the meta-objective, on fresh problems."""
    protocol = MetaTraining(
        num_meta_steps=META_STEPS,
        batch_size=8,
        unroll_length=20,
        learning_rate=1e-2,
        normalization="first",
    )
    architecture = Architecture(units=8, encoding=Encoding(gain=0.3), output_scale=1 / 0.3)
    optimizer = _initialized(stream(0, STREAM), architecture)
    meta_step = make_meta_step(TASK, protocol, seed=0)
    state, reached = start_training(optimizer, protocol), []
    for _ in range(META_STEPS):
        state, metrics = meta_step(state)
        reached.append(float(metrics.meta_objective))
    before, after = reached[0], sum(reached[-AVERAGED:]) / AVERAGED
    found = f"meta-objective {before:.3g}, after {META_STEPS} meta-steps {after:.3g}"
    return after < LEAST_IMPROVEMENT * before, found


CHECKS: dict[str, Callable[[], Finding]] = {
    "shipped weights are intact": shipped_weights_are_intact,
    "momentum's modes are its own": momentum_is_recovered,
    "the meta-gradient is the slope": meta_gradient_is_the_slope,
    "training lowers the loss": training_lowers_the_loss,
}
