"""Learned optimizers and search tables that ship with the package."""

from optdyn.pretrained._card import PretrainedCard
from optdyn.pretrained._export import export_checkpoint, export_task
from optdyn.pretrained._shipped import (
    PRETRAINED,
    Shipped,
    load_pretrained,
    load_shipped,
    other_trainings,
    pretrained_card,
    shipped_stages,
)

__all__ = [
    "PRETRAINED",
    "PretrainedCard",
    "Shipped",
    "export_checkpoint",
    "export_task",
    "load_pretrained",
    "load_shipped",
    "other_trainings",
    "pretrained_card",
    "shipped_stages",
]
