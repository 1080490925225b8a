"""Checkpoints: one safetensors file each, with a card and a checksum inside.

The card is JSON under the key ``card`` of the file's metadata. It lists every
array's type and shape and carries a SHA-256 over itself and all the arrays, so
a file is either exactly what was written or refused. Two kinds lie in a
``checkpoints`` folder: ``step-…`` holds meta-parameters alone, for analysis,
and is kept; ``resume-…`` holds the whole training state, and the last few stay.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from optdyn.errors import UserError
from optdyn.meta_training._trainer import MetaTraining, TrainingState, start_training
from optdyn.optimizers._componentwise_rnn import Architecture, ComponentwiseRNN
from optdyn.runs._cards import Card, card_from_plain, require_architecture
from optdyn.runs._files import (
    cannot,
    is_version,
    parse_json,
    require_file,
    to_plain,
    write_bytes,
)

if TYPE_CHECKING:
    from jaxtyping import PyTree

FORMAT = "optdyn checkpoint"
FORMAT_VERSION = 1
KEPT_FOR_RESUME = 3
GROWTH = 1.1
REGULARLY = 250
DTYPES = {"F32": np.dtype(np.float32), "I32": np.dtype(np.int32)}
OPTIMIZER, AVERAGE = "optimizer", "average"
LONGEST_FAULT = 300
"""Characters; a name in a damaged header can be megabytes."""
FILE_NAME = re.compile(r"(step|resume)-(\d{1,9})\.safetensors")
LARGEST_META_STEP = 10**9 - 1
"""The last one with a file name of its own."""

Arrays = dict[str, np.ndarray]
Layout = dict[str, list[Any]]
"""Each array's type code and shape, as JSON holds them."""


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


def save_optimizer(path: Path, optimizer: ComponentwiseRNN, card: Card) -> None:
    """Write meta-parameters with their card, atomically. Raises `UserError`."""
    _save(path, _named_arrays({OPTIMIZER: optimizer}), card)


def save_state(path: Path, state: TrainingState, card: Card) -> None:
    """Write a whole training state with its card, atomically. Raises `UserError`."""
    _save(path, _named_arrays(state), card)


def load_optimizer(path: Path) -> tuple[ComponentwiseRNN, Card]:
    """The learned optimizer in a checkpoint of either kind (`TrainingState.averaged`).

    Raises `UserError`, naming the first fault, for a file that is damaged, of
    another format, or does not hold the architecture its card tells of.
    """
    arrays, card = _load(path)
    part = AVERAGE if any(name.startswith(f"{AVERAGE}.") for name in arrays) else OPTIMIZER
    chosen = {name: array for name, array in arrays.items() if name.startswith(f"{part}.")}
    like = {part: _optimizer_shapes(card.architecture)}
    return _filled(like, chosen, path)[part], card


def load_state(path: Path) -> tuple[TrainingState, Card]:
    """The training state in a resume checkpoint; errors as in `load_optimizer`."""
    arrays, card = _load(path)
    state = _filled(_state_shapes(card.architecture, card.protocol), arrays, path)
    if int(state.meta_step) != card.meta_step:
        raise UserError(f"{path}: meta_step: {int(state.meta_step)}, card says {card.meta_step}")
    return state, card


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
        require_architecture(card.architecture, run.architecture, str(path))
        if card.settings() != run.settings():
            raise UserError(f"{path}: belongs to a run with other settings (choose another --out)")
        return state, notes
    return None, notes


def require_own_name(path: Path, card: Card) -> None:
    """Raise `UserError` unless a folder's checkpoint is of the meta-step that it is named after."""
    named = FILE_NAME.fullmatch(path.name)
    if named and int(named[2]) != card.meta_step:
        raise UserError(f"{path}: is of meta-step {card.meta_step}, not of the one in its name")


def prune(folder: Path, meta_step: int) -> None:
    """Keep the last few resume checkpoints up to ``meta_step``.

    Those beyond it were skipped as damaged when the run resumed below them.
    """
    files = _files(folder, "resume")
    done = [path for step, path in files if step <= meta_step]
    beyond = [path for step, path in files if step > meta_step]
    for path in [*done[:-KEPT_FOR_RESUME], *beyond]:
        try:
            path.unlink()
        except OSError as error:
            raise cannot(path, "remove", error) from None


def fingerprint(optimizer: ComponentwiseRNN) -> str:
    """SHA-256 of an optimizer's architecture and meta-parameters."""
    arrays = _named_arrays(optimizer)
    return _digest(json.dumps(to_plain(optimizer.architecture), sort_keys=True), arrays)


def _files(folder: Path, kind: str) -> list[tuple[int, Path]]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise cannot(folder, "read", error) from None
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


def _layout(arrays: Arrays) -> Layout:
    code_of = {dtype: code for code, dtype in DTYPES.items()}
    for name, array in arrays.items():
        if array.dtype not in code_of:
            raise UserError(f"checkpoint: {name} is {array.dtype} (allowed: float32, int32)")
    return {name: [code_of[array.dtype], list(array.shape)] for name, array in arrays.items()}


def _canonical(card: dict[str, Any]) -> str:
    return json.dumps(card, sort_keys=True, allow_nan=False)


def _digest(text: str, arrays: Arrays) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _save(path: Path, arrays: Arrays, card: Card) -> None:
    from safetensors.numpy import save

    plain = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "arrays": _layout(arrays),
        **to_plain(card),
    }
    plain["sha256"] = _digest(_canonical(plain), arrays)
    write_bytes(path, save(arrays, metadata={"card": _canonical(plain)}))


def _load(path: Path) -> tuple[Arrays, Card]:
    """Every array of a file whose card, layout and checksum agree, before any use of them."""
    from safetensors import SafetensorError, safe_open

    require_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            plain = _read_card((file.metadata() or {}).get("card"))
            checksum, canonical = plain.pop("sha256", None), _canonical(plain)
            _require_format(plain)
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            layout = {n: [s.get_dtype(), list(s.get_shape())] for n, s in slices.items()}
            _require_layout(layout, plain.pop("arrays", None))
            arrays = {name: file.get_tensor(name) for name in layout}
    except OSError as error:
        raise cannot(path, "read", error) from None
    except (SafetensorError, ValueError) as error:
        fault = " ".join(str(error).split())[:LONGEST_FAULT]
        raise UserError(f"{path}: not an intact optdyn checkpoint ({fault})") from None
    if checksum != _digest(canonical, arrays):
        raise UserError(f"{path}: damaged (its content does not match its SHA-256)")
    for name in sorted(arrays):
        if not np.all(np.isfinite(arrays[name])):
            raise UserError(f"{path}: array {name} holds numbers that are not finite")
    try:
        card = card_from_plain(plain)
    except UserError as error:
        raise UserError(f"{path}: card: {error}") from None
    readout = arrays.get(f"{OPTIMIZER}.w")
    if readout is None or readout.shape != (card.architecture.units,):
        raise UserError(f"{path}: no readout for the {card.architecture.units} units on its card")
    return arrays, card


def _read_card(text: str | None) -> dict[str, Any]:
    if text is None:
        raise UserError("it has no card")
    plain = parse_json(text)
    if not isinstance(plain, dict):
        raise UserError("its card is not a JSON object")
    return plain


def _require_format(plain: dict[str, Any]) -> None:
    """Take the format's name and version off a card. Raises `UserError` for others."""
    if plain.pop("format", None) != FORMAT:
        raise UserError("its card is of another format")
    version = plain.pop("format_version", None)
    if not is_version(version, FORMAT_VERSION):
        raise UserError(f"format version {version!r} is unknown (this is {FORMAT_VERSION})")


def _require_layout(found: Layout, told: object) -> None:
    if not isinstance(told, dict):
        raise UserError("its card lists no arrays")
    for name in sorted(found.keys() ^ told.keys()):
        where = "the card" if name in found else "the file"
        raise UserError(f"array {name} is missing from {where}")
    for name, layout in sorted(found.items()):
        if layout != told[name] or layout[0] not in DTYPES:
            raise UserError(f"array {name} is {layout}, card says {told[name]}")


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
