"""Read what ships: each file beside a JSON card that tells its size and its SHA-256.

A folder of it holds, for each task, ``final.safetensors`` and
``momentum.safetensors`` (checkpoints as `optdyn.runs._checkpoints` writes
them), ``training.jsonl`` (the log of the training they come from),
``tuning/<baseline>.parquet`` (finished search tables), ``searches/*.json``
(searches of the meta learning rate) and ``distillation/fitted.json`` (readable
optimizers fitted to the learned one); the last two carry their own SHA-256.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from optdyn.errors import UserError, require_choice, shown
from optdyn.optimizers._componentwise_rnn import ComponentwiseRNN
from optdyn.runs._cards import Card, card_from_plain
from optdyn.runs._checkpoints import analysis_path, load_optimizer
from optdyn.runs._files import is_version, read_bytes, read_json, to_plain
from optdyn.runs._fitted_sizes import FITTED, read_fitted
from optdyn.runs._run_folder import first_difference
from optdyn.runs._search_run import SEARCHES, read_search
from optdyn.runs._training_run import CHECKPOINTS, METRICS
from optdyn.runs._tuning_run import TUNING, load_tuned, table_path
from optdyn.search import SearchTable, is_finished

FOLDER = Path(__file__).parent
"""What ships with the package itself."""
FORMAT = "optdyn pretrained"
FORMAT_VERSION = 1
STAGES = ("final", "momentum")
CHECKPOINT_SUFFIX = ".safetensors"


@dataclasses.dataclass(frozen=True)
class Shipped:
    """Everything that ships for a task, checked.

    ``card``: the final weights' (both stages are of one training). ``fitted``: the
    readable optimizers, as `read_fitted` gives them (None: none ship). ``files`` maps
    a place in the task's part of a run folder to the content that belongs there.
    """

    card: Card
    tables: dict[str, SearchTable]
    fitted: dict[str, Any] | None
    files: dict[str, bytes]


def _place(folder: str | Path | None) -> Path:
    """``folder``, or the package's own."""
    if folder is None:
        return FOLDER
    if not isinstance(folder, str | Path) or "\0" in str(folder):
        raise UserError(f"folder: {shown(folder)} is not allowed (a path)")
    return Path(folder)


def shipped_stages(folder: str | Path | None = None) -> dict[str, tuple[str, ...]]:
    """Each task's stages in ``folder`` (default: the package's own), by the files present."""
    found: dict[str, tuple[str, ...]] = {}
    for task in sorted(path for path in _place(folder).glob("*") if path.is_dir()):
        stages = tuple(s for s in STAGES if (task / f"{s}{CHECKPOINT_SUFFIX}").is_file())
        if stages:
            found[task.name] = stages
    return found


PRETRAINED = shipped_stages()
"""The stages that ship with the package, by task."""


def load_pretrained(
    name: str | Path, stage: str = "final", folder: str | Path | None = None
) -> ComponentwiseRNN:
    """The learned optimizer that was meta-trained on the task ``name``, or a checkpoint's.

    ``stage="final"``: at the end of meta-training; ``"momentum"``: when it did as
    well as the best tuned momentum. ``folder``: another than the package's own,
    such as ``optdyn export --to`` makes. Where ``name`` is a path (a `Path`, or text
    that ends in ``.safetensors``) it names a checkpoint of `optdyn train`, and the
    other arguments have no meaning.

    >>> tx = optdyn.load_pretrained("rosenbrock").as_optax()

    Raises `UserError`, naming the first fault, for an unknown name or stage and
    for a file that is missing, damaged, or not what its card tells.
    """
    if isinstance(name, Path) or (isinstance(name, str) and name.endswith(CHECKPOINT_SUFFIX)):
        return load_optimizer(Path(name))[0]
    optimizer, _ = _weights(name, stage, folder)
    return optimizer


def pretrained_card(
    name: str, stage: str = "final", folder: str | Path | None = None
) -> dict[str, Any]:
    """The card of `load_pretrained`'s weights, with its errors.

    Its task, architecture, protocol, seed, meta-step, meta-objective and
    versions; the ``file``, its size in ``bytes`` and ``sha256``; and the
    ``command`` whose run it comes from. ``name``, ``stage`` and ``folder`` as there.
    """
    _weights(name, stage, folder)
    return read_json(card_path(_weights_path(name, stage, folder)))


def load_shipped(task: str, folder: str | Path | None = None) -> Shipped:
    """Everything that ships for ``task``; raises `UserError` at the first fault."""
    files, cards = {}, {}
    for stage in STAGES:
        _, cards[stage] = _weights(task, stage, folder)
        place = analysis_path(Path(CHECKPOINTS), cards[stage].meta_step)
        files[str(place)] = read_checked(_weights_path(task, stage, folder))[0]
    source = _place(folder) / task
    differs = first_difference(cards["final"].settings(), cards["momentum"].settings())
    if differs:
        raise UserError(f"{source}: its stages are of two trainings ({differs[0]} differs)")
    files[METRICS] = read_checked(source / METRICS)[0]
    tables = {}
    for path in sorted((source / TUNING).glob("*.parquet")):
        files[str(table_path(Path(), path.stem))] = read_checked(path)[0]
        tables[path.stem] = load_tuned(source, path.stem)
        if not is_finished(tables[path.stem]):
            raise UserError(f"{path}: its search is not finished")
    fitted = None
    if (source / FITTED).exists():
        fitted = read_fitted(source / FITTED)
        if fitted["task"] != task:
            raise UserError(f"{source / FITTED}: is of {fitted['task']!r}, not of {task!r}")
        files[FITTED] = read_bytes(source / FITTED)
    files |= read_shipped_searches(source)
    return Shipped(cards["final"], tables, fitted, files)


def read_shipped_searches(task_folder: Path) -> dict[str, bytes]:
    """The searches of the meta learning rate in a task's folder, checked, by their place."""
    found = {}
    for path in sorted((task_folder / SEARCHES).glob("*.json")):
        read_search(path)
        found[str(path.relative_to(task_folder))] = read_bytes(path)
    return found


def read_checked(path: Path) -> tuple[bytes, dict[str, Any]]:
    """A shipped file's content and its card; raises `UserError` unless they agree."""
    card, where = read_json(card_path(path)), card_path(path)
    version = card.get("format_version")
    if card.get("format") != FORMAT or not is_version(version, FORMAT_VERSION):
        raise UserError(f"{where}: not a card of format {FORMAT!r}, version {FORMAT_VERSION}")
    for name, kind in (("file", str), ("bytes", int), ("sha256", str), ("command", str)):
        if not isinstance(card.get(name), kind):
            raise UserError(f"{where}: {name}: {card.get(name)!r} is not of type {kind.__name__}")
    if card["file"] != path.name:
        raise UserError(f"{where}: file: {card['file']!r}, not {path.name!r}")
    content = read_bytes(path)
    if len(content) != card["bytes"]:
        raise UserError(f"{path}: damaged ({len(content)} bytes, its card says {card['bytes']})")
    if hashlib.sha256(content).hexdigest() != card["sha256"]:
        raise UserError(f"{path}: damaged (its SHA-256 is not the one on its card)")
    return content, card


def card_path(path: Path) -> Path:
    """Where the card of a shipped file lies."""
    return path.with_suffix(".json")


def _weights_path(name: str, stage: str, folder: str | Path | None) -> Path:
    known = shipped_stages(folder)
    if not known:
        raise UserError(f"pretrained name: {shown(name)}: no weights are in {_place(folder)}")
    require_choice("pretrained name", name, list(known))
    require_choice(f"stage of {name}", stage, list(known[name]))
    return _place(folder) / name / f"{stage}{CHECKPOINT_SUFFIX}"


def _weights(name: str, stage: str, folder: str | Path | None) -> tuple[ComponentwiseRNN, Card]:
    path = _weights_path(name, stage, folder)
    _, told = read_checked(path)
    optimizer, card = load_optimizer(path)
    if card.task != name:
        raise UserError(f"{path}: was trained on {card.task!r}, not on {name!r}")
    # A card written before a setting existed means its default.
    names = [field.name for field in dataclasses.fields(Card) if field.name in told]
    try:
        told_card = card_from_plain({name: told[name] for name in names})
    except UserError as error:
        raise UserError(f"{card_path(path)}: {error}") from error
    outside_card = {"stage": told.get("stage"), **to_plain(told_card)}
    differs = first_difference({"stage": stage, **to_plain(card)}, outside_card)
    if differs:
        fault, inside, outside = differs
        raise UserError(f"{card_path(path)}: {fault}: {outside!r}, but {path.name} says {inside!r}")
    return optimizer, card
