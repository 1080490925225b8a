"""Optimizers as dynamical systems.

Train learned optimizers, tune hand-designed ones fairly, and read both as
momentum with many timescales. Names are loaded when first used, so that
``import optdyn`` costs next to nothing and changes no setting of JAX.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Architecture": "optimizers",
    "ComponentwiseRNN": "optimizers",
    "Encoding": "optimizers",
    "MetaTraining": "meta_training",
    "PRETRAINED": "pretrained",
    "Problem": "tasks",
    "Task": "tasks",
    "UserError": "errors",
    "closed_loop_radius": "dynamics",
    "dissect": "dynamics",
    "eigenmodes": "dynamics",
    "evaluate": "evaluation",
    "find_fixed_points": "dynamics",
    "identify": "dynamics",
    "linearize": "dynamics",
    "load": "runs",
    "load_pretrained": "pretrained",
    "make_task": "tasks",
    "meta_loss": "inner_loop",
    "meta_train": "runs",
    "meta_value_and_grad": "meta_training",
    "optimal_momentum": "dynamics",
    "paired_difference": "evaluation",
    "pretrained_card": "pretrained",
    "random_search": "search",
    "reduce": "dynamics",
    "sample_batch": "tasks",
    "save": "runs",
    "settle": "dynamics",
    "stability_map": "dynamics",
    "unroll": "inner_loop",
}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'optdyn' has no attribute {name!r}")
    return getattr(importlib.import_module(f"optdyn.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
