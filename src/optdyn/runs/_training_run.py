"""Meta-training in a run folder: resumable, and the same to the bit when resumed."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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
from optdyn.runs import _checkpoints as stored
from optdyn.runs._cards import Card, same_training, versions
from optdyn.runs._metrics_log import MetricsLog, TrainingRow
from optdyn.runs._plain import convert
from optdyn.runs._progress import progress as shown_progress
from optdyn.runs._run_folder import CONFIG, RunFolder, open_run
from optdyn.tasks import Task, describe_task

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
        initial=None if isinstance(start, Architecture) else stored.fingerprint(start),
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
        return _loop(folder, card, log, watch, group, meta_step, state)


def meta_train(
    task: Task,
    rnn: ComponentwiseRNN,
    protocol: MetaTraining = MetaTraining(),
    *,
    seed: int,
    out: str | Path | None = None,
    progress: bool = True,
) -> ComponentwiseRNN:
    """Meta-train ``rnn`` on ``task``; returns the trained optimizer.

    ``seed`` decides which problems are drawn. With ``out``, a run folder, checkpoints and a log
    of the training are written there. The same call, or ``optdyn train --out``, then resumes a
    training that was stopped, with the same result to the bit (on one machine with one number
    of devices). With more meta-steps in ``protocol`` it extends a finished one.

    Checkpoints are dense at first, where the optimizer changes fastest: one at each of the
    first 20 meta-steps, then 10 % apart, at most 250 apart (53 of some 20 kB each for 300
    meta-steps of 32 units). They show when momentum appears.

    >>> rnn = optdyn.ComponentwiseRNN.init(jax.random.key(0), optdyn.Architecture(units=2))
    >>> protocol = optdyn.MetaTraining(num_meta_steps=1, unroll_length=2, batch_size=2)
    >>> rnn = optdyn.meta_train(
    ...     optdyn.make_task("rosenbrock"), rnn, protocol, seed=0, progress=False
    ... )
    >>> tx = rnn.as_optax()

    Raises `UserError` for settings that differ from the folder's, and with advice when no
    problem gives a meta-gradient for many meta-steps in a row. With ``out``, Ctrl-C raises
    KeyboardInterrupt, and SIGTERM `Interrupted`, once the state is saved and a line on standard
    error says how to resume.
    """
    rnn = dataclasses.replace(rnn, trained_on=None)  # it is about to meet other gradients
    if out is not None:
        try:
            with open_run(Path(out)) as run:
                watch = Watch(progress=progress)
                return train(run, task, rnn, protocol, seed=seed, watch=watch).averaged
        except (Interrupted, KeyboardInterrupt) as stop:
            cause = str(stop) or "stopped"
            print(f"{cause}; to resume, make the same call with out={str(out)!r}", file=sys.stderr)
            if isinstance(stop, Interrupted) and stop.signum != signal.SIGINT:
                raise
            raise KeyboardInterrupt from None
    state, meta_step = start_training(rnn, protocol), make_meta_step(task, protocol, seed)
    hope, total = Hope(protocol), protocol.num_meta_steps
    with shown_progress(f"training {describe_task(task).name}", total, shown=progress) as advance:
        for step in range(1, total + 1):
            state, metrics = jax.block_until_ready(meta_step(state))
            hope.require(metrics, step)
            advance(step, _in_words(metrics))
    return state.averaged


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


def require_checkpoints(folder: Path, purpose: str) -> list[Path]:
    """The analysis checkpoints in a task's folder, to ``purpose``; raises `UserError` without."""
    found = stored.analysis_checkpoints(folder / CHECKPOINTS)
    if not found:
        raise UserError(f"--out: {folder} has no checkpoints to {purpose} (run optdyn train first)")
    return found


def load_trained(run: RunFolder, task: Task | str, path: Path) -> tuple[ComponentwiseRNN, Card]:
    """The learned optimizer in one of the run's checkpoints of a task, and its card.

    Raises `UserError` for a damaged file, and for one of another training.
    """
    optimizer, card = stored.load_optimizer(path)
    stored.require_own_name(path, card)
    name = task if isinstance(task, str) else describe_task(task).name
    if card.task != name:
        raise UserError(f"{path}: was trained on {card.task!r}, not on {name!r}")
    own = training_card(run, name)
    if own is not None:
        stored.require_same_training(path, card, own)
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
    state, notes = stored.newest_state(folder / CHECKPOINTS, card)
    for note in notes:
        watch.say(note)
    if state is not None:  # what a run that was stopped between saving and pruning left
        stored.prune(folder / CHECKPOINTS, int(state.meta_step))
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


def _in_words(metrics: Metrics) -> str:
    counts = {"exploded": int(metrics.exploded), "contained": int(metrics.contained)}
    notes = [f"{count} problems {name}" for name, count in counts.items() if count]
    return ", ".join([f"meta-objective {float(metrics.meta_objective):.4g}", *notes])


def _loop(
    folder: Path,
    card: Card,
    log: MetricsLog,
    watch: Watch,
    group: Group | None,
    meta_step: MetaStep,
    state: TrainingState,
) -> TrainingState:
    total, step = card.protocol.num_meta_steps, int(state.meta_step)
    checkpoints, scheduled = folder / CHECKPOINTS, set(stored.analysis_steps(total))
    card = dataclasses.replace(card, meta_step=step)
    hope, saved_at = Hope(card.protocol), time.monotonic()

    def lost() -> str | None:
        return None if group is None else group.lost()

    def save_for_analysis() -> None:
        stored.save_optimizer(stored.analysis_path(checkpoints, step), state.averaged, card)

    def save_for_resume() -> None:
        log.flush()
        stored.save_state(stored.resume_path(checkpoints, step), state, card)
        stored.prune(checkpoints, step)

    if step == 0:
        save_for_analysis()
    with (
        noted_signals() as noted,
        shown_progress(f"training {card.task}", total, step, watch.progress) as advance,
        waiting_thread() as waiter,
    ):
        while step < total:
            started = time.monotonic()
            future = waiter.submit(_completed, meta_step, state)
            following = _next(group, lambda: noted() or lost(), future)
            if following is None:
                save_for_resume()
                signum, where = noted(), f"stopped after meta-step {step} of {card.task}; saved"
                if signum is None:
                    raise LostProcess(f"{lost()}: {where}")
                raise Interrupted(signum, where)
            state, metrics = following
            numbers = {name: np.asarray(value).item() for name, value in vars(metrics).items()}
            seconds = round(time.monotonic() - started, 6)
            log.append(TrainingRow(meta_step=step, **numbers, seconds=seconds))
            step += 1
            card = dataclasses.replace(
                card, meta_step=step, meta_objective=numbers["meta_objective"]
            )
            hope.require(metrics, step)
            advance(step, _in_words(metrics))
            if step in scheduled:
                save_for_analysis()
            if step == total or time.monotonic() - saved_at >= watch.seconds_between_saves:
                save_for_resume()
                saved_at = time.monotonic()
            watch.on_step(step, metrics)
    return state
