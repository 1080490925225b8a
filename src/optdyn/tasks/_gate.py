"""What a task may be: everything is looked at once, before anything is compiled."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from optdyn.errors import UserError, first_line, shown
from optdyn.tasks._base import Problem, Task


def require_task(task: object) -> None:
    """Raise `UserError` unless ``task`` is an object with the method ``sample``."""
    if isinstance(task, type) or not callable(getattr(task, "sample", None)):
        raise UserError(f"task: {shown(task)} is not allowed (an object with the method sample)")


def sample_batch(task: Task, keys: Key[Array, " batch"]) -> Problem:
    """Draw a problem of ``task`` for each of ``keys``; arrays gain a leading axis [batch].

    Raises `UserError` for what is no task, and for problems that `require_sound` refuses.
    """
    require_task(task)
    require_sample(task, jax.eval_shape(lambda k: k[0], keys))
    return jax.vmap(task.sample)(keys)


def require_sample(task: Task, key: Key[Array, ""]) -> None:
    """Raise `UserError` unless ``task`` is one, and gives problems that `require_sound` takes.

    ``key``: a key, or its shape.
    """
    require_task(task)
    try:
        jax.eval_shape(lambda key: _checked(task, key), key)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"task: sample fails ({first_line(error)})") from error


def _checked(task: Task, key: Key[Array, ""]) -> Array:
    """A problem of ``task``, looked at while it is traced."""
    problem = task.sample(key)
    if not isinstance(problem, Problem):
        raise UserError(f"task: sample gives {shown(problem)} (an optdyn.Problem is needed)")
    require_sound(problem)
    _require_own_data(jax.vmap(task.sample)(key[None]))
    return jnp.zeros(())


def _require_own_data(batch: Problem) -> None:
    """Raise `UserError` where a loss of problems drawn together closes over what was drawn.

    Each problem's own arrays are then gone: what differs between them must be in ``data``.
    """
    for name, seen in (("loss_fn", Problem.at_step), ("full_loss_fn", Problem.whole)):

        def loss(problem: Problem, seen: Callable[..., Problem] = seen) -> Any:
            chosen = seen(problem, 0)
            return chosen.loss_fn(chosen.params, *chosen.data)

        try:
            jax.vmap(loss)(batch)
        except jax.errors.UnexpectedTracerError:
            names = _drawn_names(getattr(batch, name))
            caught, given = ", ".join(names) or "arrays", ", ".join(names or "xy")
            raise UserError(
                f"{name}: closes over {caught} made in sample (give what differs between problems "
                f"as Problem(..., data=({given}{',' * (len(names) == 1)})), and let {name} take "
                f"it: {name}(params, {given}))"
            ) from None


def _drawn_names(loss_fn: Callable[..., Any]) -> list[str]:
    """The traced variables that ``loss_fn`` closes over, as far as JAX shows them."""
    with contextlib.suppress(TypeError, ValueError):  # no function, or an empty cell
        outside = inspect.getclosurevars(loss_fn).nonlocals
        return [
            name
            for name, value in outside.items()
            if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))
        ]
    return []


def require_sound(problem: Problem) -> None:
    """Raise `UserError` unless ``problem`` can be solved by gradients.

    Its parameters must be real floats, of any width; its data arrays; and its loss one real
    number that can be differentiated. What is refused is named by its path.
    """
    require_params(problem.params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(problem.data):
        if not _is_array(leaf):
            raise UserError(
                f"data{jax.tree_util.keystr(path)}: {shown(leaf)} is no array (data holds what "
                "differs between problems; let loss_fn refer to everything else itself)"
            )
    if problem.key is not None and not _is_key(problem.key):
        raise UserError(f"key: {shown(problem.key)} is not allowed (a key of jax.random.key)")
    _require_scalar("loss_fn", problem.at_step(0))
    if problem.full_loss_fn is not None:
        _require_scalar("full_loss_fn", problem.whole(0))


def require_params(params: PyTree) -> None:
    """Raise `UserError`, naming the leaf, unless all of ``params`` are arrays of real floats."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, leaf in leaves:
        _require_real_floats(f"params{jax.tree_util.keystr(path)}", leaf)
    if not sum(np.size(leaf) for _, leaf in leaves):
        raise UserError("params: they hold no number (a pytree of float arrays is needed)")


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "biufcV":
        return False
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _require_real_floats(name: str, leaf: Any) -> None:
    if not _is_array(leaf):
        raise UserError(
            f"{name}: {shown(leaf)} is no array of real floats (keep what is not trained out of "
            "params: let loss_fn refer to it)"
        )
    dtype = jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise UserError(
            f"{name}: complex numbers are not allowed (give real and imaginary parts as two "
            "leaves, and let loss_fn put them together)"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(
            f"{name}: {dtype} is not allowed (real floats; keep what is not trained out of "
            "params: in data, or let loss_fn refer to it)"
        )


def _require_scalar(name: str, problem: Problem) -> None:
    """Raise `UserError` unless the loss is one real number with a gradient."""

    def loss(params: PyTree) -> Any:
        return one_real_loss(name, problem.loss_fn(params, *problem.data))

    try:
        jax.eval_shape(jax.grad(loss), jax.tree.map(jnp.asarray, problem.params))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{name}: fails on the parameters that sample gives ({first_line(error)})"
        ) from error


def one_real_loss(name: str, found: Any, *, is_joint: bool = False) -> Array:
    """What a loss function gave, as an array.

    Raises `UserError` unless it is one real number, or a row of them from a joint problem.
    """
    if isinstance(found, tuple | list | dict):
        raise UserError(
            f"{name}: gives a {type(found).__name__} of {len(found)} (one real number is needed: "
            "return the loss alone, without auxiliary outputs)"
        )
    if not isinstance(found, jax.Array | np.ndarray | np.generic | float | int):
        raise UserError(f"{name}: gives {shown(found)} (one real number is needed)")
    dtype = jnp.result_type(found)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"{name}: gives a number of type {dtype} (a real float is needed)")
    if np.ndim(found) != int(is_joint):
        raise UserError(
            f"{name}: gives an array of shape {np.shape(found)} (one real number is needed: take "
            "its mean or sum, or its one entry)"
        )
    return jnp.asarray(found)
