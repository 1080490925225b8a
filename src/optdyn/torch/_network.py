"""The recurrent network of a learned optimizer, in PyTorch: every cell and encoding there is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from optdyn.errors import require_choice

if TYPE_CHECKING:
    from optdyn.optimizers import ComponentwiseRNN

Weights = dict[str, Tensor]


def _preactivation(weights: Weights, gate: str, h: Tensor, u: Tensor) -> Tensor:
    from_input = torch.addmm(weights[f"b_{gate}"], u, weights[f"V_{gate}"])
    return torch.addmm(from_input, h, weights[f"W_{gate}"])


def _gate(weights: Weights, gate: str, h: Tensor, u: Tensor) -> Tensor:
    return torch.sigmoid(_preactivation(weights, gate, h, u))


def _gru(weights: Weights, h: Tensor, u: Tensor) -> Tensor:
    z, r = (_gate(weights, gate, h, u) for gate in "zr")
    c = torch.tanh(_preactivation(weights, "c", r * h, u))
    return c + z * (h - c)


def _gru_reset_after(weights: Weights, h: Tensor, u: Tensor) -> Tensor:
    z, r = (_gate(weights, gate, h, u) for gate in "zr")
    from_input = torch.addmm(weights["b_c"], u, weights["V_c"])
    c = torch.tanh(from_input + r * (h @ weights["W_c"]))
    return c + z * (h - c)


def _lstm(weights: Weights, h: Tensor, u: Tensor) -> Tensor:
    output, memory = h.chunk(2, dim=1)
    i, f, o = (_gate(weights, gate, output, u) for gate in "ifo")
    memory = f * memory + i * torch.tanh(_preactivation(weights, "g", output, u))
    return torch.cat([o * torch.tanh(memory), memory], dim=1)


def _vanilla(weights: Weights, h: Tensor, u: Tensor) -> Tensor:
    return torch.tanh(_preactivation(weights, "h", h, u))


def _ugrnn(weights: Weights, h: Tensor, u: Tensor) -> Tensor:
    z = _gate(weights, "z", h, u)
    c = torch.tanh(_preactivation(weights, "c", h, u))
    return c + z * (h - c)


CELLS: dict[str, Callable[[Weights, Tensor, Tensor], Tensor]] = {
    "gru": _gru,
    "gru_reset_after": _gru_reset_after,
    "lstm": _lstm,
    "rnn": _vanilla,
    "ugrnn": _ugrnn,
}
"""``(weights, h [N, state], u [N, inputs]) -> h' [N, state]``, as `optdyn.optimizers.CELLS`."""

ENCODINGS: dict[str, Callable[[Tensor, float, float], list[Tensor]]] = {
    "linear": lambda g, gain, scale: [scale * gain * g],
    "log_sign": lambda g, gain, scale: [scale * torch.log1p(gain * g.abs()), g.sign()],
    "asinh": lambda g, gain, scale: [scale * torch.asinh(gain * g)],
}
"""``(g [N], gain, scale)`` to the network's inputs, as `optdyn.optimizers.Encoding` says."""


@dataclasses.dataclass(frozen=True)
class Network:
    """``h' = F(h, g)``, ``Δx = s·wᵀh'``: what every component shares, on one device.

    ``weights``, ``w`` [units] and ``h0`` [state] are the meta-parameters, of one dtype and
    device; the other fields are those of `optdyn.optimizers.Architecture`.
    """

    weights: Weights
    w: Tensor
    h0: Tensor
    cell: str
    encoding: str
    gain: float
    scale: float
    output_scale: float

    @classmethod
    def of(cls, rnn: ComponentwiseRNN) -> Network:
        """The network of the JAX optimizer ``rnn``, with its dtype, on the CPU."""
        architecture, encoding = rnn.architecture, rnn.architecture.encoding
        require_choice("cell, for PyTorch", architecture.cell_name, list(CELLS))
        return cls(
            weights={name: _tensor(array) for name, array in rnn.weights.items()},
            w=_tensor(rnn.w),
            h0=_tensor(rnn.h0),
            cell=architecture.cell_name,
            encoding=encoding.kind,
            gain=encoding.gain,
            scale=encoding.scale,
            output_scale=architecture.output_scale,
        )

    def to(self, target: torch.device | torch.dtype) -> Network:
        """The same network on another device, or in another dtype."""
        return dataclasses.replace(
            self,
            weights={name: tensor.to(target) for name, tensor in self.weights.items()},
            w=self.w.to(target),
            h0=self.h0.to(target),
        )

    def __call__(self, h: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """One step of N components: ``(h [N, state], g [N]) -> (h', Δx [N])``."""
        inputs = torch.stack(ENCODINGS[self.encoding](g, self.gain, self.scale), dim=1)
        following = CELLS[self.cell](self.weights, h, inputs)
        return following, self.output_scale * (following[:, : len(self.w)] @ self.w)


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array))
