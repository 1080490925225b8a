"""Strict settings for every test."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path

# Tests run small programs once: compiling them is most of their time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import hypothesis
import jax
import pytest

from helpers import TINY_RECIPES
from optdyn.precision import double_precision

# A machine that is busy is no fault of the code.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.fixture(autouse=True)
def strict_rank_promotion() -> Iterator[None]:
    """Adding a vector to a matrix by accident raises."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 throughout the test."""
    with double_precision():
        yield


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished study of `TINY_RECIPES`; not to be written to."""
    out = tmp_path_factory.mktemp("study") / "run"
    module = importlib.import_module("optdyn.study.reproduce")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LAPTOP", TINY_RECIPES)
        patch.setattr(module, "recipe_for", lambda task, scale: TINY_RECIPES[task])
        patch.setattr(module, "shipped_stages", dict)
        patch.setattr(module, "place_searches", lambda run, task: None)
        module.reproduce(out, "all", "smoke", 0, False)
    return out
