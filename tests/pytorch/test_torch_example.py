"""The example for PyTorch runs, at a tiny size."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "torch_model.py"


def test_a_pytorch_model_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    losses = runpy.run_path(str(EXAMPLE))["main"](steps=10)
    assert all(curve[-1] < 0.8 * curve[0] for curve in losses.values())
    assert capsys.readouterr().out.count("after 10 steps") == 2
