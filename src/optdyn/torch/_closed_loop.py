"""The closed loop of an optimizer and a model, both of PyTorch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import torch
from jaxtyping import Bool, Float, PyTree
from torch import Tensor

from optdyn.dynamics._closed_loop import ClosedLoop, loop_of
from optdyn.dynamics._training_step import in_pieces, require_dead
from optdyn.errors import UserError, require_positive_int, shown
from optdyn.precision import double_precision, to_float64
from optdyn.torch._analysis import exported_pair, require_own
from optdyn.torch._learned_optimizer import STATE, LearnedOptimizer
from optdyn.torch._loss import LossOfModel, joined, wide_array
from optdyn.torch._own_step import clock_names, living_state, run_from, step_of_optimizer


@dataclasses.dataclass(frozen=True, eq=False)
class ModelStep:
    """One step ``(x, s) -> (x + c·Δx, s')`` of ``tx`` on the ``loss`` of a model.

    ``params`` and ``state``: trees by the names of the model's parameters. All their entries
    make one vector z, in the order of ``jax.tree.leaves((params, state))``. ``frozen`` [dim]:
    entries without a derivative here, which are held fixed.
    """

    tx: optax.GradientTransformation
    loss: LossOfModel
    params: dict[str, np.ndarray]
    state: PyTree
    frozen: Bool[np.ndarray, " dim"]

    @property
    def steps(self) -> int:
        """Every step is alike: steps do not come in cycles."""
        return 1

    @property
    def dim(self) -> int:
        """The number of entries of z."""
        return sum(int(np.size(leaf)) for leaf in jax.tree.leaves((self.params, self.state)))

    @property
    def num_params(self) -> int:
        """The number of entries of x, the first of z."""
        return sum(leaf.size for leaf in self.params.values())

    @functools.cached_property
    def _tangent(self) -> Callable[..., tuple[PyTree, PyTree]]:
        def step(x: PyTree, g: PyTree, s: PyTree) -> tuple[PyTree, PyTree]:
            return self.tx.update(g, s, x)

        point = (self.params, self.loss.gradient, self.state)
        return jax.jit(lambda *moves: jax.jvp(step, point, moves)[1])

    def times(self, v: Any, factor: float = 1.0) -> Float[np.ndarray, " dim"]:
        """The step's derivative along v [dim], where all updates are ``factor`` times as large."""
        moving = np.where(self.frozen, 0.0, np.asarray(v, np.float64))
        x, s = in_pieces(moving, (self.params, self.state))
        updates, state = self._tangent(x, self.loss.hessian_times(x), s)
        moved = jax.tree.map(lambda old, new: old + factor * np.asarray(new), x, updates)
        return np.where(self.frozen, 0.0, joined(jax.tree.leaves((moved, state))))

    def course(self, v: Any, factor: float = 1.0) -> Float[np.ndarray, "1 dim"]:
        """`times`, as one row: a cycle is one step."""
        return self.times(v, factor)[None]

    def matrix(self, factor: float = 1.0) -> Float[np.ndarray, "dim dim"]:
        """The derivative as a dense matrix, with updates ``factor`` times as large."""
        return np.stack([self.times(row, factor) for row in np.eye(self.dim)], axis=1)

    def curvature_along(self, x: Float[np.ndarray, " num_params"]) -> float:
        """``xᵀHx``, H being the Hessian of the loss."""
        image = self.loss.hessian_times(self.params_of(x))
        return float(x @ joined(jax.tree.leaves(image)))

    def params_of(self, z: np.ndarray) -> dict[str, np.ndarray]:
        """The part of z that belongs to the parameters, by name."""
        return in_pieces(z, self.params)


def closed_loop(
    optimizer: torch.optim.Optimizer,
    loss_fn: Callable[[Any], Tensor],
    model: torch.nn.Module,
    *,
    num: int = 8,
    margin: bool = True,
) -> ClosedLoop:
    """Linearise one training step of ``model`` where it is, with ``optimizer`` in its state.

    ``loss_fn(model)`` gives the loss, a scalar, such as ``lambda model: loss(model(x), y)``: on
    one fixed batch, without dropout. ``num``, ``margin`` and the result are as in
    `optdyn.closed_loop`; trees are dictionaries by the names of the model's parameters.

    The loss is differentiated twice by PyTorch, in the model's own dtype (``model.double()``
    gives all digits); the optimizer's own step, as in `as_optax`, or the learned one, in
    float64. Step numbers stay as they are. Neither model nor optimizer is changed.

    Parameters that the optimizer does not have, that need no gradient (``requires_grad=False``)
    or that the loss does not depend on have no gradient after ``zero_grad()`` and ``backward()``.
    PyTorch leaves them and their state alone, weight decay included. They are constants here: no
    part of the multipliers (each entry would add a 1). ``still`` names those of the optimizer.

    Raises `UserError` where the loss is no finite scalar, is another one each time, or cannot be
    differentiated twice, for what `as_optax` refuses, and where the step has no derivative
    (Adam along a parameter whose gradients were all zero).
    """
    require_positive_int("num", num)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"optimizer: {shown(optimizer)} is not allowed (one of PyTorch, in use)")
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"model: {shown(model)} is not allowed (a torch.nn.Module)")
    owned = {p for group in optimizer.param_groups for p in group["params"]}
    named = {name: p for name, p in model.named_parameters() if p in owned}
    if not named:
        raise UserError("model: none of its parameters is the optimizer's (allowed: its own model)")
    trained = [name for name, p in named.items() if p.requires_grad]
    if not trained:
        raise UserError(
            "model: none of the optimizer's parameters has requires_grad (allowed: one)"
        )
    with double_precision():
        loss = LossOfModel(model, loss_fn, trained)
        params = {name: named[name] for name in sorted(loss.gradient)}
        tx, state = _pair(optimizer, params, loss.gradient)
        wide = {name: wide_array(p) for name, p in params.items()}
        dim = sum(np.size(leaf) for leaf in jax.tree.leaves((wide, state)))
        step = ModelStep(tx, loss, wide, state, np.zeros(dim, bool))
        step = dataclasses.replace(step, frozen=_without_derivative(step))
        still = tuple(name for name in named if name not in params)
        return dataclasses.replace(loop_of(step, num, margin), still=still)


def _pair(
    optimizer: torch.optim.Optimizer, params: dict[str, Tensor], gradient: dict[str, np.ndarray]
) -> tuple[optax.GradientTransformation, PyTree]:
    """The optimizer as an optax pair for those parameters, and its state now."""
    if isinstance(optimizer, LearnedOptimizer):
        return _learned_pair(optimizer, params)
    tensors = list(params.values())
    own = step_of_optimizer(optimizer, tensors)
    states = living_state(own, optimizer, tensors)
    clock = clock_names(own, len(tensors))
    held = [{k: a for k, a in state.items() if k in clock} for state in states]
    memory = [{k: a for k, a in state.items() if k not in clock} for state in states]
    tx, state = exported_pair(own, held), dict(zip(params, memory, strict=True))
    start = {name: wide_array(p) for name, p in params.items()}
    after = run_from(own, list(start.values()), list(gradient.values()), states)
    updates = tx.update(gradient, state, start)[0]
    for new, (name, old) in zip(after, start.items(), strict=True):
        found = np.asarray(updates[name])
        rounding = 8 * np.finfo(np.float64).eps * np.max(np.abs(old), initial=0.0)
        require_own(own, f"the update of {name}", found, new - old, rounding=rounding)
    return tx, state


def _learned_pair(
    optimizer: LearnedOptimizer, params: dict[str, Tensor]
) -> tuple[optax.GradientTransformation, PyTree]:
    base = to_float64(optimizer.learned).as_optax()
    rate = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    rates = {name: float(rate[p]) for name, p in params.items()}

    def init(x: PyTree) -> PyTree:
        return {name: base.init(leaf) for name, leaf in x.items()}

    def update(gradients: PyTree, state: PyTree, x: PyTree | None = None) -> tuple[PyTree, PyTree]:
        del x
        pairs = {name: base.update(g, state[name]) for name, g in gradients.items()}
        updates = {name: rates[name] * update for name, (update, _) in pairs.items()}
        return updates, {name: following for name, (_, following) in pairs.items()}

    state = init({name: wide_array(p) for name, p in params.items()})
    for name, p in params.items():
        if STATE in optimizer.state.get(p, {}):
            state[name] = _with_columns(state[name], wide_array(optimizer.state[p][STATE]), p.ndim)
    return optax.GradientTransformation(init, update), state


def _with_columns(state: PyTree, h: np.ndarray, ndim: int) -> PyTree:
    """The ``state`` of an array of ``ndim`` axes with the columns of ``h`` [N, state] as leaves."""
    leaves, treedef = jax.tree.flatten(state)
    sizes = [1 if leaf.ndim == ndim else leaf.shape[-1] for leaf in leaves]
    pieces = np.split(h, np.cumsum(sizes)[:-1], axis=1)
    filled = [piece.reshape(leaf.shape) for piece, leaf in zip(pieces, leaves, strict=True)]
    return jax.tree.unflatten(treedef, filled)


def _without_derivative(step: ModelStep) -> Bool[np.ndarray, " dim"]:
    """The entries that have no derivative and cannot move: gradient and memory are zero.

    Raises `UserError` where others have none.
    """
    draw = np.random.default_rng(0).standard_normal(step.dim)
    bad = ~np.isfinite(step.times(draw))
    advice = "allowed: parameters that have had gradients"
    require_dead(bad, zip(step.params, step.loss.gradient.values(), strict=True), advice)
    return bad
