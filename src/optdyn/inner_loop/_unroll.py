"""The inner loop: unroll an optimizer on a problem."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from optdyn.errors import require_choice, require_positive_int
from optdyn.tasks._base import Problem

if TYPE_CHECKING:
    import optax
    from jaxtyping import Array, Float, PyTree

RECORDABLE = ("params", "states", "gradients", "updates")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trajectory:
    """What happened in an inner loop of T steps.

    ``losses`` [T + 1, ...]: the loss before the first step and after each one
    (``...`` is empty, or [batch] for a joint problem). ``params`` and ``state``
    are those after the last step. ``record`` maps each recorded name to a pytree
    with leading axis T: ``gradients``, ``updates`` of step k, ``params`` and
    ``states`` before it.
    """

    losses: Float[Array, "steps ..."]
    params: PyTree
    state: PyTree
    record: dict[str, PyTree]


Carry = tuple[Any, Any]


def unroll(
    tx: optax.GradientTransformation,
    problem: Problem,
    num_steps: int,
    *,
    record: Collection[str] = (),
    between_steps: Callable[[Carry, Carry], Carry] | None = None,
    segment: int | None = None,
) -> Trajectory:
    """Run ``num_steps`` steps of ``x += tx.update(∇f(x))`` from the problem's start.

    ``record`` names what to keep of every step (`RECORDABLE`). ``between_steps``
    is given (params, state) before and after each step and returns what to go on
    from, the hook by which meta-training contains exploding problems. ``segment``:
    under reverse-mode differentiation keep only every ``segment``-th carry and
    recompute the steps between (nested checkpointing); the results are the same.

    Raises `UserError` for an unknown name in ``record`` or a bad step count.
    """
    require_positive_int("num_steps", num_steps, minimum=0)
    for name in record:
        require_choice("record", name, list(RECORDABLE))

    def step(carry: Carry, _: None) -> tuple[Carry, tuple[Array, dict[str, PyTree]]]:
        params, state = carry
        losses, gradients = losses_and_gradients(problem, params)
        updates, next_state = tx.update(gradients, state, params)
        next_params = jax.tree.map(lambda x, dx: x + dx, params, updates)
        everything = {"params": params, "states": state, "gradients": gradients, "updates": updates}
        kept = {name: everything[name] for name in record}
        next_carry = (next_params, next_state)
        if between_steps is not None:
            next_carry = between_steps(carry, next_carry)
        return next_carry, (losses, kept)

    start = (problem.params, tx.init(problem.params))
    (params, state), (losses, kept) = _scan(step, start, num_steps, segment)
    final = problem.loss(params)
    return Trajectory(
        losses=jnp.concatenate([losses, final[None]]), params=params, state=state, record=kept
    )


def losses_and_gradients(problem: Problem, params: PyTree) -> tuple[Array, PyTree]:
    """The loss (of any shape) and the gradient of its sum with respect to ``params``."""

    def summed(p: PyTree) -> tuple[Array, Array]:
        losses = problem.loss(p)
        return jnp.sum(losses), losses

    gradients, losses = jax.grad(summed, has_aux=True)(params)
    return losses, gradients


def _scan(step: Callable, start: Carry, num_steps: int, segment: int | None) -> tuple[Carry, Any]:
    """``lax.scan`` of ``step``, cut into rematerialised segments where asked for."""
    if segment is None or segment >= num_steps:
        return jax.lax.scan(step, start, None, length=num_steps)
    run_segment = jax.checkpoint(
        lambda carry, _: jax.lax.scan(step, carry, None, length=segment), prevent_cse=False
    )
    whole, rest = divmod(num_steps, segment)
    carry, outputs = jax.lax.scan(run_segment, start, None, length=whole)
    outputs = jax.tree.map(lambda a: a.reshape(whole * segment, *a.shape[2:]), outputs)
    if rest == 0:
        return carry, outputs
    carry, last = jax.lax.scan(step, carry, None, length=rest)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), outputs, last)
