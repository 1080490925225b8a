"""Optimizers of PyTorch as optax pairs, and what the analyses make of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
import optax
import torch

import optdyn.dynamics
from optdyn.dynamics import Dissection, Linearization, settle, step_map
from optdyn.errors import UserError
from optdyn.precision import double_precision
from optdyn.torch._own_step import OwnStep, run_own, step_of_class
from optdyn.torch._pair import exported_pair

if TYPE_CHECKING:
    from jaxtyping import Float

CHECKED_STEPS = 8
CHECKED_COMPONENTS = 3
TOLERANCE = 1e-9
"""So near, relative to its largest number, is the exported step to the class's own."""


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
        size = np.max(np.abs(expected), initial=0.0)
        if not np.allclose(computed, expected, rtol=0.0, atol=TOLERANCE * size, equal_nan=True):
            raise UserError(
                f"{own.name}: its exported step is not its own step: {name} differs by "
                f"{np.max(np.abs(computed - expected)):.2g} after {CHECKED_STEPS} steps (allowed: "
                "steps that depend on gradients, parameters and state alone)"
            )
