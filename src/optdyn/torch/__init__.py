"""The learned optimizers for PyTorch, and PyTorch's optimizers as dynamical systems.

The extra ``optdyn[torch]``. The analyses are loaded when first used: they need JAX, which
training a PyTorch model does not.
"""

import importlib
from typing import Any

try:
    import torch  # noqa: F401
except ModuleNotFoundError:
    raise ImportError("optdyn.torch needs PyTorch (pip install 'optdyn[torch]')") from None

from optdyn.torch._learned_optimizer import LearnedOptimizer

_HOME = {
    "as_optax": "_analysis",
    "closed_loop": "_closed_loop",
    "dissect": "_analysis",
    "linearize": "_analysis",
}

__all__ = ["LearnedOptimizer", *_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'optdyn.torch' has no attribute {name!r}")
    return getattr(importlib.import_module(f"optdyn.torch.{_HOME[name]}"), name)
