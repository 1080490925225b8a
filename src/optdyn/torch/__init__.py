"""The learned optimizers for PyTorch (the extra ``optdyn[torch]``)."""

try:
    import torch  # noqa: F401
except ModuleNotFoundError:
    raise ImportError("optdyn.torch needs PyTorch (pip install 'optdyn[torch]')") from None

from optdyn.torch._learned_optimizer import LearnedOptimizer

__all__ = ["LearnedOptimizer"]
