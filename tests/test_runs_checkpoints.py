"""A checkpoint gives back exactly what was saved, or a one-line refusal."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from optdyn.errors import UserError
from optdyn.meta_training._trainer import MetaTraining, TrainingState, start_training
from optdyn.optimizers._cells import CELLS
from optdyn.optimizers._componentwise_rnn import Architecture, ComponentwiseRNN
from optdyn.optimizers._encodings import Encoding
from optdyn.runs import _checkpoints as checkpoints
from optdyn.runs import _store as files
from optdyn.runs._cards import Card

PROTOCOL = MetaTraining(num_meta_steps=10)


def make(cell: str = "gru", units: int = 4, meta_step: int = 7) -> tuple[TrainingState, Card]:
    encoding = Encoding(kind="log_sign", gain=3.0)
    architecture = Architecture(cell=cell, units=units, encoding=encoding)
    optimizer = ComponentwiseRNN.init(jax.random.key(0), architecture)
    state = start_training(optimizer, PROTOCOL)
    leaves, structure = jax.tree.flatten(state)
    rng = np.random.default_rng(1)
    filled = [jnp.asarray(rng.normal(size=leaf.shape) * 100, leaf.dtype) for leaf in leaves]
    state = jax.tree.unflatten(structure, filled)
    state = dataclasses.replace(state, meta_step=jnp.asarray(meta_step, jnp.int32))
    card = Card("linear_regression", {"n": 3}, architecture, PROTOCOL, seed=2, meta_step=meta_step)
    return state, card


def assert_same_bits(a: object, b: object) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("cell", CELLS)
def test_round_trip_to_the_bit(tmp_path: Path, cell: str) -> None:
    state, card = make(cell)
    checkpoints.save_state(tmp_path / "a", state, card)
    checkpoints.save_optimizer(tmp_path / "b", state.optimizer, card)
    loaded, loaded_card = checkpoints.load_state(tmp_path / "a")
    assert_same_bits(loaded, state)
    assert loaded_card == card
    for name in "ab":
        optimizer, _ = checkpoints.load_optimizer(tmp_path / name)
        assert_same_bits(optimizer, state.optimizer)


def test_the_same_content_makes_the_same_file(tmp_path: Path) -> None:
    state, card = make()
    for name in "ab":
        checkpoints.save_state(tmp_path / name, state, card)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_no_damage_goes_unnoticed(tmp_path: Path) -> None:
    state, card = make()
    path = tmp_path / "a"
    checkpoints.save_state(path, state, card)
    content = path.read_bytes()
    rng = random.Random(0)
    damaged = [content[: rng.randrange(len(content))] for _ in range(60)]
    for offset in itertools.chain(range(0, 40), rng.choices(range(len(content)), k=400)):
        flipped = bytearray(content)
        flipped[offset] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    damaged += [content + b"\0", b"", b"{}", content[8:]]
    for variant in damaged:
        path.write_bytes(variant)
        with pytest.raises(UserError) as caught:
            checkpoints.load_state(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save_file({"w": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match="damaged"):
        checkpoints.load_optimizer(path)
    files.write_bytes(path, files.arrays_bytes({"w": np.zeros(3, np.float32)}, {"format": "x"}))
    with pytest.raises(UserError, match="missing required field"):
        checkpoints.load_optimizer(path)
    state, card = make()
    other = {"format": "another format", "architecture": card.architecture, "card": card}
    files.write_bytes(path, files.arrays_bytes(checkpoints._named_arrays(state), other))
    with pytest.raises(UserError, match="format 'another format' is unknown"):
        checkpoints.load_optimizer(path)
    with pytest.raises(UserError, match=str(tmp_path)):
        checkpoints.load_optimizer(tmp_path)
    with pytest.raises(UserError, match="No such file"):
        checkpoints.load_optimizer(tmp_path / "absent")


def test_arrays_must_fit_the_card(tmp_path: Path) -> None:
    state, card = make(units=4)
    path = tmp_path / "a"
    larger = dataclasses.replace(card, architecture=Architecture(units=10**9))
    checkpoints.save_optimizer(path, state.optimizer, larger)
    with pytest.raises(UserError, match=r"has shape .*, its card's architecture needs"):
        checkpoints.load_optimizer(path)
    other = dataclasses.replace(card, architecture=Architecture(cell="rnn", units=4))
    checkpoints.save_optimizer(path, state.optimizer, other)
    with pytest.raises(UserError, match=r"array optimizer\.weights"):
        checkpoints.load_optimizer(path)
    narrower = dataclasses.replace(card, architecture=Architecture(units=4))
    checkpoints.save_optimizer(path, state.optimizer, narrower)
    with pytest.raises(UserError, match=r"V_c has shape \(2, 4\).*needs \(1, 4\)"):
        checkpoints.load_optimizer(path)
    checkpoints.save_optimizer(path, state.optimizer, card)
    with pytest.raises(UserError, match="is missing"):
        checkpoints.load_state(path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_whichever_call_fails_an_intact_checkpoint_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    state, card = make(meta_step=7)
    checkpoints.save_state(checkpoints.resume_path(tmp_path, 7), state, card)
    later, later_card = make(meta_step=8)
    failures = 0
    for failing in itertools.count():
        countdown = itertools.count(-failing)

        def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any) -> Any:
                if next(countdown) == 0:  # noqa: B023
                    raise OSError(code, os.strerror(code))
                return call(*arguments)

            return run

        with monkeypatch.context() as patch:
            for call in ("open", "write", "fsync", "replace"):
                patch.setattr(files.os, call, guarded(getattr(os, call)))
            try:
                checkpoints.save_state(checkpoints.resume_path(tmp_path, 8), later, later_card)
                break
            except UserError:
                failures += 1
        found, notes = checkpoints.newest_state(tmp_path, card)
        assert notes == []
        assert_same_bits(found, state if int(found.meta_step) == 7 else later)
    assert failures == 6  # open, write, fsync, replace; open and fsync of the folder


def test_the_newest_intact_state_is_found(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        state, card = make(meta_step=step)
        checkpoints.save_state(checkpoints.resume_path(tmp_path, step), state, card)
    checkpoints.resume_path(tmp_path, 3).write_bytes(b"torn")
    found, notes = checkpoints.newest_state(tmp_path, card)
    assert found is not None
    assert int(found.meta_step) == 2
    assert len(notes) == 1
    assert "resume-000003" in notes[0]


def test_a_checkpoint_of_another_run_stops(tmp_path: Path) -> None:
    state, card = make(units=4)
    checkpoints.save_state(checkpoints.resume_path(tmp_path, 7), state, card)
    _, other = make(units=8)
    with pytest.raises(UserError, match=r"4 units.*8 units"):
        checkpoints.newest_state(tmp_path, other)
    with pytest.raises(UserError, match=r"seed = 2, this training 3 \(choose another --out\)"):
        checkpoints.newest_state(tmp_path, dataclasses.replace(card, seed=3))
    longer = dataclasses.replace(PROTOCOL, num_meta_steps=20)
    found, _ = checkpoints.newest_state(tmp_path, dataclasses.replace(card, protocol=longer))
    assert int(found.meta_step) == 7


def test_pruning_never_removes_what_a_resumed_run_stands_on(tmp_path: Path) -> None:
    for step in (4, 5, 6, 90, 91, 92):
        checkpoints.resume_path(tmp_path, step).touch()
    checkpoints.analysis_path(tmp_path, 1).touch()
    checkpoints.prune(tmp_path, meta_step=6)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [f"resume-{step:06d}.safetensors" for step in (4, 5, 6)] + [
        "step-000001.safetensors"
    ]


def test_analysis_steps_are_dense_early_and_complete() -> None:
    steps = checkpoints.analysis_steps(5000)
    assert steps[:6] == [0, 1, 2, 3, 4, 5]
    assert steps[-1] == 5000
    assert set(range(0, 5000, 250)) <= set(steps)
    assert all(b - a <= max(1, 0.1 * a) for a, b in itertools.pairwise(steps))
    assert set(checkpoints.analysis_steps(700)) - {700} <= set(steps)
    assert len(steps) < 110


def test_double_precision_is_refused(tmp_path: Path) -> None:
    state, card = make()
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.optimizer)
    with pytest.raises(UserError, match="float64"):
        checkpoints.save_optimizer(tmp_path / "a", wide, card)


def test_an_optimizer_of_no_training_is_saved_and_loaded(tmp_path: Path) -> None:
    state, card = make()
    path = tmp_path / "a.safetensors"
    checkpoints.save(str(path), state.optimizer)
    assert_same_bits(checkpoints.load(str(path)), state.optimizer)
    with pytest.raises(UserError, match="has no card"):
        checkpoints.load_optimizer(path)
    with pytest.raises(UserError, match="no state of a training"):
        checkpoints.load_state(path)
    checkpoints.save_state(path, state, card)
    assert_same_bits(checkpoints.load(path), state.optimizer)
