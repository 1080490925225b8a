"""The same meta-step in PyTorch, written plainly; prints one line of JSON.

One joint problem a batch, `autograd.grad(create_graph=True)` for the inner
gradients, `torch.nn.GRUCell` and Adam. (Its GRU applies the reset gate after the
matrix product, ours before it; the number of operations is the same.)
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.sampling import peak_bytes, sample_seconds
from benchmarks.settings import PARAMETERS, POINTS, Setting, memory, told

ARRAYS_PER_STEP = 12
"""Arrays of the state's size that the graph keeps for each inner step."""
SIZES = (2, 64, 64, 64, 1)


def main(setting: Setting, samples: int) -> None:
    components = setting.batch * PARAMETERS[setting.task]
    needed = 4 * ARRAYS_PER_STEP * setting.steps * components * setting.units
    if needed > 0.6 * memory():
        sys.exit(f"needs about {needed / 2**30:.0f} GiB of memory")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    cell = torch.nn.GRUCell(1, setting.units)
    readout = torch.zeros(setting.units, requires_grad=True)
    adam = torch.optim.Adam([*cell.parameters(), readout], lr=1e-3)

    def meta_step() -> None:
        x, loss = sample(setting.task, setting.batch)
        x.requires_grad_()
        h = torch.zeros(components, setting.units)
        losses = [loss(x)]
        for _ in range(setting.steps):
            (g,) = torch.autograd.grad(losses[-1].sum(), x, create_graph=True)
            h = cell(torch.asinh(g).reshape(-1, 1), h)
            x = x + 0.1 * (h @ readout).reshape(x.shape)
            losses.append(loss(x))
        each = torch.stack(losses[1:]).mean(0) / losses[0].detach()
        adam.zero_grad()
        each.mean().backward()
        adam.step()

    meta_step()
    seconds = sample_seconds(meta_step, samples)
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}))


def sample(task: str, batch: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Starting points [batch, n] and the losses [batch] as a function of such an array."""
    if task == "linear_regression":
        A, b = torch.randn(batch, 5, 5) / 5**0.5, torch.randn(batch, 5)
        return torch.randn(
            batch, 5
        ), lambda x: 0.5 * ((torch.einsum("bij,bj->bi", A, x) - b).square().sum(1))
    if task == "rosenbrock":
        start = torch.rand(batch, 2) * 4.0 - torch.tensor([2.0, 1.0])
        return start, lambda x: (1 - x[:, 0]) ** 2 + 100 * (x[:, 1] - x[:, 0] ** 2) ** 2
    features = torch.randn(POINTS, SIZES[0])
    labels = (features[:, 0] > 0).float()
    start = 0.1 * torch.randn(batch, PARAMETERS[task])

    def network_loss(x: Tensor) -> Tensor:
        hidden, offset = features.expand(batch, -1, -1), 0
        for fan_in, fan_out in itertools.pairwise(SIZES):
            weight = x[:, offset : offset + fan_in * fan_out].reshape(batch, fan_in, fan_out)
            offset += fan_in * fan_out
            hidden = torch.baddbmm(x[:, None, offset : offset + fan_out], hidden, weight)
            offset += fan_out
            hidden = torch.tanh(hidden) if fan_out > 1 else hidden
        logits = hidden[:, :, 0]
        logistic = torch.nn.functional.softplus(logits) - labels * logits
        return logistic.mean(1) + 5e-3 * x.norm(dim=1)

    return start, network_loss


if __name__ == "__main__":
    main(*told())
