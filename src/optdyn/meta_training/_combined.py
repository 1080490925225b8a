"""The exact meta-gradient and evolution strategies, weighed by their inverse variances.

With means e and s over the problems of a batch, and v_e, v_s the variances of these means
as the batch shows them, the combination is ``(e / v_e + s / v_s) / (1 / v_e + 1 / v_s)``:
of all weighted means of two independent estimates, that of the least variance. Each leaf of
the meta-parameters has one weight, from its entries' mean variance, since a few problems
say little about one entry. (Metz et al. 2019.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key, PyTree

from optdyn.inner_loop._batching import map_runs
from optdyn.meta_training._components import COMPONENT_AXIS
from optdyn.meta_training._evolution import Moments, at_once, estimates, moments_of
from optdyn.meta_training._exact import chunk_sums, judged
from optdyn.meta_training._unroll_options import Diagnostics, Estimator, MetaOptimizer, Setting
from optdyn.random_streams import derived

OTHER_PROBLEMS = "problems of evolution strategies beside the exact meta-gradient"
"""Problems of their own make the two estimates independent."""

FEWEST = 2
"""Gradients from which a variance can be told."""


def _sums(
    optimizer: MetaOptimizer,
    keys: Key[Array, " batch"],
    counts: Bool[Array, " batch"] | None,
    setting: Setting,
) -> tuple[tuple[Array, Array, Array], Moments, Moments]:
    counts = jnp.ones(keys.shape, bool) if counts is None else counts
    bounded = setting.options.max_cotangent_norm is not None

    def exact(key: Key[Array, ""]) -> tuple[tuple[Array, Array, Array], PyTree]:
        return chunk_sums(optimizer, (key[None], None), setting)

    (losses, counted, contained), gradients = map_runs(
        exact, (keys,), at_once(optimizer, keys, setting)
    )
    if setting.parts > 1:
        gradients = jax.lax.psum(gradients, COMPONENT_AXIS)
    # Without a bound an exploded problem's gradient is zero, which would hide the variance.
    told = counts if bounded else counts & (counted > 0)
    others = jax.vmap(lambda key: derived(key, OTHER_PROBLEMS))(keys)
    (_, _, limited), es_gradients = estimates(optimizer, others, setting)
    tallies = (
        jnp.sum(jnp.where(counts, losses, 0.0)),
        jnp.sum(jnp.where(counts, counted, 0)),
        jnp.sum(counts & ((contained > 0) | limited)),
    )
    return tallies, moments_of(gradients, told), moments_of(es_gradients, counts)


def _finish(sums: PyTree, batch_size: int) -> tuple[Array, PyTree, Diagnostics]:
    counts_and_losses, exact, es = sums
    weights = jax.tree.map(_exact_weight, _precisions(exact), _precisions(es))
    gradient = jax.tree.map(lambda w, a, b: w * a + (1 - w) * b, weights, exact.mean(), es.mean())
    sizes = [leaf.size for leaf in jax.tree.leaves(gradient)]
    pairs = zip(jax.tree.leaves(weights), sizes, strict=True)
    share = sum(w * size for w, size in pairs) / sum(sizes)
    value, diagnostics = judged(counts_and_losses, batch_size, share)
    return value, gradient, diagnostics


def _precisions(moments: Moments) -> PyTree:
    """One over the variance of each leaf's mean, averaged over its entries; 0 where unknown."""
    count = moments.number

    def precision(total: Array, squares: Array) -> Array:
        spread = jnp.mean(squares - total**2 / jnp.maximum(count, 1))
        variance = spread / jnp.maximum((count - 1) * count, 1)
        smallest = jnp.finfo(variance.dtype).tiny
        return jnp.where(count >= FEWEST, 1 / jnp.maximum(variance, smallest), 0.0)

    return jax.tree.map(precision, moments.total, moments.squares)


def _exact_weight(exact: Array, es: Array) -> Array:
    """The share of the exact estimate; a half where neither variance is known."""
    total = exact + es
    return jnp.where(total > 0, exact / jnp.where(total > 0, total, 1), 0.5)


COMBINED = Estimator(_sums, _finish)
"""The exact meta-gradient and evolution strategies, by inverse variance."""
