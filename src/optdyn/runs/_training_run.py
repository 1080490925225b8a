"""Meta-training in a run folder: resumable, and the same to the bit when resumed."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import jax
from jax.sharding import NamedSharding, PartitionSpec

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
from optdyn.runs._cards import Card, require_architecture
from optdyn.runs._checkpoints import (
    analysis_path,
    analysis_steps,
    fingerprint,
    load_optimizer,
    newest_state,
    prune,
    require_own_name,
    resume_path,
    save_optimizer,
    save_state,
)
from optdyn.runs._interrupts import (
    Interrupted,
    LostProcess,
    noted_signals,
    result_unless,
    waiting_thread,
)
from optdyn.runs._metrics_log import MetricsLog
from optdyn.runs._progress import progress
from optdyn.runs._run_folder import RunFolder, first_difference
from optdyn.runs._versions import versions
from optdyn.tasks import make_task

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from optdyn.distributed import Group

METRICS = "training.jsonl"
CHECKPOINTS = "checkpoints"
SECONDS_BETWEEN_SAVES = 30.0
HOPELESS_AFTER = 20

Step = tuple[TrainingState, Metrics]
MetaStep = Callable[[TrainingState], Step]


def train(
    run: RunFolder,
    task_name: str,
    task_options: dict[str, Any],
    architecture: Architecture,
    protocol: MetaTraining,
    seed: int,
    *,
    mesh: Mesh | None = None,
    group: Group | None = None,
    initial: ComponentwiseRNN | None = None,
    seconds_between_saves: float = SECONDS_BETWEEN_SAVES,
    on_step: Callable[[int, Metrics], None] = lambda meta_step, metrics: None,
) -> TrainingState:
    """Meta-train in ``run``, from where it was left; returns the final state.

    In the task's folder: ``training.jsonl`` (row k: `Metrics` of the optimizer
    after k meta-steps, and the ``seconds`` that step took) and ``checkpoints/``
    (see `checkpoints`). A run that is finished is left untouched. Weights are
    the same to the bit however often the run was interrupted, for one machine
    and device count. ``initial``: meta-parameters to fine-tune from. ``mesh``:
    see `meta_value_and_grad`. ``group``: the processes that train together, of which
    this is the first; the others call `train_along`. ``on_step`` is called after each
    meta-step.

    Raises `UserError` for settings that differ from the folder's, and with
    advice after `HOPELESS_AFTER` meta-steps in a row that gave no meta-gradient;
    `Interrupted` on SIGTERM or SIGINT, `LostProcess` when another process of the group
    went, once a resume checkpoint is written.
    """
    task = make_task(task_name, **task_options)
    if initial is not None:
        require_architecture(initial.architecture, architecture, "initial weights")
    card = Card(
        task=task_name,
        task_options=task_options,
        architecture=architecture,
        protocol=protocol,
        seed=seed,
        initial=None if initial is None else fingerprint(initial),
        versions=versions(),
    )
    run.settle(f"train/{task_name}", card.settings())
    folder = run.task_folder(task_name)
    state = _resumed(folder, card)
    if state is None:
        optimizer = initial or ComponentwiseRNN.init(stream(seed, INIT_STREAM), architecture)
        state = start_training(optimizer, protocol)
    if group is not None:
        mesh, state = group.mesh, group.from_first(state)
    elif mesh is not None:
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    if int(state.meta_step) >= protocol.num_meta_steps:
        print(f"{task_name}: meta-training is finished ({protocol.num_meta_steps} meta-steps)")
        return state
    meta_step = make_meta_step(task, protocol, seed, mesh)
    print(f"{task_name}: compiling, which can take a minute", flush=True)
    with MetricsLog(folder / METRICS, resume_at=int(state.meta_step)) as log:
        loop = _Loop(folder, card, log, seconds_between_saves, group)
        return loop.run(meta_step, state, on_step)


def load_trained(run: RunFolder, task_name: str, path: Path) -> tuple[ComponentwiseRNN, Card]:
    """The learned optimizer in one of the run's checkpoints of a task, and its card.

    Raises `UserError` for a damaged file, and for one of another training.
    """
    optimizer, card = load_optimizer(path)
    require_own_name(path, card)
    if card.task != task_name:
        raise UserError(f"{path}: was trained on {card.task!r}, not on {task_name!r}")
    known = run.settings().get(f"train/{task_name}")
    difference = known and first_difference(known, card.settings())
    if difference:
        name, there, here = difference
        raise UserError(f"{path}: has {name} = {here!r}, this folder's training {there!r}")
    return optimizer, card


def train_along(
    task_name: str,
    task_options: dict[str, Any],
    architecture: Architecture,
    protocol: MetaTraining,
    seed: int,
    group: Group,
) -> None:
    """The part in `train` of a process that is not the first: it computes, and writes nothing.

    Raises `Interrupted` on SIGTERM or SIGINT.
    """
    optimizer = ComponentwiseRNN.init(stream(seed, INIT_STREAM), architecture)
    state = group.from_first(start_training(optimizer, protocol))
    meta_step = make_meta_step(make_task(task_name, **task_options), protocol, seed, group.mesh)
    with noted_signals() as noted, waiting_thread() as waiter:
        for _ in range(int(state.meta_step), protocol.num_meta_steps):
            following = _next(group, noted, waiter.submit(_completed, meta_step, state))
            if following is None:
                raise Interrupted(noted() or 0, f"process {group.processes.process_id} stopped")
            state, _ = following


def _resumed(folder: Path, card: Card) -> TrainingState | None:
    state, notes = newest_state(folder / CHECKPOINTS, card)
    for note in notes:
        print(note, flush=True)
    if state is not None:  # what a run that was stopped between saving and pruning left
        prune(folder / CHECKPOINTS, int(state.meta_step))
    if state is not None and 0 < int(state.meta_step) < card.protocol.num_meta_steps:
        print(f"{card.task}: going on from meta-step {int(state.meta_step)}", flush=True)
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


def _in_words(metrics: Metrics) -> str:
    counts = {"exploded": int(metrics.exploded), "contained": int(metrics.contained)}
    told = [f"{count} problems {name}" for name, count in counts.items() if count]
    return ", ".join([f"meta-objective {float(metrics.meta_objective):.4g}", *told])


@dataclasses.dataclass
class _Loop:
    """The loop's surroundings: where it saves, and what it has seen."""

    folder: Path
    card: Card
    log: MetricsLog
    seconds_between_saves: float
    group: Group | None = None
    meta_objective: float | None = None

    def run(
        self, meta_step: MetaStep, state: TrainingState, on_step: Callable[[int, Metrics], None]
    ) -> TrainingState:
        total, step = self.card.protocol.num_meta_steps, int(state.meta_step)
        scheduled = set(analysis_steps(total))
        hopeless, saved_at = 0, time.monotonic()
        if step == 0:
            self._save_for_analysis(state, step)
        with (
            noted_signals() as noted,
            progress(f"training {self.card.task}", total, step) as advance,
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
                hopeless = hopeless + 1 if self._learned_nothing(metrics) else 0
                self._require_hope(hopeless, step)
                step += 1
                advance(step, _in_words(metrics))
                if step in scheduled:
                    self._save_for_analysis(state, step)
                if step == total or time.monotonic() - saved_at >= self.seconds_between_saves:
                    self._save_for_resume(state, step)
                    saved_at = time.monotonic()
                on_step(step, metrics)
        return state

    def _record(self, step: int, metrics: Metrics, seconds: float) -> None:
        row = dataclasses.asdict(jax.device_get(metrics))
        self.meta_objective = float(metrics.meta_objective)
        self.log.append({"meta_step": step, **row, "seconds": round(seconds, 6)})

    def _learned_nothing(self, metrics: Metrics) -> bool:
        all_exploded = int(metrics.exploded) == self.card.protocol.batch_size
        return all_exploded or not math.isfinite(float(metrics.meta_objective))

    def _require_hope(self, hopeless: int, step: int) -> None:
        if hopeless >= HOPELESS_AFTER:
            raise UserError(
                f"--learning-rate: every problem exploded in each of the {hopeless} meta-steps up "
                f"to {step} (lower --learning-rate or --output-scale, "
                "or set --max-cotangent-norm 1)"
            )

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
