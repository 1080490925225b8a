"""The meta-gradient by evolution strategies: forward unrolls alone, of perturbed optimizers.

Where the meta-objective L is chaotic in the meta-parameters θ, its gradient tells of the
nearest ripple. Evolution strategies estimate the gradient of the smoothed meta-objective
``E L(θ + σε)`` instead, ε standard normal, from antithetic pairs:
``(L(θ + σε) − L(θ − σε)) / (2σ) · ε``. Each problem has perturbations of its own.
(Metz et al. 2019, "Understanding and correcting pathologies in the training of learned
optimizers".)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from optdyn.inner_loop._batching import map_runs, runs_at_once
from optdyn.inner_loop._unroll import unroll
from optdyn.meta_training._components import spread_components
from optdyn.meta_training._containment import contain_gradients, hold_exploded
from optdyn.meta_training._each_alone import on_own_pytree, side_by_side
from optdyn.meta_training._exact import judged
from optdyn.meta_training._unroll_options import (
    Counts,
    Diagnostics,
    Estimator,
    Keys,
    MetaOptimizer,
    Setting,
    Tallies,
    reversible,
)
from optdyn.optimizers._state_precision import store_state_in
from optdyn.random_streams import derived
from optdyn.tasks._base import Problem, joint, unravel_one
from optdyn.tasks._gate import sample_batch

PERTURBATIONS = "perturbations of the meta-parameters"

CEILING = 10.0
"""A loss beyond this multiple of what is usual for it (`Objective.usual_loss`) counts as that
much: a perturbation that explodes says that it is bad, without drowning the others."""


class Moments(NamedTuple):
    """Over the problems that gave a finite gradient: their number, and the sums of their
    gradients and of these squared (of the meta-parameters' structure).
    """

    number: Float[Array, ""]
    total: PyTree
    squares: PyTree

    def mean(self) -> PyTree:
        """The mean gradient; 0 where there is none."""
        return jax.tree.map(lambda total: total / jnp.maximum(self.number, 1), self.total)


def moments_of(gradients: PyTree, counts: Bool[Array, " batch"]) -> Moments:
    """The moments of ``gradients`` (leaves [batch, ...]) over those that count and are finite."""
    finite = [
        jnp.all(jnp.isfinite(leaf).reshape(leaf.shape[0], -1), axis=1)
        for leaf in jax.tree.leaves(gradients)
    ]
    sound = counts & jnp.all(jnp.stack(finite), axis=0)

    def total(leaf: Array, power: int) -> Array:
        chosen = sound.reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.sum(jnp.where(chosen, leaf, 0.0) ** power, axis=0)

    return Moments(
        number=jnp.sum(sound).astype(jax.tree.leaves(gradients)[0].dtype),
        total=jax.tree.map(lambda leaf: total(leaf, 1), gradients),
        squares=jax.tree.map(lambda leaf: total(leaf, 2), gradients),
    )


def estimates(optimizer: MetaOptimizer, keys: Keys, setting: Setting) -> tuple[Tallies, PyTree]:
    """Each problem's (meta-loss, whether it is sound, whether contained) and its gradient.

    Arrays have the leading axis [batch], over the problem's pairs they are averaged. The
    meta-loss is that of the perturbed optimizers, 0 where one of their losses exploded.
    """
    options = setting.options
    pairs = jnp.arange(options.es_pairs)
    rows = (jnp.repeat(keys, options.es_pairs), jnp.tile(pairs, keys.shape[0]))

    def pair(key: Key[Array, ""], index: Array) -> tuple[Tallies, PyTree]:
        noise_key = jax.random.fold_in(derived(key, PERTURBATIONS), index)
        noise = optax.tree.random_like(noise_key, optimizer)
        batch = sample_batch(setting.task, key[None])
        apart = not side_by_side(optimizer, batch, setting.parts)
        problem, unravel = joint(batch), unravel_one(batch) if apart else None

        def perturbed(sign: Array) -> tuple[Array, Array, Array, Array]:
            theta = jax.tree.map(
                lambda leaf, each: leaf + sign * options.es_sigma * each, optimizer, noise
            )
            return _judge(theta, problem, unravel, setting)

        signs = jnp.array([1.0, -1.0], problem.params.dtype)
        limited, plain, sound, contained = jax.lax.map(perturbed, signs)
        slope = (limited[0] - limited[1]) / (2 * options.es_sigma)
        gradient = jax.tree.map(lambda each: slope * each, noise)
        return (jnp.mean(plain), jnp.all(sound), jnp.any(contained)), gradient

    (losses, sound, contained), gradients = map_runs(pair, rows, at_once(optimizer, keys, setting))

    def by_problem(leaf: Array) -> Array:
        return leaf.reshape(keys.shape[0], options.es_pairs, *leaf.shape[1:])

    sound = jnp.all(by_problem(sound), axis=1)
    losses = jnp.where(sound, jnp.mean(by_problem(losses), axis=1), 0.0)
    mean = jax.tree.map(lambda leaf: jnp.mean(by_problem(leaf), axis=1), gradients)
    return (losses, sound, jnp.any(by_problem(contained), axis=1)), mean


def _judge(
    optimizer: MetaOptimizer,
    problem: Problem,
    unravel: Callable[[Array], PyTree] | None,
    setting: Setting,
) -> tuple[Array, Array, Array, Array]:
    """Meta-loss up to `CEILING`, meta-loss, whether it is sound, whether it was contained.

    ``unravel``: see `on_own_pytree` (None: the optimizer is component-wise).
    """
    _, options, parts = setting
    tx = store_state_in(options.state_dtype, reversible(optimizer))
    suited = spread_components(tx, parts) if unravel is None else on_own_pytree(tx, unravel)
    trajectory = unroll(
        contain_gradients(suited), problem, options.num_steps, between_steps=hold_exploded
    )
    losses, events = trajectory.losses, trajectory.state.events
    limit = CEILING * options.objective.usual_loss(losses)
    limited = jnp.where(losses <= limit[None], losses, limit[None])
    each = options.objective.meta_loss(losses)[0]
    sound = ~options.objective.exploded(losses)[0] & ~(events[0, 1] > 0) & jnp.isfinite(each)
    contained = jnp.any(limited != losses) | jnp.any(events > 0)
    return options.objective.meta_loss(limited)[0], each, sound, contained


def at_once(optimizer: MetaOptimizer, keys: Keys, setting: Setting) -> int:
    """How many problems are worked on together: ``chunk``, or what suits their size."""
    if setting.options.chunk is not None:
        return setting.options.chunk
    return runs_at_once(reversible(optimizer), sample_batch(setting.task, keys))


def _sums(
    optimizer: MetaOptimizer, keys: Keys, counts: Counts, setting: Setting
) -> tuple[Tallies, Moments]:
    counts = jnp.ones(keys.shape, bool) if counts is None else counts
    (losses, sound, contained), gradients = estimates(optimizer, keys, setting)
    counted = sound & counts
    total = jnp.sum(jnp.where(counted, losses, 0.0))
    tallies = (total, jnp.sum(counted), jnp.sum(contained & counts))
    return tallies, moments_of(gradients, counts)


def _finish(sums: PyTree, batch_size: int) -> tuple[Array, PyTree, Diagnostics]:
    counts_and_losses, moments = sums
    value, diagnostics = judged(counts_and_losses, batch_size, 0.0)
    return value, moments.mean(), diagnostics


EVOLUTION = Estimator(_sums, _finish)
"""Antithetic evolution strategies. The value is that of the smoothed meta-objective."""
