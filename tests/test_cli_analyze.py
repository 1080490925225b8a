"""``optdyn analyze TARGET``: any one optimizer, in words, in JSON and in figures."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import optdyn
from helpers import empty_pictures, random_rnn
from optdyn.cli._analyze import _in_short
from optdyn.cli._names import load_target
from optdyn.cli.main import main
from optdyn.meta_training import MetaTraining
from optdyn.runs._cards import Card
from optdyn.runs._checkpoints import save_optimizer

ZOO = """
import numpy as np
import optax

def momentum():
    return optax.sgd(0.1, momentum=0.9)

tuned = optax.adam(0.1, eps=1e-12)
decay = optax.add_decayed_weights(0.1, mask=lambda p: {"w": True, "b": False})
decayed = optax.chain(optax.trace(0.9), decay, optax.scale(-0.01))

def adam():
    return tuned  # one object: what was compiled for it serves a second command

def clipped():
    return optax.chain(optax.clip_by_global_norm(1.0), adam())

def lion():
    return optax.lion(0.01)

def mixing():
    return optax.stateless(lambda g, p: -0.1 * (g - g.mean()))

def masked():
    return decayed

def tree():
    return {"w": np.ones((3, 3), np.float32), "b": np.ones(3, np.float32)}

def three():
    return 3

def broken():
    raise KeyError("one\\ntwo")

def leaves():
    raise SystemExit(0)

def stubborn():
    def update(gradients, state, params=None):
        raise KeyError("no such thing")

    return optax.GradientTransformation(lambda params: (), update)

number = 3


pair = momentum()


class Made:
    pair = pair
    momentum = staticmethod(momentum)
"""


@pytest.fixture(autouse=True)
def zoo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A module of the user's own, in the current folder."""
    (tmp_path / "a_zoo.py").write_text(ZOO, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()


def checkpoint(path: Path) -> Path:
    rnn = random_rnn(units=3, scale=0.3)
    protocol = MetaTraining(num_meta_steps=1, unroll_length=20)
    card = Card("linear_regression", {"n": 3}, rnn.architecture, protocol, seed=0)
    save_optimizer(path, rnn, card)
    return path


def test_words_and_figures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with empty_pictures():
        assert main(["analyze", "a_zoo:momentum", "--out", str(out), "--task", "rosenbrock"]) == 0
    text = capsys.readouterr().out
    assert "linearised at the initial state, at zero gradient" in text
    assert re.search(r"\n +1 +0\.9 +0\.1 +9\.4912 +1\n", text)
    assert "learning rate 1 a step in all, 0 of it without memory\n" in text
    assert "stable up to curvature 38\n" in text
    assert "on the task's curvatures" in text
    assert "\nmomentum (alpha 0.1, beta 0.9): the same in every probe\n" in text
    names = {"optimizer"} | {
        f"optimizer_{kind}" for kind in ("modes", "impulse", "stability", "identification")
    }
    assert {path.stem for path in out.iterdir()} == names
    drawn = json.loads((out / "optimizer_impulse.json").read_text(encoding="utf-8"))
    assert drawn["linear"][:3] == [-0.1, -0.09, -0.081]
    summary = json.loads((out / "optimizer.json").read_text(encoding="utf-8"))
    assert summary["identification"]["nearest"] == "momentum"


def test_json_of_an_optimizer_without_a_response(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "a_zoo:lion", "--json", "--gradient-scale", "0.1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["optimizer"] == "a_zoo:lion"
    assert told["operating_point"].startswith("the stationary state of a constant gradient 0.1")
    assert told["weight_decay"] == pytest.approx(1e-5)
    fit = told["identification"]["fits"][0]
    assert fit["name"] == told["identification"]["nearest"] == "lion"
    assert fit["hyperparameters"]["beta2"] == pytest.approx(0.99, rel=1e-9)


def test_a_step_count_is_of_moments_and_bias_corrections(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["analyze", "a_zoo:adam", "--count", "10"]) == 0
    text = capsys.readouterr().out
    assert "linearised at the state after 10 gradients ±1, at zero gradient, counters at 10" in text
    second = 0.999 * (1 - 0.999**10) / (1 - 0.999**11)
    rate = 0.1 / (1 - 0.9**11) / second**0.5
    assert f"learning rate {rate:.4g} a step in all" in text
    assert "\nadam (alpha 0.1, beta1 0.9, beta2 0.999, " in text


def test_what_is_done_and_at_which_gradients_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["analyze", "a_zoo:clipped", "--gradient-scale", "50"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("taking a_zoo:clipped apart: ")
    assert lines[2].startswith("gradients of size 0.001, not 50, on which a clip by norm may act")


def test_a_callable_inside_a_class(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "a_zoo:Made.momentum", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stability"]["edge"] == pytest.approx(38.0)


def test_groups_of_a_tree_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["analyze", "a_zoo:masked", "--params", "a_zoo:tree"]
    assert main([*argv, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    groups = told["groups"]
    assert told["coupled"] == []
    assert [group["leaves"] for group in groups] == [["w"], ["b"]]
    assert [group["weight_decay"] for group in groups] == pytest.approx([1e-3, 0.0], abs=1e-12)
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "taking a_zoo:masked apart: " in text
    assert "optimizer: a_zoo:masked\ngradients of size 1\n" in text
    assert re.search(r"\nw: .*decay 0\.001 a step\n", text)
    assert "\nb: momentum" in text


def test_groups_are_read_at_gradients_of_the_size_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["analyze", "a_zoo:adam", "--params", "a_zoo:tree", "--gradient-scale", "0.01"]
    assert main([*argv, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (group,) = told["groups"]
    assert told["gradient_scale"] == group["gradient_scale"] == 0.01
    # Rate 0.1 over the root of the second moment; the step itself decays that by 0.999.
    alpha = sum(mode["alpha"][0] for mode in group["modes"])
    assert alpha == pytest.approx(0.1 * 0.1 / (0.01 * 0.999**0.5), rel=1e-3)
    assert main(argv) == 0
    assert "\ngradients of size 0.01\n" in capsys.readouterr().out


def test_a_leaf_of_a_tree_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["analyze", "a_zoo:masked", "--params", "a_zoo:tree", "--leaf", "w", "--index", "1,2"]
    assert main([*argv, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["weight_decay"] == pytest.approx(1e-3, abs=1e-12)
    assert told["modes"][0]["beta"] == pytest.approx([0.9, 0.0])


def test_a_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "step-000001.safetensors")
    assert main(["analyze", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["operating_point"].startswith("the fixed point at zero gradient that the task's")
    assert told["residual"] < 1e-9
    assert told["state"] == ["h[0]", "h[1]", "h[2]"]
    assert [mode["gain"] for mode in told["modes"]] == sorted(
        (mode["gain"] for mode in told["modes"]), reverse=True
    )
    assert told["stability"]["range_given"]
    assert 9e-4 < told["stability"]["low"] < told["stability"]["high"] < 1.001
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".py" and p.is_file()] == [path.name]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("nothing_like_that", "target: 'nothing_like_that' is not known (a checkpoint file, a"),
        ("x" * 5000, "target: 'xxxx"),
        ("absent.safetensors", "absent.safetensors: cannot read (No such file"),
        ("a_zoo.py", "a_zoo.py: damaged, or not written by optdyn"),
        ("a_zoo:absent", "target: a_zoo:absent: AttributeError: module 'a_zoo' has no"),
        ("a_zoo:number", "target: a_zoo:number: is 3 (an optax.GradientTransformation, or a func"),
        ("a_zoo:three", "target: a_zoo:three: returned int (an optax.GradientTransformation, or"),
        ("a_zoo:broken", "target: a_zoo:broken: KeyError:"),
        ("a_zoo:leaves", "target: a_zoo:leaves: SystemExit: 0"),
        ("a_zoo:stubborn", "optimizer: cannot be run on an array of parameters: 'no such thing'"),
        ("a_zoo:", "target: a_zoo::"),
        ("optax:adam", "target: optax:adam: needs learning_rate (write a function without arg"),
        (":momentum", "target: :momentum: ValueError: Empty module name"),
        ("absent_module:x", "target: absent_module:x: ModuleNotFoundError"),
        ("a_zoo:mixing", "optimizer: not component-wise"),
    ],
)
def test_bad_targets_are_one_line(
    capsys: pytest.CaptureFixture[str], target: str, expected: str
) -> None:
    assert main(["analyze", target]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"optdyn: error: [^\n]+\n", captured.err)
    assert captured.err.removeprefix("optdyn: error: ").startswith(expected)
    assert len(captured.err) < 600


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--count", "-1"], "--count: -1 is not allowed (an integer >= 0)"),
        (["--gradient-scale", "0"], "--gradient-scale: 0.0 is not allowed (a finite number > 0)"),
        (["--task", "chess"], "--task: unknown value 'chess'"),
        (["--params", "a_zoo:absent"], "--params: a_zoo:absent: AttributeError"),
        (["--leaf", "w"], "--leaf, --index: need --params"),
        (["--params", "a_zoo:tree", "--leaf", "x"], "leaf: 'x' is not in params (allowed: b, w)"),
        (["--params", "a_zoo:tree", "--index", "1,x"], "--index: 'x' is not allowed"),
        (["--stage", "best"], "--stage: unknown value 'best' (allowed: final, momentum, "),
        (["--out", "a_zoo.py"], "a_zoo.py: cannot make the folder"),
        (["--units", "3"], "Unknown option: --units."),
        (["--problems", "3"], "--problems: is not allowed with a TARGET (leave TARGET out"),
    ],
)
def test_bad_options(capsys: pytest.CaptureFixture[str], options: list[str], expected: str) -> None:
    assert main(["analyze", "a_zoo:momentum", *options]) == 2
    assert capsys.readouterr().err.removeprefix("optdyn: error: ").startswith(expected)


def test_options_of_one_optimizer_need_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "--count", "3"]) == 2
    assert "--count: needs a TARGET" in capsys.readouterr().err


def test_a_stored_optimizer_counts_no_steps(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = checkpoint(tmp_path / "step-000001.safetensors")
    assert main(["analyze", str(path), "--count", "3"]) == 2
    assert "--count: a learned optimizer counts no steps" in capsys.readouterr().err


def test_an_optimizer_is_taken_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "a_zoo:Made.pair", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stability"]["edge"] == pytest.approx(38.0)


def test_a_readable_optimizer_is_a_target_with_the_task_of_the_learned_one() -> None:
    target = load_target("digits", "readable")
    assert target.name == "digits (readable)"
    assert target.card is not None
    assert target.card.task == "digits"
    given = jnp.asarray([0.01, -0.02])
    updates = []
    for tx in (target.optimizer, optdyn.load_pretrained("digits", "readable")):
        updates.append(tx.update(given, tx.init(given), given)[0])
    np.testing.assert_array_equal(*updates)


@pytest.mark.parametrize(
    ("fresh", "own", "training", "called"),
    [
        ((0.0612, 0.06), (1.0, 0.06), "", "momentum stage"),
        (
            (1.232, 0.0681), (1.232, 0.06), "",
            "nearest checkpoint to momentum (1709 % off on fresh problems)",
        ),
        ((0.06, 0.06), (0.12, 0.06), "seed 3", "nearest checkpoint to momentum (100 % off)"),
        ((np.inf, 0.06), (0.06, 0.06), "", "nearest checkpoint to momentum (diverged)"),
    ],
)  # fmt: skip
def test_a_checkpoint_far_from_momentum_is_not_called_its_stage(
    fresh: tuple[float, float], own: tuple[float, float], training: str, called: str
) -> None:
    """``fresh``, ``own``: meta-objectives of the checkpoint and of tuned momentum."""

    def row(objective: float, meta_step: int = 10) -> SimpleNamespace:
        modes = SimpleNamespace(degenerate=False)
        return SimpleNamespace(
            meta_step=meta_step, meta_objective=objective, alpha=0.1, beta=0.9, modes=modes
        )

    rows = {10: row(own[0]), 20: row(0.05, 20)}
    analysis: Any = SimpleNamespace(
        tuned=SimpleNamespace(alpha=0.1, beta=0.9, meta_objective=own[1]),
        judged=SimpleNamespace(training=training, tuned=SimpleNamespace(meta_objective=fresh[1])),
        stage=row(fresh[0]),
        momentum_stage=10,
        final=20,
        checkpoints=list(rows.values()),
        row=rows.get,
    )
    lines = _in_short(analysis)
    assert lines[1].startswith(f"{called}: meta-step 10, meta-objective {own[0]:.4g};")
    assert lines[2].startswith("final: meta-step 20, meta-objective 0.05;")
