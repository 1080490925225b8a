"""The reverse pass through a problem's gradient, keeping nothing but the parameters.

Automatic differentiation of ``∇f`` keeps every intermediate value of every inner
step. The Hessian is symmetric, so the same cotangent is the Hessian-vector product
``∂/∂ε ∇f(x + ε v)``, computed anew from x: on a network this needs a tenth of the
memory and less time. On problems whose intermediate values are few it is not worth it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float

from optdyn.inner_loop._unroll import losses_and_gradients
from optdyn.tasks._base import Problem

ONE_WAY = {"custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin", "stop_gradient"}
"""Primitives of losses that have no forward derivative, or whose gradient is no true one."""

WORTH_IT = 2**16
"""Bytes that automatic differentiation would keep of one step, from which on it is done."""


def with_hessian_products(joint: Problem) -> Problem:
    """A joint problem with the same losses, differentiated twice by Hessian-vector products.

    The problem itself where those are not worth it, and where its loss uses one of
    `ONE_WAY`: its derivative need not be symmetric then. Nothing is differentiated
    with respect to the problem's data.
    """
    seen = joint.at_step(0)
    if _kept(seen) < WORTH_IT or ONE_WAY & _primitives(jax.make_jaxpr(seen.loss)(seen.params)):
        return joint

    def plain(x: Float[Array, "batch n"], data: tuple) -> tuple[Array, Array]:
        return losses_and_gradients(dataclasses.replace(seen, data=data), x)

    gradient = jax.custom_vjp(plain)

    def gradient_forward(x: Array, data: tuple) -> tuple[tuple[Array, Array], tuple]:
        return plain(x, data), (x, data)

    def gradient_reverse(kept: tuple, cotangents: tuple[Array, Array]) -> tuple[Array, None]:
        x, data = kept
        of_losses, v = cotangents
        g, product = jax.jvp(lambda at: plain(at, data)[1], (x,), (v,))
        return product + of_losses[:, None] * g, None

    gradient.defvjp(gradient_forward, gradient_reverse)

    @jax.custom_vjp
    def losses(x: Array, data: tuple) -> Array:
        return seen.loss_fn(x, *data)

    losses.defvjp(gradient, lambda g, of_losses: (of_losses[:, None] * g, None))

    def loss_fn(x: Array, *data: Any, **key: Array) -> Array:
        return losses(x, (*data, *key.values()))

    return dataclasses.replace(joint, loss_fn=loss_fn)


def _kept(joint: Problem) -> int:
    """Bytes that automatic differentiation of the gradient keeps."""
    reverse = jax.eval_shape(
        lambda x: jax.vjp(lambda at: losses_and_gradients(joint, at), x)[1], joint.params
    )
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(reverse))


def _primitives(jaxpr: Any) -> set[str]:
    """The names of all primitives in a traced program, those of its parts included."""
    names: set[str] = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                names |= _primitives(inner)
    return names
