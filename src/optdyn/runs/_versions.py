"""What produced a result: versions of the software and the machine's devices."""

from __future__ import annotations

import importlib.metadata
import platform

PACKAGES = ("optdyn", "jax", "jaxlib", "optax", "numpy")


def versions() -> dict[str, str]:
    """Python's version and each package's (``"not installed"`` when run from a bare checkout)."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
