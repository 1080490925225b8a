"""A learned optimizer as a `torch.optim.Optimizer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from optdyn.errors import UserError, require_number, shown

if TYPE_CHECKING:
    from optdyn.distillation import Distilled
    from optdyn.optimizers import ComponentwiseRNN
    from optdyn.optimizers._gradient_range import OneWarning
    from optdyn.torch._network import Network
    from optdyn.torch._readable import Readable

STATE = "h"
FINGERPRINT = "fingerprint"
DTYPES = (torch.float32, torch.float64)


class LearnedOptimizer(torch.optim.Optimizer):
    """``h_{k+1} = F(h_k, g_k)``, ``x_{k+1} = x_k + lr·s·wᵀh_{k+1}`` (eqs. 1, 2), for PyTorch.

    The same optimizer as ``optdyn.load_pretrained(name).as_optax()``: each scalar parameter
    has a state h of its own, and all share one recurrent network F. The components of a
    parameter group (on one device) go through F in one matrix product. A readable optimizer
    has its parts (momenta and others) for F, and their memory for h.

    ``params``: tensors, named tensors or groups, as every PyTorch optimizer takes them.
    ``optimizer``: a pretrained name (see `optdyn.PRETRAINED`), the path of a checkpoint of
    ``optdyn train``, a `optdyn.ComponentwiseRNN`, or a `optdyn.distillation.Distilled`.
    ``stage``: as in `optdyn.load_pretrained`; ``"readable"`` is a readable optimizer. ``lr``:
    multiplies each update; 1 is what was learned. A learning-rate scheduler changes it, and each
    group may have its own. ``dtype``: that of h and of the network, by default the
    meta-parameters' (float32 for what ships). Parameters may be of any real floating dtype.
    Parameters without a gradient are left alone, and so is their state. A network that ships
    warns once (`optdyn.optimizers.GradientRangeWarning`) when the largest gradient of a step is
    outside the range of its training.

    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = LearnedOptimizer(model.parameters(), "two_moons")

    Raises `UserError` for an unknown name, a bad ``lr`` or ``dtype``, and parameters that are
    not real floats. ``step`` raises it for sparse gradients, ``load_state_dict`` for the
    state of another optimizer.
    """

    def __init__(
        self,
        params: Iterable[Any],
        optimizer: str | Path | ComponentwiseRNN | Distilled,
        *,
        stage: str = "final",
        lr: float = 1.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        if dtype is not None and dtype not in DTYPES:
            raise UserError(f"dtype: {dtype} is not allowed (torch.float32 or torch.float64)")
        learned = _resolve(optimizer, stage)
        network = _network_of(learned)
        network = network if dtype is None else network.to(dtype)
        self.learned = learned
        self._networks = {torch.device("cpu"): network}
        self._watch = _watch(learned)
        super().__init__(params, {"lr": lr, FINGERPRINT: _fingerprint(learned)})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with options of its own (``lr``)."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            require_number("lr", group["lr"])
            for p in group["params"]:
                if not p.is_floating_point():
                    raise UserError(
                        f"parameters: {p.dtype} is not allowed (real floating-point tensors)"
                    )
        except UserError:
            del self.param_groups[-1]
            raise

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step; ``closure``, if given, computes the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._compare_with_training()
            for group in self.param_groups:
                with_gradient = [p for p in group["params"] if p.grad is not None]
                for device in dict.fromkeys(p.device for p in with_gradient):
                    self._advance([p for p in with_gradient if p.device == device], group["lr"])
        return loss

    def _compare_with_training(self) -> None:
        """Warn once about gradients unlike those that the optimizer was trained on."""
        if self._watch is None or self._watch.warned:
            return
        params = (p for group in self.param_groups for p in group["params"])
        sizes = [p.grad.abs().max() for p in params if _has_dense_gradient(p)]
        if sizes:
            first = sizes[0].device
            largest = torch.stack([size.to(first, torch.float64) for size in sizes]).max()
            self._watch([np.asarray(largest.item(), np.float32)])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state that ``state_dict()`` gave, to the bit."""
        given = [group.get(FINGERPRINT) for group in state_dict["param_groups"]]
        own = self.param_groups[0][FINGERPRINT]
        if any(fingerprint != own for fingerprint in given):
            raise UserError(
                "state_dict: is not of this optimizer (allowed: one of a LearnedOptimizer with "
                "the same meta-parameters)"
            )
        for p, h in self._states(state_dict):
            if len(h) != p.numel():
                raise UserError(
                    f"state_dict: has a state for {len(h)} components where a parameter has "
                    f"{p.numel()} (allowed: one of an optimizer of the same model)"
                )
        super().load_state_dict(state_dict)
        # PyTorch gives state the dtype of its parameter, which may be shorter than the network's.
        for p, h in self._states(state_dict):
            self.state[p][STATE] = h.to(p.device, self._network(p.device).h0.dtype, copy=True)

    def _states(self, state_dict: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
        """Each parameter that has a state in ``state_dict``, and that state."""
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        states = state_dict["state"]
        pairs = zip(saved, params, strict=False)  # PyTorch itself refuses other numbers of them
        return [(p, states[i][STATE]) for i, p in pairs if i in states]

    def __getstate__(self) -> dict[str, Any]:
        own = {"learned": self.learned, "_networks": self._networks, "_watch": self._watch}
        return {**super().__getstate__(), **own}

    def _network(self, device: torch.device) -> Network | Readable:
        if device not in self._networks:
            self._networks[device] = self._networks[torch.device("cpu")].to(device)
        return self._networks[device]

    def _advance(self, params: list[Tensor], lr: float) -> None:
        """One step of the ``params``, which have gradients and lie on one device."""
        network = self._network(params[0].device)
        sizes = [p.numel() for p in params]
        for p in params:
            if p.grad.is_sparse:
                raise UserError("gradients: sparse ones are not allowed (dense tensors)")
            if STATE not in self.state[p]:
                self.state[p][STATE] = network.h0.repeat(p.numel(), 1)
        h = torch.cat([self.state[p][STATE] for p in params])
        g = torch.cat([p.grad.reshape(-1).to(h.dtype) for p in params])
        h, updates = network(h, g)
        pieces = zip(params, h.split(sizes), (lr * updates).split(sizes), strict=True)
        for p, following, update in pieces:
            self.state[p][STATE] = following
            p.add_(update.view_as(p).to(p.dtype))


def _resolve(
    optimizer: str | Path | ComponentwiseRNN | Distilled, stage: str
) -> ComponentwiseRNN | Distilled:
    # Imported here and below: these bring JAX, which `import optdyn.torch` alone does not need.
    from optdyn.distillation import Distilled, from_values
    from optdyn.optimizers import ComponentwiseRNN
    from optdyn.pretrained import load_pretrained, pretrained_card

    if isinstance(optimizer, ComponentwiseRNN | Distilled):
        return optimizer
    if not isinstance(optimizer, str | Path):
        raise UserError(
            f"optimizer: {shown(optimizer)} is not allowed (a pretrained name, the path of a "
            "checkpoint, a ComponentwiseRNN, or a Distilled)"
        )
    found = load_pretrained(optimizer, stage)
    if isinstance(found, ComponentwiseRNN):
        return found
    numbers = pretrained_card(str(optimizer), stage).numbers
    assert numbers is not None  # a readable one's card holds them
    return from_values(numbers)


def _network_of(learned: ComponentwiseRNN | Distilled) -> Network | Readable:
    from optdyn.optimizers import ComponentwiseRNN
    from optdyn.torch._network import Network
    from optdyn.torch._readable import Readable

    return Network.of(learned) if isinstance(learned, ComponentwiseRNN) else Readable.of(learned)


def _watch(learned: ComponentwiseRNN | Distilled) -> OneWarning | None:
    from optdyn.optimizers import ComponentwiseRNN
    from optdyn.optimizers._gradient_range import OneWarning

    if not isinstance(learned, ComponentwiseRNN) or learned.trained_on is None:
        return None
    return OneWarning(learned.trained_on)


def _has_dense_gradient(p: Tensor) -> bool:
    return p.grad is not None and not p.grad.is_sparse and p.grad.numel() > 0


def _fingerprint(learned: ComponentwiseRNN | Distilled) -> str:
    from optdyn.runs._checkpoints import fingerprint

    return fingerprint(learned)
