"""Optimizers whose answer is at other parameters than those they step from."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import optax

if TYPE_CHECKING:
    from jaxtyping import PyTree

EvalParams = Callable[[Any, Any], Any]
"""Gives, from (state, params), the parameters at which the loss is judged."""


@dataclasses.dataclass(frozen=True)
class WithEvalParams:
    """An optax pair, and where its answer is."""

    init: Callable[[PyTree], PyTree]
    update: Callable[..., tuple[PyTree, PyTree]]
    eval_params: EvalParams


def with_eval_params(
    tx: optax.GradientTransformation, eval_params: EvalParams
) -> optax.GradientTransformation:
    """``tx``, judged at ``eval_params(state, params)`` wherever an inner loop takes it.

    For schedule-free optimizers, for example::

        tx = optax.contrib.schedule_free_sgd(1.0)
        tx = with_eval_params(tx, optax.contrib.schedule_free_eval_params)

    Gradients are still taken at the parameters themselves.
    """
    wide = with_extra_args(tx)
    return WithEvalParams(wide.init, wide.update, eval_params)  # type: ignore[return-value]


def with_extra_args(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`optax.with_extra_args_support`, for pairs of any class.

    Some say that they take more arguments and take few, such as `optax.contrib.sam`.
    """
    if isinstance(tx, WithEvalParams):
        return optax.GradientTransformationExtraArgs(tx.init, tx.update)
    if not isinstance(tx, optax.GradientTransformationExtraArgs):
        return optax.with_extra_args_support(tx)
    takes = inspect.signature(tx.update).parameters
    if any(each.kind is each.VAR_KEYWORD for each in takes.values()):
        return tx

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        known = {name: value for name, value in extra.items() if name in takes}
        return tx.update(updates, state, params, **known)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def eval_params_of(tx: optax.GradientTransformation) -> EvalParams | None:
    """What `with_eval_params` gave ``tx``; None where the loss is judged at its parameters."""
    return tx.eval_params if isinstance(tx, WithEvalParams) else None
