"""The code that the README shows runs, and says what it claims."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_every_python_block_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    # A user's session is not strict about rank promotion.
    import jax

    with jax.numpy_rank_promotion("allow"):
        exec("\n".join(blocks), {"__name__": "readme"})
    assert capsys.readouterr().out.startswith("[0.75] [0.5] 0.0\n")
