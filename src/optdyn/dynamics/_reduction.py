"""Linearised and reduced optimizers, again as optax pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optdyn.dynamics._eigenmodes import Eigenmodes, eigenmodes, modal_coordinates, truncate
from optdyn.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array, Complex, Float, PyTree

    from optdyn.dynamics._linearization import Linearization


class LinearState(NamedTuple):
    """Deviations from the operating point: each parameter's array with a last axis N."""

    deviation: PyTree[Float[Array, "... N"]]


def linear_optimizer(
    lin: Linearization, h0: Float[np.ndarray, " N"] | None = None
) -> optax.GradientTransformation:
    """The linearised optimizer: `Linearization`'s two equations, for every component.

    ``h0`` [N] is the state it starts from (in the coordinates of ``lin.state``, the
    default: no initial transient). Works on any pytree of float parameters, in their
    precision; needs ``params`` in its update where the system depends on x. ``C`` and ``D``
    of ``lin`` may be traced, so that one compiled function serves many readouts.

    Raises `UserError` for an h0 of another shape.
    """
    start = _deviation(lin, h0)
    needs_params = bool(np.any(lin.E)) or lin.weight_decay != 0.0

    def init(params: PyTree) -> LinearState:
        return LinearState(
            jax.tree.map(
                lambda p: jnp.broadcast_to(jnp.asarray(start, p.dtype), (*p.shape, lin.size)),
                params,
            )
        )

    def step(
        g: Float[Array, "..."], s: Float[Array, "... N"], x: Float[Array, "..."] | None
    ) -> tuple[Float[Array, "..."], Float[Array, "... N"]]:
        def constant(value: Float[Array, "..."] | Float[np.ndarray, "..."] | float) -> Array:
            return jnp.asarray(value, s.dtype)

        def times(a: Array, b: Array) -> Array:
            return jnp.matmul(a, constant(b), precision=jax.lax.Precision.HIGHEST)

        dg = (g - constant(lin.gradient))[..., None]
        inputs, sources = dg, jnp.append(lin.B, lin.D)[None]
        if x is not None:
            dx = (x - constant(lin.param))[..., None]
            inputs = jnp.concatenate([dg, dx], axis=-1)
            sources = jnp.stack([sources[0], np.append(lin.E, lin.weight_decay)])
        system = jnp.concatenate([jnp.column_stack([lin.A.T, lin.C]), sources])
        offset = jnp.broadcast_to(
            constant(np.append(lin.residual, lin.drift)), (*g.shape, lin.size + 1)
        )
        after = times(jnp.concatenate([s, inputs], axis=-1), system) + offset
        return after[..., -1], after[..., :-1]

    def update(
        gradients: PyTree, state: LinearState, params: PyTree | None = None
    ) -> tuple[PyTree, LinearState]:
        if needs_params and params is None:
            raise UserError("params: needed by this optimizer's update (it depends on x)")
        leaves, treedef = jax.tree.flatten(gradients)
        states = jax.tree.leaves(state.deviation)
        values = jax.tree.leaves(params) if needs_params else [None] * len(leaves)
        stepped = [step(*one) for one in zip(leaves, states, values, strict=True)]
        updates, after = (jax.tree.unflatten(treedef, [s[i] for s in stepped]) for i in (0, 1))
        return updates, LinearState(after)

    return optax.GradientTransformation(init, update)


def reduce(
    source: Linearization | Eigenmodes,
    keep: Sequence[int] | str = "all",
    h0: Float[np.ndarray, " N"] | None = None,
) -> optax.GradientTransformation:
    """The optimizer made of some eigenmodes of a linearised one, ``source``.

    ``keep``: indices into `eigenmodes`' order (a mode brings its conjugate), or
    ``"all"``, which equals `linear_optimizer`. Each kept mode is its own recursion,
    ``v_j ← β_j v_j + α_j g``, in real arithmetic; its state here is ``s_j = −β_j v_j``,
    which exists for β = 0 too. ``h0`` [N] is the full optimizer's initial state; its
    part ``l_jᵀ(h0 − h*)`` along kept modes is their initial transient. The drift
    (``wᵀh*`` of a learned optimizer) and the feed-through belong to no mode and are
    kept whole; the transients of dropped modes are dropped.

    Raises `UserError` for an unknown mode and an h0 of another shape.
    """
    modes = source if isinstance(source, Eigenmodes) else eigenmodes(source)
    kept = modes.with_conjugates(keep)
    into = modal_coordinates(modes, kept)
    return linear_optimizer(truncate(modes, keep), into @ _deviation(modes.linearization, h0))


def transients(modes: Eigenmodes, h0: Float[np.ndarray, " N"]) -> Complex[np.ndarray, " N"]:
    """``s_j = (C r_j) l_jᵀ(h0 − h*)``: what each mode adds to the first update from h0.

    With ``v_j ← β_j v_j + α_j g`` it is ``−β_j v_j`` of the initial v_j, and it is there
    for β = 0 too: ``s_j ← β_j s_j − (α_j β_j + delayed_j) g`` is the same recursion, and
    ``Δx = drift + Σ_j s_j − (feedthrough + Σ_j α_j) g`` with s_j from before the step.

    Raises `UserError` for an h0 of another shape.
    """
    lin = modes.linearization
    return (lin.C @ modes.R) * (modes.L @ _deviation(lin, h0))


def _deviation(lin: Linearization, h0: Float[np.ndarray, " N"] | None) -> Float[np.ndarray, " N"]:
    if h0 is None:
        return np.zeros(lin.size)
    h0 = np.asarray(h0, np.float64)
    if h0.shape != lin.state.shape:
        raise UserError(f"h0: shape {h0.shape} is not allowed ({lin.state.shape})")
    return h0 - lin.state
