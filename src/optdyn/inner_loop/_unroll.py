"""The inner loop: unroll an optimizer on a problem, as optax's own loops do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from optdyn.errors import UserError, first_line, require_choice, require_positive_int
from optdyn.inner_loop._evaluated import eval_params_of, with_extra_args
from optdyn.tasks._base import Problem
from optdyn.tasks._gate import one_real_loss, require_params

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PyTree

RECORDABLE = ("params", "states", "gradients", "updates")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trajectory:
    """What happened in an inner loop of T steps.

    ``losses`` [T + 1, ...]: the loss before the first step and after each one
    (``...`` is empty, or [batch] for a joint problem), in at least 32 bits. Of a stochastic
    problem each is of its own step's draw; the first and the last are on all the data where
    the problem offers that. ``params`` and ``state``
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

    ``tx`` is given ``value``, ``grad`` and ``value_fn`` of the step's loss, as the line
    searches of optax need; parameters keep their types. Losses are those of the parameters
    that `with_eval_params` names, where ``tx`` has it.

    ``record`` names what to keep of every step (`RECORDABLE`). ``between_steps``
    is given (params, state) before and after each step and returns what to go on
    from, the hook by which meta-training contains exploding problems. ``segment``:
    under reverse-mode differentiation keep only every ``segment``-th carry and
    recompute the steps between (nested checkpointing); the results are the same.

    Raises `UserError` for an unknown name in ``record`` or a bad step count, for parameters
    that are no real floats, a loss that is not one real number, and where ``tx`` cannot take
    the parameters.
    """
    require_positive_int("num_steps", num_steps, minimum=0)
    for name in record:
        require_choice("record", name, list(RECORDABLE))
    require_params(problem.params)
    evaluated = eval_params_of(tx)

    def step(carry: Carry, k: Int[Array, ""] | None) -> tuple[Carry, tuple[Array, dict]]:
        params, state = carry
        here = problem if k is None else problem.at_step(k)
        losses, gradients, updates, next_state = optimizer_step(tx, here, params, state)
        if evaluated is not None:
            losses = _loss(here, evaluated(state, params))
        next_params = optax.apply_updates(params, updates)
        everything = {"params": params, "states": state, "gradients": gradients, "updates": updates}
        recorded = {name: everything[name] for name in record}
        next_carry = (next_params, next_state)
        if between_steps is not None:
            next_carry = between_steps(carry, next_carry)
        return next_carry, (_wide(losses), recorded)

    start = jax.tree.map(jnp.asarray, problem.params)
    steps = None if problem.key is None else jnp.arange(num_steps)
    begin = (start, start_state(tx, start))
    try:
        (params, state), (losses, recorded) = _scan(step, begin, num_steps, steps, segment)
    except TypeError:
        # A state whose types the first step changes, as those of narrow parameters may.
        begin = (start, _with_later_types(step, begin, None if steps is None else steps[0]))
        (params, state), (losses, recorded) = _scan(step, begin, num_steps, steps, segment)

    def judged(at: PyTree, its: PyTree, k: int) -> Array:
        name = "loss_fn" if problem.full_loss_fn is None else "full_loss_fn"
        at = at if evaluated is None else evaluated(its, at)
        return _wide(_loss(problem.whole(k), at, name))

    if problem.full_loss_fn is not None and num_steps:
        losses = jnp.concatenate([judged(*begin, 0)[None], losses[1:]])
    final = judged(params, state, num_steps)
    return Trajectory(
        losses=jnp.concatenate([losses, final[None]]), params=params, state=state, record=recorded
    )


def _with_later_types(step: Callable, begin: Carry, k: Array | None) -> PyTree:
    """The first state in the types, and with the leaves, that it has after a step.

    Raises `UserError` where the step changes more than that.
    """
    params, state = begin

    def following(state: PyTree) -> Carry:
        return jax.eval_shape(lambda carry: step(carry, k)[0], (params, state))

    state = with_later_leaves(state, following(state)[1])
    after, later = following(state)
    before = jax.tree.map(jnp.shape, (params, state))
    if before != jax.tree.map(jnp.shape, (after, later)):
        raise UserError(
            "optimizer: its update changes the tree or the shapes of its state (one that a scan "
            "can carry is needed: make all of it in init)"
        )
    return jax.tree.map(lambda leaf, new: jnp.asarray(leaf).astype(new.dtype), state, later)


def with_later_leaves(state: PyTree, later: PyTree) -> PyTree:
    """``state`` with the leaves that ``later`` has besides, at zero, as `optax.monitor` makes them.

    ``later``: the shapes and types of the state after a step. Unchanged where leaves are missing.
    """
    paths = jax.tree_util.tree_leaves_with_path(state)
    own = {jax.tree_util.keystr(path): leaf for path, leaf in paths}
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(later)]
    if len(names) == len(own) or not set(own) <= set(names):
        return state
    return jax.tree_util.tree_map_with_path(
        lambda path, new: own.get(jax.tree_util.keystr(path), jnp.zeros(new.shape, new.dtype)),
        later,
    )


def start_state(tx: optax.GradientTransformation, params: PyTree) -> PyTree:
    """The state before the first step.

    Raises `UserError` where ``tx`` cannot take the parameters.
    """
    try:
        return tx.init(params)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"optimizer: its init fails on the problem's parameters ({first_line(error)})"
        ) from error


def optimizer_step(
    tx: optax.GradientTransformation, problem: Problem, params: PyTree, state: PyTree
) -> tuple[Array, PyTree, PyTree, PyTree]:
    """One step on a problem with nothing left to draw: (losses, gradients, updates, next state).

    The gradient of `optax.LookaheadParams` is that of their fast part, as `optax.lookahead`
    takes it.

    Raises `UserError` where ``tx`` cannot take the parameters.
    """
    losses, gradients = losses_and_gradients(problem, params)
    gradients = gradients_for(params, gradients)
    try:
        updates, following = with_extra_args(tx).update(
            gradients, state, params, value=losses, grad=gradients, value_fn=problem.loss
        )
    except UserError:
        raise
    except Exception as error:
        hint = ""
        if isinstance(error, AttributeError) and "fast" in str(error):
            hint = "; start from optax.LookaheadParams.init_synced(params) for optax.lookahead"
        raise UserError(
            f"optimizer: its update fails on the problem ({first_line(error)}{hint})"
        ) from error
    return losses, gradients, updates, following


def gradients_for(params: PyTree, gradients: PyTree) -> PyTree:
    """What optimizers of ``params`` take: of `optax.LookaheadParams` the fast part's gradients."""
    return gradients.fast if isinstance(params, optax.LookaheadParams) else gradients


def losses_and_gradients(problem: Problem, params: PyTree) -> tuple[Array, PyTree]:
    """The loss (of a `joint` problem: one a row) and the gradient of its sum by ``params``.

    Raises `UserError` where the loss is not one real number.
    """

    def summed(p: PyTree) -> tuple[Array, Array]:
        losses = _loss(problem, p)
        return jnp.sum(losses), losses

    gradients, losses = jax.grad(summed, has_aux=True)(params)
    return losses, gradients


def _loss(problem: Problem, params: PyTree, name: str = "loss_fn") -> Array:
    return one_real_loss(name, problem.loss(params), is_joint=problem.is_joint)


def _wide(losses: Array) -> Array:
    """Losses of narrow types in 32 bits, which their mean over steps needs."""
    return losses.astype(jnp.promote_types(losses.dtype, jnp.float32))


def _scan(
    step: Callable, start: Carry, num_steps: int, steps: Array | None, segment: int | None
) -> tuple[Carry, Any]:
    """``lax.scan`` of ``step``, cut into rematerialised segments where asked for."""
    if segment is None or segment >= num_steps:
        return jax.lax.scan(step, start, steps, length=num_steps)
    run_segment = jax.checkpoint(
        lambda carry, part: jax.lax.scan(step, carry, part, length=segment), prevent_cse=False
    )
    whole, rest = divmod(num_steps, segment)
    cut, last_steps = whole * segment, None
    if steps is not None:
        steps, last_steps = steps[:cut].reshape(whole, segment), steps[cut:]
    carry, outputs = jax.lax.scan(run_segment, start, steps, length=whole)
    outputs = jax.tree.map(lambda a: a.reshape(cut, *a.shape[2:]), outputs)
    if rest == 0:
        return carry, outputs
    carry, last = jax.lax.scan(step, carry, last_steps, length=rest)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), outputs, last)
