"""Meta-training in a run folder: resumable, and the same to the bit when resumed."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import jax
from jax.sharding import NamedSharding, PartitionSpec

from optdyn.distributed import Group
from optdyn.distributed._interrupts import (
    Interrupted,
    LostProcess,
    noted_signals,
    result_unless,
    waiting_thread,
)
from optdyn.errors import UserError
from optdyn.meta_training._trainer import (
    INIT_STREAM,
    MetaTraining,
    Metrics,
    TrainingState,
    make_meta_step,
    start_training,
)
from optdyn.optimizers._componentwise_rnn import Architecture, ComponentwiseRNN
from optdyn.random_streams import stream
from optdyn.runs._cards import Card, same_training
from optdyn.runs._checkpoints import (
    analysis_path,
    analysis_steps,
    fingerprint,
    load_optimizer,
    newest_state,
    prune,
    require_own_name,
    require_same_training,
    resume_path,
    save_optimizer,
    save_state,
)
from optdyn.runs._metrics_log import MetricsLog, TrainingRow
from optdyn.runs._plain import convert
from optdyn.runs._progress import progress
from optdyn.runs._run_folder import CONFIG, RunFolder
from optdyn.runs._versions import versions
from optdyn.tasks import Task, describe_task

if TYPE_CHECKING:
    from jax.sharding import Mesh

METRICS = "training.jsonl"
CHECKPOINTS = "checkpoints"
TRAIN = "train"
"""The part of a run folder's settings that is about a training."""
SECONDS_BETWEEN_SAVES = 30.0
HOPELESS_AFTER = 20

Step = tuple[TrainingState, Metrics]
MetaStep = Callable[[TrainingState], Step]


@dataclasses.dataclass(frozen=True)
class Watch:
    """How often a training saves its state, who hears of each meta-step, and what is shown.

    ``on_step`` is given the number of meta-steps done and the last one's metrics.
    """

    seconds_between_saves: float = SECONDS_BETWEEN_SAVES
    on_step: Callable[[int, Metrics], None] = lambda meta_step, metrics: None
    progress: bool = True

    def say(self, words: str) -> None:
        """Print a line, if progress is shown."""
        if self.progress:
            print(words, flush=True)


def train(
    run: RunFolder,
    task: Task,
    start: Architecture | ComponentwiseRNN,
    protocol: MetaTraining,
    *,
    seed: int,
    devices: Mesh | Group | None = None,
    watch: Watch = Watch(),
) -> TrainingState:
    """Meta-train in ``run``, from where it was left; returns the final state.

    In the task's folder: ``training.jsonl`` (row k: `Metrics` of the optimizer
    after k meta-steps, and the ``seconds`` that step took) and ``checkpoints/``
    (see `checkpoints`). Weights are the same to the bit however often the run was
    interrupted, for one machine and device count. A finished run stays as it is, unless
    ``protocol`` has more meta-steps than before: then it goes on, to the same bits as
    with so many from the start.

    ``start``: an architecture, whose meta-parameters are random ones of ``seed``, or
    meta-parameters to fine-tune. ``devices``: a mesh (see `meta_value_and_grad`), or the
    processes that train together, of which this is the first; the others call `train_along`.

    Raises `UserError` for settings that differ from the folder's, and with
    advice after `HOPELESS_AFTER` meta-steps in a row that gave no meta-gradient;
    `Interrupted` on SIGTERM or SIGINT, `LostProcess` when another process of the group
    went, once a resume checkpoint is written.
    """
    described = describe_task(task)
    card = Card(
        task=described.name,
        task_options=described.options,
        architecture=start if isinstance(start, Architecture) else start.architecture,
        protocol=protocol,
        seed=seed,
        initial=None if isinstance(start, Architecture) else fingerprint(start),
        versions=versions(),
    )
    settle_training(run, card)
    folder = run.task_folder(card.task)
    state = _resumed(folder, card, watch)
    if state is None:
        state = start_training(_start(start, seed), protocol)
    group, mesh = None, None
    if isinstance(devices, Group):
        group, mesh = devices, devices.mesh
        state = group.from_first(state)
    elif devices is not None:
        mesh = devices
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    if int(state.meta_step) >= protocol.num_meta_steps:
        watch.say(f"{card.task}: meta-training is finished ({protocol.num_meta_steps} meta-steps)")
        return state
    meta_step = make_meta_step(task, protocol, seed, mesh)
    watch.say(f"{card.task}: compiling, which can take a minute")
    with MetricsLog(folder / METRICS, resume_at=int(state.meta_step)) as log:
        return _Loop(folder, card, log, watch, group).run(meta_step, state)


def settle_training(run: RunFolder, card: Card) -> None:
    """Record a training's settings in ``run``.

    Raises `UserError` if they differ from the recorded ones, except for more meta-steps.
    """
    known = training_card(run, card.task)
    if known is not None:
        steps = known.protocol.num_meta_steps, card.protocol.num_meta_steps
        same, here = known.settings(), card.settings()
        if steps[0] < steps[1]:
            same, here = same_training(same), same_training(here)
        run.require_same(f"{TRAIN}/{card.task}", same, here)
    if known is None or steps[0] < steps[1]:
        run.record(f"{TRAIN}/{card.task}", card.settings())


def training_card(run: RunFolder, task: str) -> Card | None:
    """The settings of the training of ``task`` in ``run``, as a card; None if there is none."""
    part = f"{TRAIN}/{task}"
    known = run.settings().get(part)
    return None if known is None else convert(known, Card, f"{run.path / CONFIG}: {part}")


def load_trained(run: RunFolder, task: Task | str, path: Path) -> tuple[ComponentwiseRNN, Card]:
    """The learned optimizer in one of the run's checkpoints of a task, and its card.

    Raises `UserError` for a damaged file, and for one of another training.
    """
    optimizer, card = load_optimizer(path)
    require_own_name(path, card)
    name = task if isinstance(task, str) else describe_task(task).name
    if card.task != name:
        raise UserError(f"{path}: was trained on {card.task!r}, not on {name!r}")
    own = training_card(run, name)
    if own is not None:
        require_same_training(path, card, own)
    return optimizer, card


def train_along(
    task: Task, architecture: Architecture, protocol: MetaTraining, seed: int, group: Group
) -> None:
    """The part in `train` of a process that is not the first: it computes, and writes nothing.

    Raises `Interrupted` on SIGTERM or SIGINT.
    """
    state = group.from_first(start_training(_start(architecture, seed), protocol))
    meta_step = make_meta_step(task, protocol, seed, group.mesh)
    with noted_signals() as noted, waiting_thread() as waiter:
        for _ in range(int(state.meta_step), protocol.num_meta_steps):
            following = _next(group, noted, waiter.submit(_completed, meta_step, state))
            if following is None:
                raise Interrupted(noted() or 0, f"process {group.processes.process_id} stopped")
            state, _ = following


def _start(start: Architecture | ComponentwiseRNN, seed: int) -> ComponentwiseRNN:
    if isinstance(start, ComponentwiseRNN):
        return start
    return ComponentwiseRNN.init(stream(seed, INIT_STREAM), start)


def _resumed(folder: Path, card: Card, watch: Watch) -> TrainingState | None:
    state, notes = newest_state(folder / CHECKPOINTS, card)
    for note in notes:
        watch.say(note)
    if state is not None:  # what a run that was stopped between saving and pruning left
        prune(folder / CHECKPOINTS, int(state.meta_step))
    if state is not None and 0 < int(state.meta_step) < card.protocol.num_meta_steps:
        watch.say(f"{card.task}: going on from meta-step {int(state.meta_step)}")
    return state


def _next(
    group: Group | None, noted: Callable[[], object], future: concurrent.futures.Future[Step]
) -> Step | None:
    """The result of ``future``, or None when something is noted or a process of the group lost."""
    try:
        return result_unless(noted, future)
    except RuntimeError:  # the others of a collective fail, often before it is known who is lost
        if group is None or not group.is_broken():
            raise
        return None


def _completed(meta_step: MetaStep, state: TrainingState) -> Step:
    """One meta-step, compiled if need be, and waited for."""
    return jax.block_until_ready(meta_step(state))


class Hope:
    """Counts the meta-steps in a row that gave no meta-gradient."""

    def __init__(self, protocol: MetaTraining) -> None:
        self._batch_size = protocol.batch_size
        self._hopeless = 0

    def require(self, metrics: Metrics, step: int) -> None:
        """Note one more meta-step; raises `UserError` with advice after `HOPELESS_AFTER`."""
        all_exploded = int(metrics.exploded) == self._batch_size
        nothing = all_exploded or not math.isfinite(float(metrics.meta_objective))
        self._hopeless = self._hopeless + 1 if nothing else 0
        if self._hopeless >= HOPELESS_AFTER:
            raise UserError(
                f"learning rate: every problem exploded in each of the {self._hopeless} "
                f"meta-steps up to {step} (lower the learning rate or the output scale, or set "
                "max_cotangent_norm to 1)"
            )


def in_words(metrics: Metrics) -> str:
    counts = {"exploded": int(metrics.exploded), "contained": int(metrics.contained)}
    notes = [f"{count} problems {name}" for name, count in counts.items() if count]
    return ", ".join([f"meta-objective {float(metrics.meta_objective):.4g}", *notes])


@dataclasses.dataclass
class _Loop:
    """The loop's surroundings: where it saves, and the last meta-objective."""

    folder: Path
    card: Card
    log: MetricsLog
    watch: Watch
    group: Group | None = None
    meta_objective: float | None = None

    def run(self, meta_step: MetaStep, state: TrainingState) -> TrainingState:
        total, step = self.card.protocol.num_meta_steps, int(state.meta_step)
        scheduled = set(analysis_steps(total))
        hope, saved_at = Hope(self.card.protocol), time.monotonic()
        if step == 0:
            self._save_for_analysis(state, step)
        with (
            noted_signals() as noted,
            progress(f"training {self.card.task}", total, step, self.watch.progress) as advance,
            waiting_thread() as waiter,
        ):
            while step < total:
                started = time.monotonic()
                following = _next(
                    self.group,
                    lambda: noted() or self._lost(),
                    waiter.submit(_completed, meta_step, state),
                )
                if following is None:
                    self._stop(state, step, noted())
                state, metrics = following
                self._record(step, metrics, time.monotonic() - started)
                step += 1
                hope.require(metrics, step)
                advance(step, in_words(metrics))
                if step in scheduled:
                    self._save_for_analysis(state, step)
                if step == total or time.monotonic() - saved_at >= self.watch.seconds_between_saves:
                    self._save_for_resume(state, step)
                    saved_at = time.monotonic()
                self.watch.on_step(step, metrics)
        return state

    def _record(self, step: int, metrics: Metrics, seconds: float) -> None:
        self.meta_objective = float(metrics.meta_objective)
        row = TrainingRow(
            meta_step=step,
            meta_objective=self.meta_objective,
            gradient_norm=float(metrics.gradient_norm),
            exploded=int(metrics.exploded),
            contained=int(metrics.contained),
            seconds=round(seconds, 6),
        )
        self.log.append(row)

    def _card_at(self, step: int) -> Card:
        return dataclasses.replace(self.card, meta_step=step, meta_objective=self.meta_objective)

    def _save_for_analysis(self, state: TrainingState, step: int) -> None:
        path = analysis_path(self.folder / CHECKPOINTS, step)
        save_optimizer(path, state.averaged, self._card_at(step))

    def _save_for_resume(self, state: TrainingState, step: int) -> None:
        self.log.flush()
        save_state(resume_path(self.folder / CHECKPOINTS, step), state, self._card_at(step))
        prune(self.folder / CHECKPOINTS, step)

    def _lost(self) -> str | None:
        return None if self.group is None else self.group.lost()

    def _stop(self, state: TrainingState, step: int, signum: int | None) -> NoReturn:
        self._save_for_resume(state, step)
        where = f"stopped after meta-step {step} of {self.card.task}; saved"
        if signum is None:
            raise LostProcess(f"{self._lost()}: {where}")
        raise Interrupted(signum, where)
