"""The loss of a PyTorch model as a function of its parameters: gradient and curvature."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optdyn.errors import UserError, first_line


class LossOfModel:
    """``loss_fn(model)`` at the parameters that the model has, called ``names``.

    ``gradient``: by name, in float64, of those parameters that the loss depends on. It is
    computed in the model's own dtypes and on its devices; the model is not changed, nor are its
    buffers. Hooks on the parameters' gradients run. Raises `UserError` unless the loss is one
    finite number, the same each time, that can be differentiated twice, and where the second
    derivative is not the gradient's own (see `_require_own_derivative`).
    """

    def __init__(
        self, model: torch.nn.Module, loss_fn: Callable[[Any], Tensor], names: list[str]
    ) -> None:
        every = dict(model.named_parameters())
        copies = {name: every[name].detach().clone().requires_grad_() for name in names}
        hooks = {name: _hooks_of(name, every[name]) for name in names}
        call = _Call(model, loss_fn)

        def evaluate() -> Tensor:
            # A forward pass may write to its buffers (running means): it gets copies.
            buffers = {f"model.{name}": b.clone() for name, b in model.named_buffers()}
            chosen = {f"model.{name}": copy for name, copy in copies.items()}
            return torch.func.functional_call(call, {**buffers, **chosen}, ())

        try:
            with torch.enable_grad():
                value, again = _number(evaluate()), _number(evaluate())
                gradients = torch.autograd.grad(
                    value, list(copies.values()), create_graph=True, allow_unused=True
                )
        except UserError:
            raise
        except Exception as error:  # the user's own code may raise anything
            raise UserError(
                f"loss_fn: cannot be differentiated: {first_line(error)} (allowed: loss_fn(model) "
                "that gives a scalar tensor)"
            ) from error
        if value.item() != again.item():
            raise UserError(
                f"loss_fn: gives {value.item():g} and then {again.item():g} (allowed: the same "
                "each time: one fixed batch, and model.eval() where it has dropout)"
            )
        by_name = dict(zip(copies, gradients, strict=True))
        used = {
            name: _through(hooks[name], by_name[name])
            for name in sorted(by_name)
            if by_name[name] is not None
        }
        self._hooks = {name: hooks[name] for name in used}
        self._params = {name: copies[name] for name in used}
        self._gradients = used
        self.gradient = {name: wide_array(g) for name, g in used.items()}
        if not used:
            raise UserError("loss_fn: does not depend on the model's parameters (allowed: a loss)")
        for name, gradient in self.gradient.items():
            if not np.all(np.isfinite(gradient)):
                raise UserError(
                    f"loss_fn: its gradient along {name} is not finite (allowed: parameters at "
                    "which the training still runs)"
                )
        self._require_own_derivative(evaluate)

    def _require_own_derivative(self, evaluate: Callable[[], Tensor]) -> None:
        """Compare the Hessian with differences of the gradient, along a random direction.

        They part where the loss holds a part of itself fixed (``detach()``, a target network),
        and for operations whose second derivative PyTorch gets wrong.
        """
        params = list(self._params.values())
        dtype = min((p.dtype for p in params), key=lambda kind: torch.finfo(kind).bits)
        unit = torch.finfo(dtype).eps
        step, allowed = (1e-5, 0.02) if unit < 1e-12 else (unit ** (1 / 3), 0.3)
        draw = np.random.default_rng(0)
        scales = {n: max(float(p.detach().abs().max()), 1.0) for n, p in self._params.items()}
        v = {n: draw.standard_normal(p.shape) * scales[n] for n, p in self._params.items()}
        along = [torch.as_tensor(v[n]).to(p.device, p.dtype) for n, p in self._params.items()]

        def gradient(sign: float) -> np.ndarray:
            olds = [p.detach().clone() for p in params]
            # Through .data: autograd's graph is of the values that are put back.
            for p, direction in zip(params, along, strict=True):
                p.data.add_(direction, alpha=sign * step)
            try:
                with torch.enable_grad():
                    found = torch.autograd.grad(evaluate(), params, allow_unused=True)
            finally:
                for p, old in zip(params, olds, strict=True):
                    p.data.copy_(old)
            parts = zip(params, self._hooks.values(), found, strict=True)
            return joined(
                np.zeros(p.shape) if g is None else wide_array(_through(own, g))
                for p, own, g in parts
            )

        derivative = joined(self.hessian_times(v).values())
        difference = (gradient(1.0) - gradient(-1.0)) / (2.0 * step)
        rounding = 4 * unit * np.linalg.norm(joined(self.gradient.values())) / step
        apart = np.linalg.norm(difference - derivative)
        size = max(np.linalg.norm(difference), np.linalg.norm(derivative))
        if not apart <= allowed * size + rounding:
            raise UserError(
                f"loss_fn: its second derivative is off by {apart / size:.0%} from differences of "
                "its gradient (allowed: a loss without detach() in it, and operations that "
                "PyTorch differentiates twice; weight_norm is one that it does not)"
            )

    def hessian_times(self, v: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The Hessian times ``v``, by name. Raises `UserError` where PyTorch cannot give it."""
        # A gradient that depends on no parameter has no graph, and adds nothing.
        curved = {name: g for name, g in self._gradients.items() if g.requires_grad}
        if not curved:
            return {name: np.zeros(p.shape) for name, p in self._params.items()}
        along = [torch.as_tensor(v[name]).to(g.device, g.dtype) for name, g in curved.items()]
        try:
            products = torch.autograd.grad(
                list(curved.values()),
                list(self._params.values()),
                grad_outputs=along,
                retain_graph=True,
                allow_unused=True,
            )
        except RuntimeError as error:
            raise UserError(
                f"loss_fn: cannot be differentiated twice: {first_line(error)} (allowed: models "
                "whose operations PyTorch differentiates twice)"
            ) from error
        pairs = zip(self._params.items(), products, strict=True)
        return {n: np.zeros(p.shape) if hv is None else wide_array(hv) for (n, p), hv in pairs}


class _Call(torch.nn.Module):
    """``loss_fn(model)`` as a module, whose parameters can be replaced."""

    def __init__(self, model: torch.nn.Module, loss_fn: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self) -> Tensor:
        return self.loss_fn(self.model)


def _hooks_of(name: str, parameter: Tensor) -> list[Callable[[Tensor], Tensor | None]]:
    """The hooks that a parameter's gradient passes through."""
    if getattr(parameter, "_post_accumulate_grad_hooks", None):
        raise UserError(
            f"model: {name} has a hook that runs once its gradient is there (allowed: "
            "register_hook; remove register_post_accumulate_grad_hook)"
        )
    return list((parameter._backward_hooks or {}).values())


def _through(hooks: list[Callable[[Tensor], Tensor | None]], gradient: Tensor) -> Tensor:
    for hook in hooks:
        changed = hook(gradient)
        gradient = gradient if changed is None else changed
    return gradient


def joined(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(np.ravel(array) for array in arrays)])


def _number(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1 or not torch.isfinite(value).all():
        told = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        if isinstance(value, Tensor) and value.numel() == 1:
            told = f"{value.item():g}"
        raise UserError(f"loss_fn: gives {told} (allowed: one finite number, as a tensor)")
    return value.reshape(())


def wide_array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float64, copy=True).numpy()
