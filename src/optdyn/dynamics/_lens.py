"""A training watched as a dynamical system: plain numbers for any logger."""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optdyn.dynamics._closed_loop import closed_loop
from optdyn.dynamics._sharpness import component_loop, leaf_loops, top_curvature
from optdyn.errors import UserError, require_positive_int
from optdyn.inner_loop._unroll import losses_and_gradients, optimizer_step
from optdyn.tasks import Problem

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from optdyn.dynamics._training_step import LossFn

SAMPLED = 8
"""Entries along each axis of a leaf by which the leaf's rate is read."""
LARGEST_COUPLED = 20_000
"""Entries of (x, s) up to which optimizers that couple components get their multipliers."""


@dataclasses.dataclass(frozen=True)
class Lens:
    """Looks at a training from beside it; the training itself stays as it is.

    ``loss_fn(params)`` or ``loss_fn(params, batch)``; `scalars` takes the batch. Parameters
    are any pytree of real floats (a Flax NNX state, the arrays of an Equinox model), in
    float32 or bfloat16. ``lanczos_steps``: products of the Hessian with a vector for each
    measurement of the sharpness; each costs about as much as two gradients.

    >>> import jax.numpy as jnp, optax
    >>> tx, x = optax.sgd(0.1, momentum=0.5), jnp.ones(2)
    >>> lens = Lens(tx, lambda x: jnp.sum(jnp.array([1.0, 4.0]) * x**2))
    >>> found = lens.scalars(tx.init(x), x)
    >>> round(found["sharpness"], 3), round(found["sharpness_edge"], 3), round(found["margin"], 2)
    (0.8, 3.0, 3.75)
    """

    tx: optax.GradientTransformation
    loss_fn: LossFn
    lanczos_steps: int = 20

    def __post_init__(self) -> None:
        require_positive_int("lanczos_steps", self.lanczos_steps, minimum=2)

    def scalars(
        self,
        state: PyTree,
        params: PyTree,
        batch: Any = None,
        *,
        curvature: bool = True,
    ) -> dict[str, float]:
        """A flat dictionary of numbers at one moment of the training.

        For each leaf, read from a sample of its entries without any gradient:
        ``rate/LEAF`` (what a constant gradient of 1 would move a parameter by at each step),
        ``momentum/LEAF`` (β of its slowest fading answer) and ``decay/LEAF`` (the part of
        the parameter taken away a step).

        With ``curvature``, at the cost of one step and 2·``lanczos_steps`` gradients on
        ``batch``: ``loss``, ``gradient_norm``, ``update_ratio/LEAF`` (‖Δx‖ / ‖x‖), and

        - ``sharpness``: the largest curvature, times the rate of each parameter, with second
          moments held; ``sharpness_edge``: where the optimizer starts to swing apart;
          ``margin``: the factor by which the learning rate can grow until then. Where
          components are coupled or have different momenta, the margin comes from
          `closed_loop`, up to 20,000 entries of parameters and state; beyond, NaN.

        All of it is on one batch: take a large fixed one to compare over time. Where
        clipping by norm acts, these three are those of the training without it; `closed_loop`
        counts the clipping.

        Raises `UserError` where ``loss_fn`` needs a batch that is not given.
        """
        found = self._by_leaf(state, params)
        if not curvature:
            return found
        loss_fn = self._on(batch)
        problem = Problem(params=params, loss_fn=loss_fn)
        loss, gradients, updates, _ = jax.jit(lambda x, s: optimizer_step(self.tx, problem, x, s))(
            params, state
        )
        found["loss"] = float(loss)
        found["gradient_norm"] = float(optax.tree.norm(gradients))
        for (name, x), update in zip(_named(params), jax.tree.leaves(updates), strict=True):
            size = float(jnp.linalg.norm(jnp.ravel(x).astype(jnp.float32)))
            moved = float(jnp.linalg.norm(jnp.ravel(update).astype(jnp.float32)))
            found[f"update_ratio/{name}"] = moved / size if size else math.nan
        return found | self._edge(loss_fn, state, params)

    def _on(self, batch: Any) -> LossFn:
        if batch is not None:
            return lambda params: self.loss_fn(params, batch)
        needed = inspect.signature(self.loss_fn).parameters.values()
        if (
            sum(each.default is each.empty and each.kind is not each.VAR_KEYWORD for each in needed)
            > 1
        ):
            raise UserError(
                "batch: loss_fn needs one, and none is given (call scalars(state, params, batch))"
            )
        return self.loss_fn

    def _by_leaf(self, state: PyTree, params: PyTree) -> dict[str, float]:
        few_params, few_state = _sampled(params, state)
        loops = leaf_loops(self.tx, few_params, few_state)
        found: dict[str, float] = {}
        for (name, _), loop in zip(_named(params), loops, strict=True):
            if loop is None:
                continue
            mean = float(np.mean(np.asarray(loop.rate, np.float64)))
            found[f"rate/{name}"] = mean * loop.steady_rate
            found[f"momentum/{name}"] = loop.momentum
            found[f"decay/{name}"] = -loop.E
        return found

    def _edge(self, loss_fn: LossFn, state: PyTree, params: PyTree) -> dict[str, float]:
        loop = component_loop(self.tx, params, state)
        if loop is None:
            size = sum(np.size(leaf) for leaf in jax.tree.leaves((params, state)))
            if size > LARGEST_COUPLED:
                return {"margin": math.nan}
            whole = closed_loop(self.tx, loss_fn, params, state, num=4)
            return {"margin": whole.margin, "spectral_radius": whole.spectral_radius}
        problem = Problem(params=params, loss_fn=loss_fn)

        def hessian_times(v: PyTree) -> PyTree:
            moving = jax.tree.map(lambda x, d: d.astype(x.dtype), params, v)
            return jax.jvp(lambda x: losses_and_gradients(problem, x)[1], (params,), (moving,))[1]

        sharpness = top_curvature(hessian_times, loop.rate, steps=self.lanczos_steps)
        return {
            "sharpness": sharpness,
            "sharpness_edge": loop.edge,
            "margin": loop.margin(sharpness),
        }


def _named(params: PyTree) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator=".") or "params", leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]


def _sampled(params: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
    """The first entries of every leaf, along each axis, and of the state's leaves like them.

    Ranks and paths stay, and with them what masks and partitions choose by.
    """
    shapes = {np.shape(leaf) for leaf in jax.tree.leaves(params)}

    def few(leaf: Any) -> Any:
        if np.shape(leaf) in shapes and np.ndim(leaf):
            return leaf[tuple(slice(SAMPLED) for _ in np.shape(leaf))]
        return leaf

    return jax.tree.map(few, params), jax.tree.map(few, state)
