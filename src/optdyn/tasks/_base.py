"""What a task is: a distribution over problems; a problem: a loss and a start."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import jax
from jax.flatten_util import ravel_pytree

from optdyn.errors import UserError, shown

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """One optimization problem: a loss function and initial parameters.

    ``params`` is any pytree of float arrays; ``loss_fn(params, *data)`` gives
    the loss. ``data`` holds the arrays that differ between problems, so that a
    batch of problems is a `Problem` with one more leading axis on ``params``
    and ``data``.
    """

    params: PyTree[Float[Array, "..."]]
    loss_fn: Callable[..., Float[Array, "..."]] = dataclasses.field(metadata={"static": True})
    data: tuple[Any, ...] = ()

    def loss(self, params: PyTree[Float[Array, "..."]]) -> Float[Array, "..."]:
        """The loss at ``params``: a scalar, or one value a problem when joint."""
        return self.loss_fn(params, *self.data)


class Task(Protocol):
    """A distribution over problems (appendix C.1): draw one from a key.

    Any object with this method is a task, for example::

        @dataclasses.dataclass(frozen=True)
        class Quartic:
            def sample(self, key):
                start = jax.random.normal(key, (3,))
                return Problem(params=start, loss_fn=lambda x: jnp.sum(x**4))
    """

    def sample(self, key: Key[Array, ""]) -> Problem: ...


def sample_batch(task: Task, keys: Key[Array, " batch"]) -> Problem:
    """Draw a problem of ``task`` for each of ``keys``; arrays gain a leading axis [batch].

    Raises `UserError` for what is no task.
    """
    require_task(task)
    return jax.vmap(task.sample)(keys)


def require_task(task: object) -> None:
    """Raise `UserError` unless ``task`` is an object with the method ``sample``."""
    if isinstance(task, type) or not callable(getattr(task, "sample", None)):
        raise UserError(f"task: {shown(task)} is not allowed (an object with the method sample)")


def joint(batch: Problem) -> Problem:
    """A batch of problems as one problem with a vector of losses.

    Parameters become one array [batch, n] (each problem's pytree ravelled);
    the loss has shape [batch]. A component-wise optimizer solves the joint
    problem exactly as it would solve each problem alone.
    """
    first = jax.tree.map(lambda leaf: leaf[0], batch.params)
    _, unravel = ravel_pytree(first)

    def losses(flat: Float[Array, "batch n"], *data: Any) -> Float[Array, " batch"]:
        return jax.vmap(lambda row, *rest: batch.loss_fn(unravel(row), *rest))(flat, *data)

    flat = jax.vmap(lambda params: ravel_pytree(params)[0])(batch.params)
    return Problem(params=flat, loss_fn=losses, data=batch.data)
