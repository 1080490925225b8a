"""Optimizers of PyTorch as optax pairs, and what the analyses make of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jaxtyping import Array, Float, PyTree

import optdyn.dynamics
from optdyn.dynamics import Dissection, Linearization, settle, step_map
from optdyn.errors import UserError
from optdyn.precision import double_precision
from optdyn.torch._aten import Moved, plain
from optdyn.torch._own_step import OwnStep, export_step, first_state, run_own, step_of_class

CHECKED_STEPS = 8
CHECKED_COMPONENTS = 3
TOLERANCE = 1e-9
"""So near, relative to its largest number, is the exported step to the optimizer's own."""


def as_optax(
    optimizer: type[torch.optim.Optimizer], /, **hyperparameters: Any
) -> optax.GradientTransformation:
    """A class of PyTorch optimizers as an optax pair, for all that takes one.

    ``optimizer``: a class such as ``torch.optim.AdamW``, or one's own; ``hyperparameters``:
    what it is made with. PyTorch exports the class's own step as a graph, and JAX runs that
    graph: it can be differentiated and compiled. ``init`` gives the state that the class makes
    for new parameters; ``update`` needs the parameters. Before it is handed out, some of its
    steps are compared with the class's own, to 1e-9.

    A first step that differs from all others is left out: SGD with dampening puts its first
    gradient in the buffer undamped. The learning rate is fixed; a scheduler is not followed.

    Raises `UserError` for what is not such a class, for steps that decide by the values of
    tensors (LBFGS, Adafactor), take sparse gradients (SparseAdam), mix components through
    products of matrices (Muon) or keep memory outside the state of their parameters, and where
    the exported step is not the class's own.

    >>> tx = as_optax(torch.optim.SGD, lr=0.1, momentum=0.9)
    >>> optdyn.linearize(tx).A.tolist()
    [[0.9]]
    """
    own = step_of_class(optimizer, dict(hyperparameters))
    tx = exported_pair(own)
    _require_own(own, tx)
    return tx


def linearize(
    optimizer: type[torch.optim.Optimizer],
    /,
    *,
    gradient_scale: float = 1.0,
    steps: int = 20_000,
    alternating: bool = True,
    gradient: float = 0.0,
    param: float = 0.0,
    **hyperparameters: Any,
) -> Linearization:
    """The linear system that one component of a PyTorch optimizer is near an operating point.

    The state is the one after ``steps`` gradients ±``gradient_scale`` at a fixed ``param``
    (``alternating=False``: all of one sign), as `optdyn.settle` makes it: counters, bias
    corrections and schedules stand at that step. It is linearised at ``gradient`` and
    ``param``. For other states: ``optdyn.linearize(as_optax(...), state=...)``.

    >>> lin = linearize(torch.optim.AdamW, lr=0.01)
    >>> lin.names
    ('exp_avg', 'exp_avg_sq')

    Raises `UserError` for what `as_optax` and `optdyn.linearize` refuse.
    """
    step = step_map(as_optax(optimizer, **hyperparameters))
    state = settle(step, gradient_scale, alternating=alternating, steps=steps, param=param)
    return optdyn.dynamics.linearize(step, state=state, gradient=gradient, param=param)


def dissect(
    optimizer: type[torch.optim.Optimizer],
    /,
    *,
    gradient_scale: float = 1.0,
    gradients: Float[np.ndarray, "components steps"] | None = None,
    spectrum: Float[np.ndarray, " S"] | None = None,
    **hyperparameters: Any,
) -> Dissection:
    """Operating point, modes, stability and nearest relative of a PyTorch optimizer.

    As `optdyn.dynamics.dissect`, whose arguments these are. Raises `UserError` for what that
    and `as_optax` refuse.

    >>> found = dissect(torch.optim.SGD, lr=0.1, momentum=0.9)
    >>> found.identification.nearest.name
    'momentum'
    """
    return optdyn.dynamics.dissect(
        as_optax(optimizer, **hyperparameters),
        gradient_scale=gradient_scale,
        gradients=gradients,
        spectrum=spectrum,
    )


def _require_own(own: OwnStep, tx: optax.GradientTransformation) -> None:
    """Raise `UserError` unless some steps of ``tx`` are those of the class itself."""
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.uniform(-3.0, 3.0, (CHECKED_STEPS, 1))
    gradients = sizes * rng.standard_normal((CHECKED_STEPS, CHECKED_COMPONENTS))
    start, path, last = run_own(own, gradients)
    found = []
    with double_precision():
        state, x = {k: jnp.asarray(v) for k, v in start.items()}, jnp.zeros(CHECKED_COMPONENTS)
        for g in gradients:
            updates, state = tx.update(jnp.asarray(g), state, x)
            x = x + updates
            found.append(np.asarray(x))
    pairs = [("parameter", path, np.array(found))]
    pairs += [(name, last[name], np.asarray(state[name])) for name in start]
    for name, expected, computed in pairs:
        what = f"after {CHECKED_STEPS} steps {name}"
        require_own(own, what, computed, expected, equal_nan=True)


def exported_pair(
    own: OwnStep, clock: Sequence[dict[str, np.ndarray]] | None = None
) -> optax.GradientTransformation:
    """The step ``own`` as an optax pair; its state is a dictionary for each parameter.

    ``clock``: for each parameter, in the order of ``jax.tree.leaves``, entries of its state
    that stay at these values and are no part of the pair's state.
    """
    first = functools.cache(functools.partial(first_state, own))
    program = functools.cache(functools.partial(export_step, own))

    def held(i: int) -> dict[str, np.ndarray]:
        return {} if clock is None else clock[i]

    def init(params: PyTree) -> PyTree:
        leaves, treedef = jax.tree.flatten(params)
        states = [
            {
                name: jnp.asarray(array, jnp.result_type(leaf))
                for name, array in state.items()
                if name not in held(i)
            }
            for i, (state, leaf) in enumerate(
                zip(first(_shapes(leaves)).numbers, leaves, strict=True)
            )
        ]
        return jax.tree.unflatten(treedef, states)

    def update(
        gradients: PyTree, state: PyTree, params: PyTree | None = None
    ) -> tuple[PyTree, PyTree]:
        if params is None:
            raise UserError(f"{own.name}: update needs the parameters: update(g, state, params)")
        leaves = jax.tree.leaves(params)
        treedef: Any = jax.tree.structure(params)
        shapes = _shapes(leaves)
        states = treedef.flatten_up_to(state)
        places = [(i, name) for i, numbers in enumerate(first(shapes).numbers) for name in numbers]
        before = [held(i)[name] if name in held(i) else states[i][name] for i, name in places]
        start = [Moved(leaf, np.zeros(())) for leaf in leaves]
        after = program(shapes)([*start, *treedef.flatten_up_to(gradients), *before])
        updates = [
            _like(new.by if isinstance(new, Moved) else new - old, old)
            for new, old in zip(after[: len(leaves)], leaves, strict=True)
        ]
        following: list[dict[str, Array]] = [{} for _ in leaves]
        for (i, name), new in zip(places, after[len(leaves) :], strict=True):
            if name not in held(i):
                following[i][name] = _like(plain(new), states[i][name])
        return jax.tree.unflatten(treedef, updates), jax.tree.unflatten(treedef, following)

    return optax.GradientTransformation(init, update)


def require_own(
    own: OwnStep,
    what: str,
    found: np.ndarray,
    expected: np.ndarray,
    *,
    rounding: float = 0.0,
    equal_nan: bool = False,
) -> None:
    """Raise `UserError` unless a number of the exported step is that of the optimizer's own."""
    allowed = TOLERANCE * np.max(np.abs(expected), initial=0.0) + rounding
    if not np.allclose(found, expected, rtol=0.0, atol=allowed, equal_nan=equal_nan):
        raise UserError(
            f"{own.name}: its exported step is not its own step: {what} differs by "
            f"{np.max(np.abs(found - expected)):.2g} (allowed: steps that depend on gradients, "
            "parameters and state alone)"
        )


def _like(new: Any, old: Any) -> Array:
    """``new`` in the dtype and shape of ``old``."""
    return jnp.broadcast_to(jnp.asarray(new, jnp.result_type(old)), np.shape(old))


def _shapes(leaves: list[Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(np.shape(leaf) for leaf in leaves)
