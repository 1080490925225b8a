"""Train a PyTorch model with a learned optimizer, beside AdamW: `pip install 'optdyn[torch]'`."""

from __future__ import annotations

import torch
from sklearn.datasets import make_moons

from optdyn.torch import LearnedOptimizer


def make_model() -> torch.nn.Module:
    """The same network at each call."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 32), torch.nn.Tanh(),
        torch.nn.Linear(32, 1),
    )  # fmt: skip


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Full-batch training on two moons; the loss before each step."""
    points, labels = make_moons(256, noise=0.1, random_state=0)
    inputs = torch.tensor(points, dtype=torch.float32)
    targets = torch.tensor(labels, dtype=torch.float32)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = model(inputs).squeeze(1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(outputs, targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(steps: int = 200) -> dict[str, list[float]]:
    """Train one model with each optimizer; returns the losses."""
    learned, model = make_model(), make_model()
    losses = {
        "learned": train(learned, LearnedOptimizer(learned.parameters(), "two_moons"), steps),
        "AdamW": train(model, torch.optim.AdamW(model.parameters(), lr=1e-2), steps),
    }
    for name, curve in losses.items():
        mean = sum(curve) / len(curve)
        print(f"{name:8s} loss {curve[-1]:.4f} after {steps} steps, {mean:.4f} on average")
    return losses


if __name__ == "__main__":
    main()
