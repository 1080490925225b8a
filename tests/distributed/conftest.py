"""How much of the distributed suite is run, and its figures at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

FULL = os.environ.get("DISTRIBUTED") == "full"
FIGURES: dict[str, object] = {}


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether the whole suite is asked for (``make test-distributed``), not a small part of it."""
    return FULL


@pytest.fixture(scope="session")
def figures() -> dict[str, object]:
    """What was done and found, by name: printed when the tests are over."""
    return FIGURES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES:
        terminalreporter.section(f"distributed, {'all of it' if FULL else 'a small part of it'}")
    for name, figure in FIGURES.items():
        terminalreporter.write_line(f"{name}: {figure}")


@pytest.fixture(autouse=True)
def no_compilation_cache() -> Iterator[None]:
    """Tests leave the user's cache alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")
        yield
