"""Gradients, and what an optimizer in JAX and one in PyTorch make of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

SHAPES = [(3, 2), (), (4,)]
STEPS = 200


def gradients(steps: int = STEPS) -> list[list[np.ndarray]]:
    """Of every size from 1e-4 to 10, some of them exactly zero."""
    rng = np.random.default_rng(0)
    scales = 10.0 ** rng.uniform(-4, 1, steps)
    drawn = [[s * rng.standard_normal(shape) for shape in SHAPES] for s in scales]
    return [[g * (k % 5 > 0) for g in step] for k, step in enumerate(drawn)]


def in_jax(tx: Any, history: list[list[np.ndarray]], dtype: str) -> list[np.ndarray]:
    """Parameters that begin at 1, after the optax pair ``tx`` met the gradients of ``history``."""
    params = [jnp.ones(shape, dtype) for shape in SHAPES]
    update, state = jax.jit(tx.update), tx.init(params)
    for step in history:
        updates, state = update([jnp.asarray(g, dtype) for g in step], state)
        params = [p + u for p, u in zip(params, updates, strict=True)]
    return [np.asarray(p) for p in params]


def run(
    optimizer: torch.optim.Optimizer, params: list[torch.Tensor], history: list[list[np.ndarray]]
) -> list[np.ndarray]:
    """The same for an optimizer of PyTorch, from where ``params`` are."""
    for step in history:
        for p, g in zip(params, step, strict=True):
            p.grad = torch.as_tensor(g, dtype=p.dtype, device=p.device)
        optimizer.step()
    return [p.detach().to("cpu", copy=True).numpy() for p in params]


def ones(dtype: torch.dtype, device: str = "cpu") -> list[torch.Tensor]:
    return [torch.ones(shape, dtype=dtype, device=device) for shape in SHAPES]
