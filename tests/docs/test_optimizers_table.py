"""The table of optimizers says what its script finds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

TABLE_SCRIPT = Path(__file__).parents[2] / "docs" / "make_optimizers_table.py"


def table_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_optimizers_table", TABLE_SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_optimizers_is_what_its_script_makes() -> None:
    script = table_script()
    written = (TABLE_SCRIPT.with_name("optimizers_table.md")).read_text(encoding="utf-8")
    exact = [
        code
        for code in script.COMPONENTWISE
        if any(word in code for word in ("nesterov", "optax.lion"))
    ]
    assert len(exact) == 2
    coupled = [code for code in script.COUPLED if "lars" in code or "muon" in code]
    for line in script.table(exact, coupled).splitlines():
        assert line in written.splitlines()
    assert len(script.COMPONENTWISE) >= 12
    for code in (*script.COMPONENTWISE, *script.COUPLED):
        assert f"\n| `{code}` |" in written
