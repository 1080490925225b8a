"""The learned optimizers for PyTorch, and PyTorch's optimizers as dynamical systems.

The extra ``optdyn[torch]``. Names are loaded when first used: the analyses need JAX, which
training a PyTorch model does not. The stub beside this file lists them.
"""

import lazy_loader

try:
    import torch  # noqa: F401
except ModuleNotFoundError:
    raise ImportError("optdyn.torch needs PyTorch (pip install 'optdyn[torch]')") from None

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
