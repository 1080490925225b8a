"""A readable optimizer in PyTorch: every part that there is, for N components at once."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from optdyn.distillation import Distilled
from optdyn.distillation._parts import SMALLEST_SQUARE

Numbers = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Readable:
    """What every component of a `Distilled` shares, on one device.

    ``parts``: the parts present by name, each as its numbers by name, free of bounds as
    `Distilled` holds them; of one dtype and device.
    """

    parts: dict[str, Numbers]

    @classmethod
    def of(cls, distilled: Distilled) -> Readable:
        """The parts of ``distilled``, with their dtype, on the CPU."""
        return cls(
            {
                name: {
                    field.name: torch.from_numpy(np.array(getattr(part, field.name)))
                    for field in dataclasses.fields(part)
                }
                for name, part in distilled.parts().items()
            }
        )

    def to(self, target: torch.device | torch.dtype) -> Readable:
        """The same on another device, or in another dtype."""
        return Readable(
            {
                name: {key: number.to(target) for key, number in part.items()}
                for name, part in self.parts.items()
            }
        )

    @property
    def h0(self) -> Tensor:
        """A component's first state, in the order of the leaves of the optax pair's.

        Second moment and its weight; a velocity for each momentum; ρ^k for each decay of the
        schedule.
        """
        rate = self.parts["momenta"]["log_rate"]
        return torch.cat([rate.new_full((n,), start) for n, start in self._memory().values()])

    def _memory(self) -> dict[str, tuple[int, float]]:
        """How many numbers each part remembers, and what they start with."""
        sizes = {
            "adaptive": (2, 0.0),
            "momenta": (len(self.parts["momenta"]["share"]), 0.0),
            "schedule": (len(self.parts.get("schedule", {}).get("amplitude", ())), 1.0),
        }
        return {name: size for name, size in sizes.items() if name in self.parts}

    def __call__(self, h: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """One step of N components: ``(h [N, state], g [N]) -> (h', Δx [N])``."""
        sizes = [size for size, _ in self._memory().values()]
        memory = dict(zip(self._memory(), h.split(sizes, dim=1), strict=True))
        passed = g
        if "adaptive" in self.parts:
            passed, memory["adaptive"] = _scaled(self.parts["adaptive"], g, memory["adaptive"])
        if "saturation" in self.parts:
            passed = passed / (1.0 + _excess(self.parts["saturation"], passed))
        momenta = self.parts["momenta"]
        alpha, beta = momenta["log_rate"].exp() * momenta["share"], momenta["beta_logit"].sigmoid()
        if "forgetting" in self.parts:
            beta = beta / (1.0 + _excess(self.parts["forgetting"], g))[:, None]
        memory["momenta"] = beta * memory["momenta"] + alpha * passed[:, None]
        update = -memory["momenta"].sum(dim=1)
        if "schedule" in self.parts:
            schedule, left = self.parts["schedule"], memory["schedule"]
            update = update * (schedule["amplitude"] * left).sum(dim=1).exp()
            memory["schedule"] = left * schedule["decay_logit"].sigmoid()
        return torch.cat(list(memory.values()), dim=1), update


def _scaled(part: Numbers, g: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """`optdyn.distillation.AdaptiveScaling`: ``(g [N], memory [N, 2]) -> (scaled, memory')``."""
    gamma, rest = part["gamma_logit"].sigmoid(), (-part["gamma_logit"]).sigmoid()
    memory = gamma * memory + rest * torch.stack([g.square(), torch.ones_like(g)], dim=1)
    second, weight = memory.unbind(dim=1)
    power, epsilon = part["power_logit"].sigmoid(), part["log_epsilon"].exp()
    return g / (second / weight + epsilon) ** (power / 2), memory


def _excess(part: Numbers, g: Tensor) -> Tensor:
    """``|g/c|^p`` of a part with a threshold c and a power p."""
    scaled, power = g / part["log_threshold"].exp(), part["power_logit"].sigmoid()
    return (scaled.square() + SMALLEST_SQUARE) ** (power / 2)
