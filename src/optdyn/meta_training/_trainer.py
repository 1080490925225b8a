"""The outer loop: Adam on the meta-gradient (appendix C.2)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from optdyn.errors import require_number, require_positive_int
from optdyn.inner_loop._objective import Objective
from optdyn.inner_loop._problem_set import first_losses
from optdyn.meta_training._gradient import meta_value_and_grad, require_gradient
from optdyn.meta_training._unroll_options import MetaOptimizer, UnrollOptions
from optdyn.random_streams import keys_at, stream
from optdyn.tasks._base import Task
from optdyn.tasks._gate import sample_batch

INIT_STREAM = "initial meta-parameters"
TRAIN_STREAM = "meta-training problems"


@dataclasses.dataclass(frozen=True)
class MetaTraining:
    """The protocol of meta-training; every default is the paper's (appendix C.2).

    For the options from ``normalization`` on, see also `UnrollOptions`; for ``average_over``,
    `TrainingState`.

    Attributes:
        num_meta_steps: meta-steps in all; each updates the learned optimizer's weights once
        unroll_length: inner steps for which the learned optimizer works on each problem
        batch_size: problems sampled for each meta-step
        learning_rate: meta learning rate: of the updates of the learned optimizer's weights, at
            the start
        decay: factor by which the meta learning rate falls
        decay_every: meta-steps between two such falls
        clip: largest size of an entry of the meta-gradient; larger ones are cut to it
        l2: factor on the penalty, the sum of the squared weights
        average_over: meta-steps whose weights are averaged, with falling shares; training then
            gives that average (none: the last weights)
        normalization: none, or first: divide the losses of each problem by its first loss
        max_cotangent_norm: largest norm of the gradient that is passed back from one inner step to
            the one before, for tasks where it explodes; the meta-gradient is then not exact (none:
            no limit)
        segment: inner steps between two stored states; the others are computed twice, which saves
            memory (none: all are stored)
        chunk: problems that a device works on at once, one chunk after another, which saves memory
            (none: all of its problems)
        memory_budget: bytes that a meta-step may store; segment and chunk are chosen to fit (none:
            no limit)
        state_dtype: how numbers of the optimizer's state are stored between steps: float32 or
            bfloat16
        gradient: how the meta-gradient is computed: exact (backpropagation, as in the paper), es
            (evolution strategies) or combined (both, weighted by their variances)
        es_sigma: standard deviation of the random changes of each weight in evolution strategies
        es_pairs: pairs of opposite random changes for each problem in evolution strategies
    """

    num_meta_steps: int = 5000
    unroll_length: int = 200
    batch_size: int = 32
    learning_rate: float = 1e-3
    decay: float = 0.8
    decay_every: int = 500
    clip: float = 5.0
    l2: float = 1e-5
    average_over: int | None = None
    normalization: str = "none"
    max_cotangent_norm: float | None = None
    segment: int | None = None
    chunk: int | None = None
    memory_budget: int | None = None
    state_dtype: str = "float32"
    gradient: str = "exact"
    es_sigma: float = 0.01
    es_pairs: int = 1

    def __post_init__(self) -> None:
        for name in ("num_meta_steps", "unroll_length", "batch_size", "decay_every"):
            require_positive_int(name, getattr(self, name))
        for name in ("learning_rate", "decay", "clip"):
            require_number(name, getattr(self, name))
        require_number("l2", self.l2, inclusive=True)
        if self.average_over is not None:
            require_positive_int("average_over", self.average_over)
        self.unroll_options()

    @property
    def objective(self) -> Objective:
        """What each unroll is judged by, in training, tuning and evaluation."""
        return Objective(self.unroll_length, self.normalization)

    def unroll_options(self) -> UnrollOptions:
        """The part of the protocol that one meta-gradient needs."""
        shared = {field.name for field in dataclasses.fields(UnrollOptions)} - {"num_steps"}
        options = {name: getattr(self, name) for name in shared}
        return UnrollOptions(num_steps=self.unroll_length, **options)

    def schedule(self) -> optax.Schedule:
        """Meta learning rate against meta-step: ×``decay`` every ``decay_every``."""
        return optax.exponential_decay(
            self.learning_rate, self.decay_every, self.decay, staircase=True
        )

    def meta_optimizer(self) -> optax.GradientTransformation:
        """Adam with the ℓ2 penalty's gradient, per-parameter clip and schedule."""
        return optax.chain(
            optax.add_decayed_weights(2.0 * self.l2),
            optax.clip(self.clip),
            optax.adam(self.schedule()),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainingState:
    """All that a run needs to go on: meta-parameters, Adam's state, steps done.

    ``average``: ``θ̄_k = θ̄_{k−1} + (θ_k − θ̄_{k−1}) / min(k, n)`` with n the protocol's
    ``average_over``: the mean of all meta-parameters at first, later one whose weights
    fall by 1/e over n meta-steps (Polyak and Juditsky 1992). A high meta learning rate
    makes the meta-parameters move to and fro; their average does not. Training itself
    goes on from ``optimizer``. None where the protocol asks for no average.
    """

    optimizer: Any
    adam: PyTree
    meta_step: Int[Array, ""]
    average: Any = None

    @property
    def averaged(self) -> Any:
        """What training gives: the average where there is one, else the meta-parameters."""
        return self.optimizer if self.average is None else self.average


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """What one meta-step reports (scalars)."""

    meta_objective: Array
    gradient_norm: Array
    exploded: Array
    contained: Array


def start_training(optimizer: MetaOptimizer, protocol: MetaTraining) -> TrainingState:
    """The state before the first meta-step of ``protocol``, with ``optimizer``'s weights."""
    return TrainingState(
        optimizer=optimizer,
        adam=protocol.meta_optimizer().init(optimizer),
        meta_step=jnp.zeros((), jnp.int32),
        average=None if protocol.average_over is None else optimizer,
    )


@dataclasses.dataclass(frozen=True)
class MetaStep:
    """A compiled meta-step: state in, next state and metrics out."""

    compiled: Any

    def __call__(self, state: TrainingState, *rate_factor: float) -> tuple[TrainingState, Metrics]:
        """Take the step, its learning rate multiplied by ``rate_factor`` where that is given.

        Raises `UserError` where the meta-gradient does not exist.
        """
        following, metrics = self.compiled(state, *rate_factor)
        if math.isnan(float(metrics.gradient_norm)):
            require_gradient(following.optimizer)
        return following, metrics

    def lower(self, state: TrainingState) -> Any:
        """What `jax.jit` lowers the step to."""
        return self.compiled.lower(state)


def make_meta_step(
    task: Task, protocol: MetaTraining, seed: int, mesh: Mesh | None = None
) -> MetaStep:
    """The compiled meta-step of ``protocol`` on ``task``: state in, next state and metrics out.

    Step k's problems come from ``fold_in`` of the seed and k, whatever the ``mesh``.
    A second argument multiplies the learning rate (Adam's updates are linear in
    it), so that many learning rates share one compiled program.

    Raises `UserError` for what is no task, for problems that cannot be solved by gradients,
    and where the first losses of the first meta-step's problems cannot be divided by.
    """
    meta_optimizer = protocol.meta_optimizer()
    options = protocol.unroll_options()
    root = stream(seed, TRAIN_STREAM)
    if protocol.normalization != "none":
        keys = keys_at(jax.random.fold_in(root, 0), jnp.arange(protocol.batch_size))
        protocol.objective.require_first_losses(first_losses(sample_batch(task, keys)))

    @jax.jit
    def meta_step(
        state: TrainingState, rate_factor: Float[Array, ""] | float = 1.0
    ) -> tuple[TrainingState, Metrics]:
        value, gradient, diagnostics = meta_value_and_grad(
            state.optimizer,
            task,
            jax.random.fold_in(root, state.meta_step),
            batch_size=protocol.batch_size,
            options=options,
            mesh=mesh,
        )
        updates, adam = meta_optimizer.update(gradient, state.adam, state.optimizer)
        updates = jax.tree.map(lambda leaf: rate_factor * leaf, updates)
        optimizer, count = optax.apply_updates(state.optimizer, updates), state.meta_step + 1
        average = state.average
        if protocol.average_over is not None:
            share = 1.0 / jnp.minimum(count, protocol.average_over)
            average = optax.incremental_update(optimizer, average, share)
        following = TrainingState(optimizer, adam, count, average)
        return following, Metrics(
            meta_objective=value,
            gradient_norm=optax.tree.norm(gradient),
            exploded=diagnostics.exploded,
            contained=diagnostics.contained,
        )

    return MetaStep(meta_step)
