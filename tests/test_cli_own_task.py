"""A task of the user's own through the commands, from training to a readable optimizer."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from optdyn.cli.main import main
from optdyn.meta_training import MetaTraining
from optdyn.optimizers import Architecture, ComponentwiseRNN
from optdyn.runs import meta_train
from optdyn.tasks import task_from

MODULE, TASK = "a_valley_of_mine", "a_valley_of_mine:Valley"
SOURCE = """
import dataclasses, jax, jax.numpy as jnp, optdyn

@dataclasses.dataclass(frozen=True)
class Valley:
    steep: float = 1.0

    def sample(self, key):
        curvatures = self.steep * jnp.array([0.1, 0.5, 1.0])
        return optdyn.Problem(
            jax.random.normal(key, (3,)), lambda x: 0.5 * jnp.sum(curvatures * x**2)
        )
"""


@pytest.fixture(autouse=True)
def valley(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The task's module, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"{MODULE}.py").write_text(SOURCE, encoding="utf-8")
    importlib.invalidate_caches()
    yield
    sys.modules.pop(MODULE, None)


def test_a_readable_optimizer_is_fitted(capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--out", "run", "--devices", "1"]
    training = ["--units", "3", "--meta-steps", "3", "--unroll-length", "8", "--batch-size", "2"]
    assert main(["train", "--task", TASK, "--task-option", "steep=0.5", *training, *run]) == 0
    few = ["--problems", "2", "--rescore-top", "3", "--rescore-problems", "2"]
    assert main(["tune", "--samples", "40", *few, *run]) == 0
    assert main(["evaluate", "--problems", "4", *run]) == 0
    capsys.readouterr()
    assert main(["distill", "--scale", "smoke", "--json", *run]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == TASK
    summary = json.loads(Path("run", f"{MODULE}.Valley", "distillation.json").read_text())
    assert summary["inputs"]["task_options"] == {"steep": 0.5}
    assert summary["inputs"]["judged"]["objective"]["num_steps"] == 8

    assert main(["distill", "--scale", "smoke", *run]) == 0
    told = r"the learned optimizer \(.*\) has no advantage over momentum \(.*\), so that no size"
    assert re.search(told, capsys.readouterr().out)

    # An evaluation by another objective leaves nothing beside it that was judged by this one.
    assert main(["evaluate", "--unroll-length", "4", *run]) == 0
    assert "with objective.num_steps = 4; the results of 8 are now in " in capsys.readouterr().out
    folder = Path("run", f"{MODULE}.Valley")
    assert json.loads((folder / "losses_at_steps.json").read_text())["steps"] == [0, 4]
    assert not (folder / "distillation.json").exists()
    assert main(["distill", "--scale", "smoke", *run]) == 2
    assert "was evaluated with objective.num_steps = 4, not 8" in capsys.readouterr().err


def test_a_training_that_python_began_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """Its first meta-parameters come from no seed of the command line."""
    rnn = ComponentwiseRNN.init(jax.random.key(7), Architecture(units=3))
    protocol = MetaTraining(num_meta_steps=2, unroll_length=5, batch_size=2)
    meta_train(task_from(TASK), rnn, protocol, seed=0, out="run", progress=False)
    assert main(["train", "--out", "run", "--meta-steps", "3", "--devices", "1"]) == 0
    assert "going on from meta-step 2" in capsys.readouterr().out
