"""Linearised and reduced optimizers, again as optax pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Complex, Float, PyTree

from optdyn.dynamics._eigenmodes import Eigenmodes, eigenmodes, modal_coordinates, truncate
from optdyn.dynamics._linearization import Linearization
from optdyn.errors import UserError
from optdyn.optimizers._state_precision import compute_in

SYSTEM = ("A", "B", "C", "D", "E", "weight_decay", "residual", "drift", "gradient", "param")
"""The parts of a `Linearization` that say how it moves."""


class LinearState(NamedTuple):
    """Deviations from the operating point: each parameter's array with a last axis N."""

    deviation: PyTree[Float[Array, "... N"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearSystem:
    """A linearised optimizer as a pytree of numbers, which gives the optimizer.

    What is compiled for one runs all others of its size. The two equations are
    `Linearization`'s; ``start`` [N] is the first state's distance from the operating point.
    ``sees_params``: whether the system depends on x.
    """

    A: Float[Array, "N N"] | Float[np.ndarray, "N N"]
    B: Float[Array, " N"] | Float[np.ndarray, " N"]
    C: Float[Array, " N"] | Float[np.ndarray, " N"]
    D: Float[Array, ""] | float
    E: Float[Array, " N"] | Float[np.ndarray, " N"]
    weight_decay: Float[Array, ""] | float
    residual: Float[Array, " N"] | Float[np.ndarray, " N"]
    drift: Float[Array, ""] | float
    gradient: Float[Array, ""] | float
    param: Float[Array, ""] | float
    start: Float[Array, " N"] | Float[np.ndarray, " N"]
    sees_params: bool = dataclasses.field(metadata={"static": True})

    def as_optax(self) -> optax.GradientTransformation:
        """The optimizer, for any pytree of float parameters, in at least float32."""
        size = len(self.B)

        def init(params: PyTree) -> LinearState:
            return LinearState(
                jax.tree.map(
                    lambda p: jnp.broadcast_to(jnp.asarray(self.start, p.dtype), (*p.shape, size)),
                    params,
                )
            )

        def update(
            gradients: PyTree, state: LinearState, params: PyTree | None = None
        ) -> tuple[PyTree, LinearState]:
            if self.sees_params and params is None:
                raise UserError(
                    "params: this optimizer's update needs them (give them as its third argument)"
                )
            leaves, treedef = jax.tree.flatten(gradients)
            states = jax.tree.leaves(state.deviation)
            values = jax.tree.leaves(params) if self.sees_params else [None] * len(leaves)
            stepped = [self._step(*one) for one in zip(leaves, states, values, strict=True)]
            updates, after = (jax.tree.unflatten(treedef, [s[i] for s in stepped]) for i in (0, 1))
            return updates, LinearState(after)

        return compute_in(jnp.float32, optax.GradientTransformation(init, update))

    def _step(
        self, g: Float[Array, "..."], s: Float[Array, "... N"], x: Float[Array, "..."] | None
    ) -> tuple[Float[Array, "..."], Float[Array, "... N"]]:
        def constant(value: Any) -> Array:
            return jnp.asarray(value, s.dtype)

        inputs = (g - constant(self.gradient))[..., None]
        sources = jnp.append(constant(self.B), constant(self.D))[None]
        if x is not None:
            dx = (x - constant(self.param))[..., None]
            inputs = jnp.concatenate([inputs, dx], axis=-1)
            of_x = jnp.append(constant(self.E), constant(self.weight_decay))
            sources = jnp.stack([sources[0], of_x])
        system = jnp.concatenate(
            [jnp.column_stack([constant(self.A.T), constant(self.C)]), sources]
        )
        offset = jnp.append(constant(self.residual), constant(self.drift))
        moved = jnp.concatenate([s, inputs], axis=-1)
        after = jnp.matmul(moved, system, precision=jax.lax.Precision.HIGHEST)
        after = after + jnp.broadcast_to(offset, after.shape)
        return after[..., -1], after[..., :-1]


def linear_system(lin: Linearization, h0: Float[np.ndarray, " N"] | None = None) -> LinearSystem:
    """What `linear_optimizer` runs. Raises `UserError` for an h0 of another shape."""
    return LinearSystem(
        **{name: getattr(lin, name) for name in SYSTEM},
        start=_deviation(lin, h0),
        sees_params=bool(np.any(lin.E)) or lin.weight_decay != 0.0,
    )


def linear_optimizer(
    lin: Linearization, h0: Float[np.ndarray, " N"] | None = None
) -> optax.GradientTransformation:
    """The linearised optimizer: `Linearization`'s two equations, for every component.

    ``h0`` [N] is the state it starts from (in the coordinates of ``lin.state``, the
    default: no initial transient). Works on any pytree of float parameters, in their
    precision, at least float32; needs ``params`` in its update where the system depends on
    x. ``C`` and ``D`` of ``lin`` may be traced, so that one compiled function serves many
    readouts.

    Raises `UserError` for an h0 of another shape.
    """
    return linear_system(lin, h0).as_optax()


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
    return reduced_system(source, keep, h0).as_optax()


def reduced_system(
    source: Linearization | Eigenmodes,
    keep: Sequence[int] | str = "all",
    h0: Float[np.ndarray, " N"] | None = None,
) -> LinearSystem:
    """What `reduce` runs, with its arguments and errors."""
    modes = source if isinstance(source, Eigenmodes) else eigenmodes(source)
    kept = modes.with_conjugates(keep)
    into = modal_coordinates(modes, kept)
    return linear_system(truncate(modes, keep), into @ _deviation(modes.linearization, h0))


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
