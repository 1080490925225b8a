"""The code that the README shows runs, and says what it claims."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

TABLE_SCRIPT = Path(__file__).parents[1] / "docs" / "make_optimizers_table.py"
README = Path(__file__).parents[1] / "README.md"


def test_every_python_block_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    # A user's session is not strict about rank promotion.
    import jax

    with jax.numpy_rank_promotion("allow"):
        exec("\n".join(blocks), {"__name__": "readme"})
    assert capsys.readouterr().out.startswith("[0.75] [0.5] 0.0\n")


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
    coupled = [code for code in script.COUPLED if "global_norm" in code or "muon" in code]
    for line in script.table(exact, coupled).splitlines():
        assert line in written.splitlines()
    assert len(script.COMPONENTWISE) >= 12
    for code in (*script.COMPONENTWISE, *script.COUPLED):
        assert f"\n| `{code}` |" in written
