"""Look for the stage at which a learned optimizer is momentum, through several trainings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optdyn.errors import UserError, require_positive_int
from optdyn.mechanisms._momentum_stage import (
    MomentumComparison,
    StageRow,
    StageThresholds,
    TunedMomentum,
)
from optdyn.meta_training._trainer import INIT_STREAM, MetaTraining, make_meta_step, start_training
from optdyn.optimizers._componentwise_rnn import Architecture, ComponentwiseRNN
from optdyn.random_streams import stream
from optdyn.tasks import Task


@dataclasses.dataclass(frozen=True)
class StageSearch:
    """Which trainings to look through, and where.

    One training a seed of ``seeds``, in their order, up to meta-step ``last``; of each,
    the optimizers at every ``every``-th meta-step from ``first`` on.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    first: int = 200
    last: int = 900
    every: int = 10

    def __post_init__(self) -> None:
        for name in ("first", "last", "every"):
            require_positive_int(name, getattr(self, name))
        if self.first > self.last:
            raise UserError(f"first: {self.first} is not allowed (at most last = {self.last})")
        if not self.seeds:
            raise UserError("seeds: () is not allowed (at least one)")

    def looks_at(self, meta_step: int) -> bool:
        """Whether the optimizer after ``meta_step`` meta-steps is one to look at."""
        within = self.first <= meta_step <= self.last
        return within and (meta_step - self.first) % self.every == 0


@dataclasses.dataclass(frozen=True)
class SeedStage:
    """What the training of one seed has to show.

    ``chosen``: the row that the rule names, on the problems that chose it (None where no
    checkpoint could be analysed). ``strain``: its largest measure over its threshold.
    ``met``: how many checkpoints of this training meet every threshold; ``near``: how
    many perform like tuned momentum, of ``looked_at``.
    """

    seed: int
    chosen: StageRow | None
    strain: float
    met: int
    near: int
    looked_at: int


@dataclasses.dataclass(frozen=True)
class MomentumStage:
    """The stage found: ``optimizer``, of the training with ``seed``.

    ``chosen`` is its row on the problems that chose it and ``judged`` on fresh ones, with
    ``tuned``, the best tuned momentum, scored on these. ``strain``: each measure of
    ``judged`` over its threshold. ``trainings``: every training looked through.
    """

    optimizer: ComponentwiseRNN
    seed: int
    chosen: StageRow
    judged: StageRow
    tuned: TunedMomentum
    strain: dict[str, float]
    trainings: tuple[SeedStage, ...]

    @property
    def met(self) -> bool:
        """Whether the stage meets every threshold on fresh problems."""
        return max(self.strain.values()) <= 1.0


Training = Callable[[int], "Iterator[tuple[int, ComponentwiseRNN]]"]
"""Gives the meta-step and the learned optimizer after each meta-step of a seed's training."""


def trainings_of(
    task: Task, architecture: Architecture, protocol: MetaTraining, mesh: Mesh | None = None
) -> Training:
    """Trainings of ``architecture`` from random weights, as `optdyn.runs.train` does them.

    The optimizer after a meta-step is `TrainingState.averaged`.
    """

    def training(seed: int) -> Iterator[tuple[int, ComponentwiseRNN]]:
        optimizer = ComponentwiseRNN.init(stream(seed, INIT_STREAM), architecture)
        state = start_training(optimizer, protocol)
        if mesh is not None:
            state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        meta_step = make_meta_step(task, protocol, seed, mesh)
        for count in range(1, protocol.num_meta_steps + 1):
            state = jax.block_until_ready(meta_step(state)[0])
            yield count, state.averaged

    return training


def find_momentum_stage(
    training: Training,
    choosing: MomentumComparison,
    fresh: MomentumComparison,
    *,
    plan: StageSearch = StageSearch(),
    thresholds: StageThresholds = StageThresholds(),
    on_training: Callable[[SeedStage], None] = lambda found: None,
) -> MomentumStage:
    """The first training of ``plan`` with a checkpoint that meets every threshold.

    Where none has one, that with the smallest largest strain. ``choosing`` holds the
    problems on which checkpoints are chosen; ``fresh`` has others, on which the chosen
    one is then judged, once. Both know the same tuned momentum.

    Raises `UserError` when no checkpoint of any training could be analysed.
    """
    looked, best = [], None
    for seed in plan.seeds:
        found, optimizer = _look_through(training(seed), seed, choosing, plan, thresholds)
        looked.append(found)
        on_training(found)
        if optimizer is not None and (best is None or found.strain < best[0].strain):
            best = found, optimizer
        if found.met:
            break
    if best is None or best[0].chosen is None:
        raise UserError("momentum stage: no checkpoint of any training could be analysed")
    found, optimizer = best
    judged = fresh.measure(best[0].chosen.meta_step, optimizer)
    return MomentumStage(
        optimizer=optimizer,
        seed=found.seed,
        chosen=best[0].chosen,
        judged=judged,
        tuned=fresh.tuned,
        strain=thresholds.strain(judged, fresh.tuned),
        trainings=tuple(looked),
    )


def _look_through(
    steps: Iterator[tuple[int, ComponentwiseRNN]],
    seed: int,
    choosing: MomentumComparison,
    plan: StageSearch,
    thresholds: StageThresholds,
) -> tuple[SeedStage, ComponentwiseRNN | None]:
    """One training; analysed are only the checkpoints that perform like tuned momentum."""
    rows, optimizers, looked_at, near = [], {}, 0, 0
    for meta_step, optimizer in steps:
        if meta_step > plan.last:
            break
        if not plan.looks_at(meta_step):
            continue
        looked_at += 1
        optimizer = jax.device_get(optimizer)
        score = choosing.validation.score(choosing.learned_curves(optimizer))
        if not thresholds.near(score, choosing.tuned):
            continue
        near += 1
        try:
            rows.append(choosing.measure(meta_step, optimizer))
        except UserError:  # no fixed point: it cannot be the stage
            continue
        optimizers[meta_step] = optimizer
    if not rows:
        return SeedStage(seed, None, float("inf"), 0, near, looked_at), None
    tuned = choosing.tuned
    chosen = thresholds.choose(rows, tuned)
    strain = max(thresholds.strain(chosen, tuned).values())
    met = sum(thresholds.met(row, tuned) for row in rows)
    return SeedStage(seed, chosen, strain, met, near, looked_at), optimizers[chosen.meta_step]
