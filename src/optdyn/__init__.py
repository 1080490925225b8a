"""Optimizers as dynamical systems.

Train learned optimizers, tune hand-designed ones fairly, and read both as
momentum with many timescales. Names are loaded when first used, so that
``import optdyn`` costs next to nothing and changes no setting of JAX; the stub
beside this file lists them, for this loader and for type checkers.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
