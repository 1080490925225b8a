"""Strict settings for every test."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest

from optdyn.precision import double_precision


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
