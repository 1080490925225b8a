"""What a task is: a distribution over problems; a problem: a loss and a start."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, PyTree

from optdyn.errors import UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """One optimization problem: a loss function and initial parameters.

    ``params`` is any pytree of float arrays; ``loss_fn(params, *data)`` gives
    the loss. ``data`` holds the arrays that differ between problems, so that a
    batch of problems is a `Problem` with one more leading axis on ``params``
    and ``data``.

    A stochastic problem has a ``key``: at inner step k its loss is
    ``loss_fn(params, *data, key=fold_in(key, k))``, which may draw a minibatch.
    ``full_loss_fn(params, *data)``, where given, is the loss on all the data, by
    which the start and the end of an inner loop are then judged.

    ``is_joint``: made by `joint`, so that the loss is one value a problem.
    """

    params: PyTree[Float[Array, "..."]]
    loss_fn: Callable[..., Float[Array, "..."]] = dataclasses.field(metadata={"static": True})
    data: tuple[Any, ...] = ()
    key: Key[Array, "..."] | None = None
    full_loss_fn: Callable[..., Float[Array, "..."]] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    is_joint: bool = dataclasses.field(default=False, metadata={"static": True})

    def at_step(self, step: Int[Array, ""] | int) -> Problem:
        """The problem that inner step ``step`` sees, with nothing left to draw."""
        if self.key is None:
            return self
        fold = jax.random.fold_in
        drawn = (
            fold(self.key, step)
            if self.key.ndim == 0
            else jax.vmap(fold, (0, None))(self.key, step)
        )
        return self._without_key(_Keyed(self.loss_fn), (*self.data, drawn))

    def whole(self, step: Int[Array, ""] | int) -> Problem:
        """The problem on all its data where it offers that, else as inner step ``step`` sees it."""
        if self.full_loss_fn is None:
            return self.at_step(step)
        return self._without_key(self.full_loss_fn, self.data)

    def _without_key(self, loss_fn: Callable[..., Array], data: tuple[Any, ...]) -> Problem:
        return Problem(self.params, loss_fn, data, is_joint=self.is_joint)

    def on_all_data(self) -> Problem:
        """The problem with nothing to draw, on all its data.

        Raises `UserError` for a stochastic problem that offers no loss on all its data.
        """
        if self.key is not None and self.full_loss_fn is None:
            raise UserError(
                "problem: its loss is drawn anew at each step (give it full_loss_fn, the loss "
                "on all the data)"
            )
        return self.whole(0)

    def loss(self, params: PyTree[Float[Array, "..."]]) -> Float[Array, "..."]:
        """The loss on all data at ``params``: a scalar, or one value a problem when joint.

        Raises `UserError` as `on_all_data` does.
        """
        problem = self.on_all_data()
        return problem.loss_fn(params, *problem.data)


@dataclasses.dataclass(frozen=True)
class _Keyed:
    """A stochastic loss whose key is the last of its data."""

    loss_fn: Callable[..., Float[Array, "..."]]

    def __call__(self, params: PyTree, *data_and_key: Any) -> Float[Array, "..."]:
        return self.loss_fn(params, *data_and_key[:-1], key=data_and_key[-1])


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


def joint(batch: Problem) -> Problem:
    """A batch of problems as one problem with a vector of losses.

    Parameters become one array [batch, n] (each problem's pytree ravelled);
    the loss has shape [batch]. A component-wise optimizer solves the joint
    problem exactly as it would solve each problem alone.
    """
    unravel = unravel_one(batch)

    def of_rows(loss_fn: Callable[..., Array]) -> Callable[..., Array]:
        def losses(
            flat: Float[Array, "batch n"], *data: Any, **key: Key[Array, " batch"]
        ) -> Float[Array, " batch"]:
            def one(row: Array, rest: tuple[Any, ...], named: dict[str, Array]) -> Array:
                return loss_fn(unravel(row), *rest, **named)

            return jax.vmap(one)(flat, data, key)

        return losses

    flat = jax.vmap(lambda params: ravel_pytree(params)[0])(batch.params)
    whole = None if batch.full_loss_fn is None else of_rows(batch.full_loss_fn)
    return Problem(flat, of_rows(batch.loss_fn), batch.data, batch.key, whole, is_joint=True)


def unravel_one(batch: Problem) -> Callable[[Float[Array, " n"]], PyTree]:
    """Takes one row of the `joint` problem's parameters to the pytree that it came from."""
    first = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), batch.params)
    return ravel_pytree(first)[1]
