"""Derivatives of a step in which ``stop_gradient`` stands.

``stop_gradient`` shapes the gradient that a step uses (a target network, a detached
denominator), but the step moves with the values behind it all the same. Its derivative is that
of the step with every ``stop_gradient`` that is left in its program taken for the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
from jax.extend import core
from jax.extend.core import primitives

if TYPE_CHECKING:
    from jaxtyping import PyTree

STOP = "stop_gradient"


def released(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """``function`` with the same values, whose derivatives go through ``stop_gradient``.

    Gradients that ``function`` takes within itself still stop there.
    """

    def through(*args: Any) -> PyTree:
        program, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        if not stops(program.jaxpr):
            return function(*args)
        opened = core.ClosedJaxpr(_opened(program.jaxpr), program.consts)
        flat = core.jaxpr_as_fun(opened)(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), flat)

    return through


def stops(program: core.Jaxpr) -> bool:
    """Whether a ``stop_gradient`` stands in the program, or in one that it calls."""
    return any(
        step.primitive.name == STOP or any(map(stops, _called(step.params)))
        for step in program.eqns
    )


def _called(params: dict[str, Any]) -> list[core.Jaxpr]:
    return [
        _inner(part) for value in params.values() for part in _parts(value) if _is_program(part)
    ]


def _parts(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _is_program(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def _inner(program: core.Jaxpr | core.ClosedJaxpr) -> core.Jaxpr:
    return program.jaxpr if isinstance(program, core.ClosedJaxpr) else program


def _opened(program: core.Jaxpr) -> core.Jaxpr:
    steps = []
    for step in program.eqns:
        if step.primitive.name == STOP:
            steps.append(step.replace(primitive=primitives.copy_p, params={}))
        else:
            params = {name: _open_parts(value) for name, value in step.params.items()}
            steps.append(step.replace(params=params))
    return program.replace(eqns=steps)


def _open_parts(value: Any) -> Any:
    if isinstance(value, core.ClosedJaxpr):
        return core.ClosedJaxpr(_opened(value.jaxpr), value.consts)
    if isinstance(value, core.Jaxpr):
        return _opened(value)
    if isinstance(value, tuple | list) and any(map(_is_program, value)):
        return type(value)(map(_open_parts, value))
    return value
