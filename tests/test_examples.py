"""The examples run, at tiny sizes."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import pytest

import optdyn

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def users_settings() -> Iterator[None]:
    """A user's session is not strict about rank promotion."""
    with jax.numpy_rank_promotion("allow"):
        yield


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["flax_nnx", "equinox_mlp"])
def test_a_network_of_each_library_is_trained(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = example(name).main(steps=8)
    assert losses[-1] < 0.8 * losses[0]
    assert capsys.readouterr().out.endswith("after 8 steps\n")


def test_the_comparison_on_digits_tells_who_is_better(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = example("digits_comparison")
    monkeypatch.setattr(optdyn, "PRETRAINED", {"two_moons": ("final",)}, raising=False)
    monkeypatch.setattr(module, "LEAST_ACCURACY", 0.0)
    monkeypatch.setattr(module, "LEARNING_RATES", (1e-12, 1e-2))
    first, _, batches, *_ = module.settings(4)
    monkeypatch.setattr(module, "settings", lambda steps: [first, batches])
    table = module.main(["--steps", "4", "--starts", "1"])
    assert list(table) == [first.name, batches.name]
    assert all(set(rows) == {"Adam", "two_moons"} for rows in table.values())
    told = capsys.readouterr().out
    assert told.count("Adam(0.01)") == len(table)
    for rows in table.values():
        mean, end, accuracy = rows["Adam"]
        assert end < mean
        assert 0.0 <= accuracy <= 1.0
    better = [name for name, rows in table.items() if rows["two_moons"][0] < rows["Adam"][0]]
    assert f"tuned Adam:\n  two_moons            {', '.join(better) or 'nowhere'}\n" in told


def test_trainings_are_looked_into(capsys: pytest.CaptureFixture[str]) -> None:
    (history,) = example("look_into_training").main((0.02,), steps=4, every=2)
    assert [row["step"] for row in history] == [2, 4]
    assert history[0]["decay/w1"] > 0.0 == history[0]["decay/b1"]
    assert capsys.readouterr().out.startswith("peak learning rate 0.02")


@pytest.mark.parametrize("name", ["lens_flax", "lens_equinox"])
def test_networks_of_each_library_are_looked_into(name: str) -> None:
    history = example(name).main(steps=4, every=2)
    for row in history:
        decays = [value for key, value in row.items() if key.startswith("decay/")]
        # The learning rate after k steps of a warm-up to 0.1 in 20 steps, times 1e-3.
        assert decays == pytest.approx([1e-4 * row["step"] / 20] * 4, rel=1e-3)
        assert row["sharpness_edge"] == pytest.approx(3.8, rel=1e-3)
    assert history[-1]["loss"] < history[0]["loss"]


def test_sharpness_stands_beside_its_edge(capsys: pytest.CaptureFixture[str]) -> None:
    histories = example("edge_of_stability").main(steps=20, every=10)
    edges = {name: rows[-1]["sharpness_edge"] for name, rows in histories.items()}
    assert edges["gradient descent"] == pytest.approx(2.0, rel=1e-4)
    assert edges["adam"] == pytest.approx(3.8, rel=1e-4)
    assert capsys.readouterr().out.count("over its edge") == 2
