"""Checkpoints: one sealed safetensors file each, with its card inside.

Two kinds lie in a ``checkpoints`` folder. ``step-…`` holds meta-parameters alone, for
analysis, and stays. ``resume-…`` holds the whole training state, and the last few stay.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from optdyn.distillation import Distilled
from optdyn.errors import UserError
from optdyn.meta_training._trainer import MetaTraining, TrainingState, start_training
from optdyn.optimizers._componentwise_rnn import Architecture, ComponentwiseRNN
from optdyn.runs._cards import Card, require_architecture, same_training
from optdyn.runs._run_folder import first_difference
from optdyn.runs._store import arrays_bytes, read_arrays, refusals, remove, write_bytes

FORMAT = "optdyn checkpoint, version 2"
KEPT_FOR_RESUME = 3
GROWTH = 1.1
REGULARLY = 250
DTYPES = (np.dtype(np.float32), np.dtype(np.int32))
OPTIMIZER, AVERAGE = "optimizer", "average"
FILE_NAME = re.compile(r"(step|resume)-(\d{1,9})\.safetensors")

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Content:
    """What stands in a checkpoint beside its arrays.

    An optimizer that comes from no training (see `save`) has no card.
    """

    format: str
    architecture: Architecture
    card: Card | None

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise UserError(f"format {self.format!r} is unknown (this is {FORMAT!r})")


def analysis_steps(num_meta_steps: int) -> list[int]:
    """Meta-steps at which a checkpoint for analysis is made.

    0, then every one at first and 10 % further each time, every 250th, and the
    last: dense where the optimizer changes fastest. Longer runs only add steps.
    """
    steps = {0, *range(0, num_meta_steps, REGULARLY), num_meta_steps}
    step = 1
    while step < num_meta_steps:
        steps.add(step)
        step = max(step + 1, int(step * GROWTH))
    return sorted(steps)


def analysis_path(folder: Path, meta_step: int) -> Path:
    """The file of the analysis checkpoint at ``meta_step``."""
    return folder / f"step-{meta_step:06d}.safetensors"


def resume_path(folder: Path, meta_step: int) -> Path:
    """The file of the resume checkpoint at ``meta_step``."""
    return folder / f"resume-{meta_step:06d}.safetensors"


def analysis_checkpoints(folder: Path) -> list[Path]:
    """The files of the analysis checkpoints in ``folder``, in order of their meta-step."""
    return [path for _, path in _files(folder, "step")]


def save(path: str | Path, optimizer: ComponentwiseRNN) -> None:
    """Write a learned optimizer to a safetensors file, from which `load` reads it.

    The file is written whole or not at all. Raises `UserError` where the disk refuses.

    ``path``: the file, with the suffix .safetensors.
    """
    content = Content(FORMAT, optimizer.architecture, None)
    _save(Path(path), {OPTIMIZER: optimizer}, content)


def load(path: str | Path) -> ComponentwiseRNN:
    """The learned optimizer in a file of `save`, or in a checkpoint of a training.

    Nothing in the file is executed. Raises `UserError`, naming the first fault, for a file
    that is missing, damaged, or of another format.

    ``path``: the file that `save` or a training wrote.
    """
    return read_optimizer(Path(path))[0]


def save_optimizer(path: Path, optimizer: ComponentwiseRNN, card: Card) -> None:
    """Write meta-parameters with their card, atomically. Raises `UserError`."""
    _save(path, {OPTIMIZER: optimizer}, Content(FORMAT, card.architecture, card))


def save_state(path: Path, state: TrainingState, card: Card) -> None:
    """Write a whole training state with its card, atomically. Raises `UserError`."""
    _save(path, state, Content(FORMAT, card.architecture, card))


def load_optimizer(path: Path) -> tuple[ComponentwiseRNN, Card]:
    """The learned optimizer (`TrainingState.averaged`) in a checkpoint, and its card.

    Raises `UserError`, naming the first fault, for a file that is damaged, of another
    format, or without the arrays that the architecture on its card has.
    """
    optimizer, card = read_optimizer(path)
    if card is None:
        raise UserError(
            f"{path}: has no card of a training (optdyn.save wrote it; optdyn.load reads it)"
        )
    return optimizer, card


def read_optimizer(path: Path) -> tuple[ComponentwiseRNN, Card | None]:
    """As `load_optimizer`, with no card for an optimizer that comes from no training."""
    arrays, content = _load(path)
    part = AVERAGE if any(name.startswith(f"{AVERAGE}.") for name in arrays) else OPTIMIZER
    chosen = {name: array for name, array in arrays.items() if name.startswith(f"{part}.")}
    like = {part: _optimizer_shapes(content.architecture)}
    return _filled(like, chosen, path)[part], content.card


def load_state(path: Path) -> tuple[TrainingState, Card]:
    """The training state in a resume checkpoint; errors as in `load_optimizer`."""
    arrays, content = _load(path)
    card = content.card
    if card is None:
        raise UserError(f"{path}: holds no state of a training")
    return _filled(_state_shapes(card.architecture, card.protocol), arrays, path), card


def newest_state(folder: Path, run: Card) -> tuple[TrainingState | None, list[str]]:
    """The newest intact resume checkpoint of ``run``, and a note on each file skipped.

    Raises `UserError` when an intact one belongs to another run.
    """
    notes = []
    for _, path in reversed(_files(folder, "resume")):
        try:
            state, card = load_state(path)
            require_own_name(path, card)
        except UserError as error:
            notes.append(f"skipped a damaged checkpoint: {error}")
            continue
        require_same_training(path, card, run)
        return state, notes
    return None, notes


def require_same_training(path: Path, card: Card, run: Card) -> None:
    """Raise `UserError`, naming what differs, unless a checkpoint's training is ``run``.

    The number of meta-steps may differ.
    """
    require_architecture(card.architecture, run.architecture, str(path))
    differs = first_difference(same_training(run.settings()), same_training(card.settings()))
    if differs:
        name, here, there = differs
        raise UserError(
            f"{path}: has {name} = {there!r}, this training {here!r} (choose another --out)"
        )


def require_own_name(path: Path, card: Card) -> None:
    """Raise `UserError` unless a folder's checkpoint is of the meta-step in its name."""
    named = FILE_NAME.fullmatch(path.name)
    if named and int(named[2]) != card.meta_step:
        raise UserError(f"{path}: is of meta-step {card.meta_step}, not of the one in its name")


def prune(folder: Path, meta_step: int) -> None:
    """Remove all resume checkpoints but the last few up to ``meta_step``.

    Those beyond it were skipped as damaged when the run resumed below them.
    """
    files = _files(folder, "resume")
    done = [path for step, path in files if step <= meta_step]
    beyond = [path for step, path in files if step > meta_step]
    for path in [*done[:-KEPT_FOR_RESUME], *beyond]:
        remove(path)


def fingerprint(optimizer: ComponentwiseRNN | Distilled) -> str:
    """SHA-256 of an optimizer's architecture and meta-parameters, or of its parts and numbers."""
    kind: Any
    if isinstance(optimizer, Distilled):
        kind = {"parts": optimizer.name}
    else:
        kind = optimizer.architecture
    return hashlib.sha256(arrays_bytes(_named_arrays(optimizer), kind)).hexdigest()


def _files(folder: Path, kind: str) -> list[tuple[int, Path]]:
    with refusals(folder, "read"):
        names = os.listdir(folder) if folder.exists() else []
    matches = filter(None, map(FILE_NAME.fullmatch, names))
    return sorted((int(m[2]), folder / m[0]) for m in matches if m[1] == kind)


def _named(tree: PyTree) -> tuple[dict[str, Any], Any]:
    """Leaves under flat names such as ``optimizer.weights.W_z``, and the tree's structure."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True)), structure


def _named_arrays(tree: PyTree) -> Arrays:
    named, _ = _named(jax.device_get(tree))
    return {name: np.asarray(leaf, order="C") for name, leaf in sorted(named.items())}


@functools.cache
def _optimizer_shapes(architecture: Architecture) -> ComponentwiseRNN:
    return jax.eval_shape(lambda key: ComponentwiseRNN.init(key, architecture), jax.random.key(0))


@functools.cache
def _state_shapes(architecture: Architecture, protocol: MetaTraining) -> TrainingState:
    shapes = _optimizer_shapes(architecture)
    return jax.eval_shape(lambda optimizer: start_training(optimizer, protocol), shapes)


def _save(path: Path, tree: PyTree, content: Content) -> None:
    arrays = _named_arrays(tree)
    for name, array in arrays.items():
        if array.dtype not in DTYPES:
            raise UserError(f"checkpoint: {name} is {array.dtype} (allowed: float32, int32)")
    write_bytes(path, arrays_bytes(arrays, content))


def _load(path: Path) -> tuple[Arrays, Content]:
    arrays, content = read_arrays(path, Content)
    for name in sorted(arrays):
        if not np.all(np.isfinite(arrays[name])):
            raise UserError(f"{path}: array {name} holds numbers that are not finite")
    return arrays, content


def _filled(like: PyTree, arrays: Arrays, path: Path) -> Any:
    """The pytree shaped as ``like`` with ``arrays`` as its leaves."""
    expected, structure = _named(like)
    for name in sorted(expected.keys() ^ arrays.keys()):
        fault = "is missing" if name in expected else "does not belong to its architecture"
        raise UserError(f"{path}: array {name} {fault}")
    for name, leaf in expected.items():
        if arrays[name].shape != leaf.shape:
            raise UserError(
                f"{path}: array {name} has shape {arrays[name].shape}, "
                f"its card's architecture needs {leaf.shape}"
            )
    return jax.tree.unflatten(structure, [jnp.asarray(arrays[name]) for name in expected])
