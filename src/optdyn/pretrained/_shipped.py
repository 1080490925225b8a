"""Read what ships: the files of each task beside a manifest that lists them.

The folder of a task holds ``final.safetensors`` and ``momentum.safetensors`` (checkpoints),
``training.jsonl`` (the log of the training that they come from), ``tuning/<baseline>.parquet``
(finished search tables), ``searches/*.json`` (searches of the meta learning rate),
``distillation/fitted.json`` (readable optimizers fitted to the learned one), and
``manifest.json``: each file's size, SHA-256, and the command line that made it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Literal, overload

import optax

from optdyn.distillation import from_values
from optdyn.errors import UserError, require_choice, shown
from optdyn.optimizers._componentwise_rnn import ComponentwiseRNN
from optdyn.pretrained._card import PretrainedCard, read_measurements, readable_in
from optdyn.runs._cards import Card, same_training
from optdyn.runs._checkpoints import analysis_path, load, load_optimizer
from optdyn.runs._distillation_fit import FITTED, FittedResult
from optdyn.runs._run_folder import first_difference, folder_name
from optdyn.runs._search_run import SEARCHES, SearchResult
from optdyn.runs._stage_run import STAGE, STAGE_SEARCH
from optdyn.runs._store import read_bytes, read_result
from optdyn.runs._training_run import CHECKPOINTS, METRICS
from optdyn.runs._tuning_run import TUNING, load_tuned, table_path
from optdyn.search import SearchTable, is_finished

FOLDER = Path(__file__).parent
"""What ships with the package itself."""
MANIFEST = "manifest.json"
STAGES = ("final", "momentum")
READABLE = "readable"
"""What `load_pretrained` calls a readable optimizer fitted to the learned one."""
CHECKPOINT_SUFFIX = ".safetensors"


@dataclasses.dataclass(frozen=True)
class ShippedFile:
    """A file's size and SHA-256, and the command line that made it."""

    bytes: int
    sha256: str
    command: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """``manifest.json``: what ships of ``task``, by its place in the task's folder."""

    task: str
    files: dict[str, ShippedFile]


@dataclasses.dataclass(frozen=True)
class Shipped:
    """Everything that ships for a task, checked.

    ``card``: the final weights'. ``fitted``: the
    readable optimizers (None: none ship). ``files``: contents by the place in the task's
    part of a run folder where they belong.
    """

    card: Card
    tables: dict[str, SearchTable]
    fitted: FittedResult | None
    files: dict[str, bytes]


def _place(folder: str | Path | None) -> Path:
    """``folder``, or the package's own."""
    folder = FOLDER if folder is None else folder
    if not isinstance(folder, str | Path) or "\0" in str(folder):
        raise UserError(f"folder: {shown(folder)} is not allowed (a path)")
    return Path(folder)


def shipped_stages(folder: str | Path | None = None) -> dict[str, tuple[str, ...]]:
    """Each task's stages in ``folder`` (default: the package's own), by the files present."""
    return _stages_in(_place(folder), "*")


def other_trainings(folder: str | Path | None = None) -> dict[str, tuple[str, ...]]:
    """As `shipped_stages`, of the other trainings that ship, such as ``rosenbrock/paper``.

    `load_pretrained` takes these names, too. Of them only weights ship.
    """
    return _stages_in(_place(folder), "*/*")


def _stages_in(root: Path, places: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for place in sorted(path for path in root.glob(places) if path.is_dir()):
        stages = tuple(s for s in STAGES if (place / f"{s}{CHECKPOINT_SUFFIX}").is_file())
        if stages:
            found[place.relative_to(root).as_posix()] = stages
    return found


def _loadable() -> dict[str, tuple[str, ...]]:
    return {
        task: (*stages, READABLE) if (FOLDER / task / FITTED).is_file() else stages
        for task, stages in shipped_stages().items()
    }


PRETRAINED = _loadable()
"""The stages that `load_pretrained` takes, by task. Other trainings: `other_trainings`."""


@overload
def load_pretrained(
    name: str | Path, stage: Literal["readable"], folder: str | Path | None = None
) -> optax.GradientTransformation: ...


@overload
def load_pretrained(
    name: str | Path, stage: str = "final", folder: str | Path | None = None
) -> ComponentwiseRNN: ...


def load_pretrained(
    name: str | Path, stage: str = "final", folder: str | Path | None = None
) -> ComponentwiseRNN | optax.GradientTransformation:
    """The optimizer that was meta-trained on the task ``name``, or a checkpoint's.

    ``stage``:

    - ``"final"``: the learned optimizer at the end of meta-training;
    - ``"momentum"``: the learned optimizer when it did as well as the best tuned momentum;
    - ``"readable"``: an optax pair of a few numbers that was fitted to the learned optimizer.
      Its card says what an update costs.

    Learned optimizers become an optax pair by ``as_optax()``. `pretrained_card` says where
    each works, what it costs, and where it fails. Outside of ``jax.jit``, one that ships with
    measurements warns once (`GradientRangeWarning`) when gradients are larger or smaller than
    those of its training; ``pretrained_card(name).measured.gradients.watch()`` is an optax pair
    to chain before it that warns inside ``jax.jit``, too.

    ``folder``: another than the package's own, such as ``optdyn export --to`` makes. Where
    ``name`` is a path (a `Path`, or text that ends in ``.safetensors``) it names a checkpoint
    of `optdyn train`, and the other arguments have no meaning.

    >>> tx = optdyn.load_pretrained("rosenbrock").as_optax()
    >>> tx = optdyn.load_pretrained("digits", "readable")

    Raises `UserError`, naming the first fault, for an unknown name or stage and
    for a file that is missing, damaged, or not the one in its manifest.
    """
    if isinstance(name, Path) or (isinstance(name, str) and name.endswith(CHECKPOINT_SUFFIX)):
        return load(name)
    card = pretrained_card(name, stage, folder)
    if card.numbers is not None:
        return from_values(card.numbers).as_optax()
    optimizer, _ = _weights(name, stage, folder)
    gradients = None if card.measured is None else card.measured.gradients
    return dataclasses.replace(optimizer, trained_on=gradients)


def pretrained_card(
    name: str, stage: str = "final", folder: str | Path | None = None
) -> PretrainedCard:
    """The card of `load_pretrained`'s optimizer: five lines when printed.

    ``name``, ``stage`` and ``folder`` as there. Raises `UserError` as there, too.
    """
    readable = isinstance(stage, str) and stage == READABLE
    card = shipped_card(name, "final" if readable else stage, folder)
    source = _place(folder) / name
    manifest = read_manifest(source)
    final = manifest.files.get(f"final{CHECKPOINT_SUFFIX}")
    measurements = None if final is None else read_measurements(source, final.sha256)
    numbers, file = None, f"{stage}{CHECKPOINT_SUFFIX}"
    if readable:
        if FITTED not in manifest.files:
            others = ", ".join(n for n in PRETRAINED if READABLE in PRETRAINED[n])
            raise UserError(
                f"stage of {name}: no readable optimizer ships for it (for these: {others}; "
                "optdyn distill fits one)"
            )
        read_listed(source, FITTED)
        numbers, file = readable_in(source / FITTED).values(), FITTED
    return PretrainedCard(
        name=name,
        stage=stage,
        training=card,
        measured=None if measurements is None else measurements.stages.get(stage),
        numbers=numbers,
        file=file,
        **vars(manifest.files[file]),
    )


def shipped_card(name: str, stage: str = "final", folder: str | Path | None = None) -> Card:
    """The card inside `load_pretrained`'s weights, with its errors."""
    return _weights(name, stage, folder)[1]


def load_shipped(task: str, folder: str | Path | None = None) -> Shipped:
    """Everything that ships for ``task``; raises `UserError` at the first fault.

    The momentum stage may be of another training where its search ships, too.
    """
    cards = {stage: _weights(task, stage, folder)[1] for stage in STAGES}
    source = _place(folder) / task
    final, momentum = (same_training(cards[stage].settings()) for stage in STAGES)
    differs = first_difference(final, momentum)
    if differs and STAGE_SEARCH not in read_manifest(source).files:
        raise UserError(f"{source}: its stages are of two trainings ({differs[0]} differs)")
    files = {
        str(_run_place(place, cards)): read_listed(source, place)
        for place in read_manifest(source).files
    }
    tables = {}
    for path in sorted((source / TUNING).glob("*.parquet")):
        tables[path.stem] = load_tuned(source, path.stem)
        if not is_finished(tables[path.stem]):
            raise UserError(f"{path}: its search is not finished")
    for place in files:
        if Path(place).parent.name == SEARCHES:
            read_result(source / place, SearchResult)
    fitted = read_result(source / FITTED, FittedResult) if FITTED in files else None
    if fitted is not None and folder_name(fitted.task) != task:
        raise UserError(f"{source / FITTED}: is of {fitted.task!r}, not of {task!r}")
    unlisted = {str(table_path(Path(), name)) for name in tables} - files.keys()
    if unlisted or METRICS not in files:
        raise UserError(f"{source / MANIFEST}: {min(unlisted, default=METRICS)} is not listed")
    return Shipped(cards["final"], tables, fitted, files)


def shipped_searches(task_folder: Path) -> dict[str, bytes]:
    """The searches of the meta learning rate in a task's folder, checked, by their place."""
    found = {}
    for path in sorted((task_folder / SEARCHES).glob("*.json")):
        read_result(path, SearchResult)
        found[str(path.relative_to(task_folder))] = read_bytes(path)
    return found


def read_manifest(task_folder: Path) -> Manifest:
    """What ships in a task's folder. Raises `UserError` if it is missing or damaged."""
    return read_result(task_folder / MANIFEST, Manifest)


def read_listed(task_folder: Path, place: str) -> bytes:
    """A shipped file's content; raises `UserError` unless it is the one in the manifest."""
    manifest, path = read_manifest(task_folder), task_folder / place
    listed = manifest.files.get(place)
    if listed is None:
        raise UserError(f"{task_folder / MANIFEST}: {place} is not listed")
    content = read_bytes(path)
    if (len(content), hashlib.sha256(content).hexdigest()) != (listed.bytes, listed.sha256):
        raise UserError(f"{path}: damaged ({len(content)} bytes; not the file in its manifest)")
    return content


def _run_place(place: str, cards: dict[str, Card]) -> Path:
    """Where in a run folder the file at ``place`` belongs.

    The momentum stage of another training than the final weights' is no checkpoint of the run.
    """
    path = Path(place)
    if path.suffix != CHECKPOINT_SUFFIX:
        return path
    card, final = (same_training(cards[stage].settings()) for stage in (path.stem, "final"))
    if first_difference(card, final):
        return Path(STAGE)
    return analysis_path(Path(CHECKPOINTS), cards[path.stem].meta_step)


def _weights(name: str, stage: str, folder: str | Path | None) -> tuple[ComponentwiseRNN, Card]:
    known = {**shipped_stages(folder), **other_trainings(folder)}
    if not known:
        raise UserError(f"pretrained name: {shown(name)}: no weights are in {_place(folder)}")
    require_choice("pretrained name", name, list(known))
    source = _place(folder) / name
    readable = [READABLE] if (source / FITTED).is_file() else []
    require_choice(f"stage of {name}", stage, [*known[name], *readable])
    file = f"{stage}{CHECKPOINT_SUFFIX}"
    read_listed(source, file)
    path = source / file
    optimizer, card = load_optimizer(path)
    if folder_name(card.task) != name.partition("/")[0]:
        raise UserError(f"{path}: was trained on {card.task!r}, not on {name!r}")
    return optimizer, card
