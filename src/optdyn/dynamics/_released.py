"""Derivatives of a step in which ``stop_gradient`` stands.

``stop_gradient`` shapes the gradient that a step uses (a target network, a detached
denominator), but the step moves with the values behind it all the same. Its derivative is that
of the step with every ``stop_gradient`` that is left in its program taken for the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core
from jax.extend.core import primitives
from jaxtyping import PyTree

STOP = "stop_gradient"
PROGRAM = (core.Jaxpr, core.ClosedJaxpr)


def released(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """``function`` with the same values, whose derivatives go through ``stop_gradient``.

    Gradients that ``function`` takes within itself still stop there.
    """

    def through(*args: Any) -> PyTree:
        program, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        if not _stops(program):
            return function(*args)
        flat = core.jaxpr_as_fun(_opened(program))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), flat)

    return through


def _stops(program: core.Jaxpr | core.ClosedJaxpr) -> bool:
    return any(
        step.primitive.name == STOP or any(map(_stops, programs_in(step.params)))
        for step in program.eqns
    )


def programs_in(params: dict[str, Any]) -> Iterator[core.Jaxpr | core.ClosedJaxpr]:
    """The programs that a step of a program calls, from its parameters."""
    for value in params.values():
        parts = value if isinstance(value, tuple | list) else (value,)
        yield from (part for part in parts if isinstance(part, PROGRAM))


def _opened(value: Any) -> Any:
    """``value`` without ``stop_gradient``, where it is a program, or several."""
    if isinstance(value, tuple | list) and any(isinstance(part, PROGRAM) for part in value):
        return type(value)(map(_opened, value))
    if isinstance(value, core.ClosedJaxpr):
        return core.ClosedJaxpr(_opened(value.jaxpr), value.consts)
    if not isinstance(value, core.Jaxpr):
        return value
    steps = []
    for step in value.eqns:
        if step.primitive.name == STOP:
            steps.append(step.replace(primitive=primitives.copy_p, params={}))
        else:
            params = {name: _opened(part) for name, part in step.params.items()}
            steps.append(step.replace(params=params))
    return value.replace(eqns=steps)
