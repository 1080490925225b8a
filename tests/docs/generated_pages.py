"""The script that makes the site's generated pages, as a module."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

SCRIPT = Path(__file__).parents[2] / "docs" / "pages_from_code.py"


def generated_pages() -> ModuleType:
    """The module docs/pages_from_code.py."""
    spec = importlib.util.spec_from_file_location("pages_from_code", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
