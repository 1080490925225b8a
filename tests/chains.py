"""Optax chains built at random, with runs of their own to compare with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optdyn.dynamics import linearize

SHAPES = {"w": (2, 3), "b": (3,), "scale": ()}
CLIP = 2.0


@dataclasses.dataclass(frozen=True)
class Chain:
    """``build(factor)``: the chain; with a factor, its clip by norm is that factor instead."""

    parts: tuple[str, ...]
    build: Callable[[float | None], optax.GradientTransformation]
    noisy: bool


def _matrices(tree: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, tree)


def _schedule(rng: np.random.Generator) -> Any:
    peak, end = rng.uniform(0.02, 0.2), rng.uniform(0.0, 0.02)
    return [
        optax.warmup_cosine_decay_schedule(0.0, peak, 5, 30, end_value=end),
        optax.linear_schedule(peak, end, 12),
        optax.piecewise_constant_schedule(peak, {6: 0.5}),
        optax.exponential_decay(peak, 10, 0.7),
        lambda count: peak / jnp.sqrt(1.0 + count),
    ][rng.integers(5)]


def random_chain(seed: int) -> Chain:
    """The chain of that number: up to five transforms, perhaps within a wrapper."""
    rng = np.random.default_rng(seed)
    beta, rate = rng.uniform(0.3, 0.95), rng.uniform(0.05, 0.5)
    k, schedule = int(rng.integers(2, 4)), _schedule(rng)
    cores = {
        "trace": optax.trace(beta, nesterov=bool(rng.integers(2))),
        "ema": optax.ema(beta, debias=bool(rng.integers(2))),
        "adam": optax.scale_by_adam(beta, 0.99, nesterov=bool(rng.integers(2))),
        "rms": optax.scale_by_rms(0.9),
        "rss": optax.scale_by_rss(0.1),
        "adabelief": optax.scale_by_belief(beta, 0.99),
        "optimistic": optax.scale_by_optimistic_gradient(),
        "lion": optax.scale_by_lion(beta, 0.99),
        "radam": optax.scale_by_radam(beta, 0.99),
        "split": optax.partition(
            {True: optax.trace(beta), False: optax.scale_by_adam(0.5, 0.9)}, _matrices
        ),
    }
    extras = {
        "decay": optax.add_decayed_weights(0.1),
        "masked decay": optax.add_decayed_weights(0.1, mask=_matrices),
        "masked scale": optax.masked(optax.scale(3.0), {"w": False, "b": True, "scale": False}),
        "clip": optax.clip(0.7),
        "some steps": optax.conditionally_mask(optax.scale(2.0), lambda step: step % k == 0),
        "other steps": optax.conditionally_transform(optax.scale(0.2), lambda step: step % k == 1),
        "gathered": optax.apply_every(k),
        "noise": optax.add_noise(0.01, 0.55, jax.random.key(seed)),
    }
    rates = {
        "scale": optax.scale(-rate),
        "schedule": optax.scale_by_learning_rate(schedule),
        "injected": optax.inject_hyperparams(optax.sgd)(schedule),
        "injected rate": optax.inject_hyperparams(optax.sgd)(rate, momentum=beta),
    }
    core, last = rng.choice(list(cores)), rng.choice(list(rates))
    chosen = [str(name) for name in rng.choice(list(extras), rng.integers(0, 3), replace=False)]
    clipped, wrapped = rng.random() < 0.35, rng.random() < 0.2

    def build(factor: float | None) -> optax.GradientTransformation:
        clip = optax.clip_by_global_norm(CLIP) if factor is None else optax.scale(factor)
        tx = optax.chain(cores[core], *(extras[name] for name in chosen), rates[last])
        if wrapped:
            tx = optax.MultiSteps(tx, k, accumulator_dtype=jnp.float64).gradient_transformation()
        # Before all else: within a wrapper its factor would be that of gathered gradients.
        return optax.chain(clip, tx) if clipped else tx

    names = ["clip by norm"] * clipped + [core, *chosen, last] + [f"every {k}"] * wrapped
    return Chain(tuple(map(str, names)), build, "noise" in chosen)


def worst_error(chain: Chain, seed: int) -> float:
    """How far the linear system is from central differences of the chain's own run, relatively.

    At a random step of a run on random gradients, for a random component: what its
    gradient, its parameter and each entry of its memory do to its update and its memory
    over one step, or over a cycle of them.
    """
    rng = np.random.default_rng(1000 + seed)
    tx = chain.build(None)
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in SHAPES.items()}

    def drawn() -> Any:
        return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in SHAPES.items()}

    run, state = jax.jit(tx.update), tx.init(params)
    for _ in range(int(rng.integers(1, 9))):
        _, state = run(drawn(), state, params)
    gradients, leaf = drawn(), str(rng.choice(list(SHAPES)))
    index = tuple(int(rng.integers(n)) for n in SHAPES[leaf])
    lin = linearize(tx, params=params, state=state, leaf=leaf, index=index, gradient=gradients)
    factor = min(1.0, CLIP / float(optax.tree.norm(gradients)))
    held = jax.jit(chain.build(factor).update)
    places = _places(state, lin.names, leaf, index)

    def after(move: np.ndarray) -> np.ndarray:
        parts, treedef = jax.tree.flatten(state)
        for (i, at), by in zip(places, move, strict=False):
            parts[i] = parts[i].at[at].add(by)
        g = {**gradients, leaf: gradients[leaf].at[index].add(move[-2])}
        x = {**params, leaf: params[leaf].at[index].add(move[-1])}
        now, start = jax.tree.unflatten(treedef, parts), x[leaf][index]
        for _ in range(lin.period):
            updates, now = held(g, now, x)
            x = optax.apply_updates(x, updates)
        leaves = jax.tree.leaves(now)
        return np.array([*(leaves[i][at] for i, at in places), x[leaf][index] - start], float)

    n = len(places)
    matrix = np.vstack(
        [np.column_stack([lin.A, lin.B, lin.E]), np.append(lin.C, [lin.D, lin.weight_decay])]
    )
    if np.any(lin.comoving):
        raise AssertionError("none of these chains keeps a position")
    worst = 0.0
    for j, column in enumerate(matrix.T):
        own = jax.tree.leaves(state)[places[j][0]][places[j][1]] if j < n else 1.0
        step = 1e-4 * max(abs(float(own)), 1e-3)
        unit = np.zeros(n + 2)
        unit[j] = step
        coarse, fine = ((after(unit * s) - after(-unit * s)) / (2 * step * s) for s in (1.0, 0.5))
        # The error of a central difference falls to a quarter at half the step.
        slope = (4 * fine - coarse) / 3
        size = np.maximum(np.max(np.abs(matrix), axis=1), 1e-3)
        worst = max(worst, float(np.max(np.abs(slope - column) / size)))
    return worst


def _places(state: Any, names: tuple[str, ...], leaf: str, index: tuple[int, ...]) -> list[Any]:
    """Where the entries that the linear system names are in the state."""
    found = {}
    for i, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(state)):
        found[jax.tree_util.keystr(path, simple=True, separator=".")] = i
    assert all(name.endswith(leaf) for name in names), names
    return [(found[name], index) for name in names]
