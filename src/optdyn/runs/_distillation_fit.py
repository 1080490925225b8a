"""Readable optimizers of every size fitted to a task, in its run folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from optdyn.distillation import (
    LADDER,
    Demonstration,
    Distilled,
    Fitting,
    Guess,
    extended,
    fit,
    from_values,
    imitate,
    imitation_error,
    leading_momentum,
    tuned_in_parts,
)
from optdyn.dynamics import step_map
from optdyn.errors import UserError
from optdyn.evaluation import VALIDATION_STREAM
from optdyn.inner_loop import Objective
from optdyn.mechanisms._measurement import visit
from optdyn.mechanisms._momentum_stage import operating_points
from optdyn.mechanisms._nonlinear import update_function
from optdyn.meta_training import MetaTraining
from optdyn.optimizers._componentwise_rnn import ComponentwiseRNN
from optdyn.runs._checkpoints import fingerprint
from optdyn.runs._plain import result_plain
from optdyn.runs._progress import progress
from optdyn.runs._results import HeldOut
from optdyn.runs._store import stored_result, write_result
from optdyn.runs._tuning_run import load_tables
from optdyn.search import best
from optdyn.tasks import Task, describe_task
from optdyn.tasks._description import with_options

FOLDER = "distillation"
FITTED = f"{FOLDER}/fitted.json"
"""The fitted sizes, by their place in a task's part of a run folder, and where they ship."""
JUDGING = ("test_problems", "ablation_problems")
"""The choices of a `Distillation` that change nothing in a fit."""
DEMONSTRATION_SEED_OFFSET = 1
"""Demonstrations come from validation problems of another seed than those that choose a size."""
LEADING, EXTENDED, IMITATED = "leading mode", "the size before", "imitation"
UNCHANGED = "the size before, unchanged"


@dataclasses.dataclass(frozen=True)
class Distillation:
    """How readable optimizers are fitted and judged.

    ``imitation_steps`` and ``meta_steps`` (at ``learning_rate``, see `Fitting`) are for
    each part of a size. A meta-step meets ``batch_size`` problems, and bounds their
    cotangents by ``max_cotangent_norm``. ``task_options`` replace fields of the task in
    meta-steps (a network's data may be fewer). What the learned optimizer does, to guess
    from and to imitate, is seen on ``demonstrations`` problems. ``validation_problems``
    choose starts, iterates and a size. All sizes are judged on the first
    ``test_problems``; the learned optimizer without a mechanism on ``ablation_problems``
    of them.
    """

    imitation_steps: int = 0
    meta_steps: int = 150
    learning_rate: float = 5e-2
    batch_size: int = 32
    max_cotangent_norm: float | None = 100.0
    task_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    demonstrations: int = 256
    validation_problems: int = 256
    test_problems: int = 64
    ablation_problems: int = 64


@dataclasses.dataclass(frozen=True)
class Distilling:
    """What to distil with: the learned optimizer's ``protocol``, the choices, and the seed.

    ``command``: the command line that does the same, for the result's readers.
    """

    protocol: MetaTraining
    how: Distillation
    seed: int
    command: str

    def held_out(self) -> HeldOut:
        """The validation problems that choose, and the meta-objective on them."""
        return HeldOut(self.seed, self.how.validation_problems, self.protocol.objective)


@dataclasses.dataclass(frozen=True)
class FittedSize:
    """A readable optimizer fitted to a task (see `fit_sizes`).

    ``added``: the part that it has and the size before has not; ``start``: what its fit
    began from, the best of ``starts`` by the meta-objective on ``validation`` problems.
    """

    name: str
    added: str
    numbers: int
    start: str
    starts: dict[str, float]
    values: dict[str, dict[str, Any]]
    validation: float
    imitation_error: float

    def __post_init__(self) -> None:
        from_values(self.values)


@dataclasses.dataclass(frozen=True)
class FittedInputs:
    """What a fit depends on.

    ``distillation``: the choices of `Distillation` that change a fit; ``learned``: the
    learned optimizer's fingerprint; ``tuned``: hyperparameters by baseline.
    """

    task_options: dict[str, Any]
    protocol: MetaTraining
    seed: int
    distillation: dict[str, Any]
    learned: str
    tuned: dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class FittedResult:
    """``distillation/fitted.json``: readable optimizers fitted to a task, smallest first.

    ``command``: the command line that fitted them.
    """

    task: str
    command: str
    inputs: FittedInputs
    sizes: list[FittedSize]

    def __post_init__(self) -> None:
        added = tuple(size.added for size in self.sizes)
        if not added or added != LADDER[: len(added)]:
            raise UserError("sizes: not the sizes of readable optimizers")


@dataclasses.dataclass(frozen=True)
class StoredSize:
    """``distillation/size-….json``: one size, so that an interrupted fit goes on."""

    inputs: FittedInputs
    row: FittedSize


def fit_sizes(
    folder: Path, task: Task, optimizer: ComponentwiseRNN, what: Distilling
) -> FittedResult:
    """Fit `LADDER`'s sizes one after the other; the result is stored in ``folder``.

    Each size is fitted from the best, on validation problems, of these: the size before it
    with the new part; that fitted to imitate the learned ``optimizer``; and the tuned
    baselines of ``folder`` that have the new part. It is never worse there than the size
    before, nor than a tuned baseline that its parts can express: if its fit is worse, such
    a one takes its place, with idle parts. The last size is the first that does as well as
    the learned optimizer, within the standard error over problems of their difference.

    An interrupted fit goes on after its last size; one with other inputs starts over.
    """
    described, how, protocol = describe_task(task), what.how, what.protocol
    tuned = {name: best(t).hyperparameters for name, t in load_tables(folder).items()}
    inputs = FittedInputs(
        task_options=described.options,
        protocol=protocol,
        seed=what.seed,
        distillation=result_plain({n: v for n, v in vars(how).items() if n not in JUDGING}),
        learned=fingerprint(optimizer),
        tuned=tuned,
    )
    done = stored_result(folder / FITTED, FittedResult, inputs)
    if done is not None:
        return done
    held_out = what.held_out()
    validation = held_out.problems(task, VALIDATION_STREAM)
    losses = validation.curves(Distilled.as_optax)
    ladder = _Ladder(
        fitted_on=with_options(task, how.task_options),
        protocol=dataclasses.replace(
            protocol, batch_size=how.batch_size, max_cotangent_norm=how.max_cotangent_norm
        ),
        how=how,
        seed=what.seed,
        analysed=_analysed(
            task, optimizer, dataclasses.replace(held_out, num_problems=how.demonstrations)
        ),
        tuned=tuned_in_parts(tuned),
        # One program serves every size.
        score=lambda readable: validation.score(losses(readable.whole())),
    )
    learned = validation.curves(optimizer.as_optax)()
    level = validation.score(learned)
    rows: list[FittedSize] = []
    with progress("distilling", len(LADDER)) as advance:
        for count, added in enumerate(LADDER, start=1):
            path = folder / FOLDER / f"size-{count}.json"
            stored = stored_result(path, StoredSize, inputs)
            if stored is None:
                before = from_values(rows[-1].values) if rows else None
                stored = StoredSize(inputs, ladder.size(before, added, count))
                write_result(path, stored)
            row = stored.row
            rows.append(row)
            advance(count, f"{row.name}: {_level(row.validation)}, learned {_level(level)}")
            readable = losses(from_values(row.values).whole())
            if as_good(readable, learned, protocol.objective):
                break
    fitted = FittedResult(described.name, what.command, inputs, rows)
    write_result(folder / FITTED, fitted)
    return fitted


def as_good(
    candidate: Float[np.ndarray, "problems steps"],
    other: Float[np.ndarray, "problems steps"],
    objective: Objective,
) -> bool:
    """Whether losses on the same problems make a meta-objective as low as another's.

    Within the standard error of their mean difference. A loss that is not finite is worse
    than any that is.
    """
    if not (np.all(np.isfinite(candidate)) and np.all(np.isfinite(other))):
        return bool(np.all(np.isfinite(candidate)))
    each = [np.asarray(objective.meta_loss(jnp.asarray(a.T))) for a in (candidate, other)]
    difference = each[0] - each[1]
    error = np.std(difference, ddof=1) / np.sqrt(difference.size) if difference.size > 1 else 0.0
    return bool(np.mean(difference) <= error)


@dataclasses.dataclass(frozen=True)
class _Ladder:
    """What every size of a task is fitted with; ``score``: the validation meta-objective."""

    fitted_on: Task
    protocol: MetaTraining
    how: Distillation
    seed: int
    analysed: tuple[Guess, Demonstration]
    tuned: Mapping[str, Distilled]
    score: Callable[[Distilled], float]

    def size(self, before: Distilled | None, added: str, count: int) -> FittedSize:
        """The row of the ``count``-th size, which adds a part to the one before."""
        how = self.how
        steps = Fitting(how.imitation_steps * count, how.meta_steps * count, how.learning_rate)
        first = extended(before, added, self.analysed[0])
        contained = self._contained(before, first)
        starts = self._starts(before, first, contained, steps)
        scores = {name: self.score(tx) for name, tx in {**contained, **starts}.items()}
        start = min(starts, key=scores.__getitem__)
        fitted = fit(starts[start], self.fitted_on, self.protocol, steps, self.seed, self.score)
        found = self.score(fitted)
        least = min(contained, key=scores.__getitem__, default=start)
        if scores[least] < found:
            start, fitted, found = least, contained[least], scores[least]
        return FittedSize(
            name=fitted.name,
            added=added,
            numbers=fitted.size,
            start=start,
            starts=scores,
            values=fitted.values(),
            validation=found,
            imitation_error=imitation_error(fitted, self.analysed[1]),
        )

    def _contained(self, before: Distilled | None, like: Distilled) -> dict[str, Distilled]:
        """What has no other parts than ``like``, in its form, by name."""
        found = {} if before is None else {UNCHANGED: before.widened(like)}
        for name, tuned in self.tuned.items():
            if tuned.parts().keys() <= like.parts().keys():
                found[f"tuned {name}"] = tuned.widened(like)
        return found

    def _starts(
        self,
        before: Distilled | None,
        first: Distilled,
        contained: dict[str, Distilled],
        steps: Fitting,
    ) -> dict[str, Distilled]:
        """What a size may be fitted from, by name: an idle part would hardly learn."""
        found = {LEADING if before is None else EXTENDED: first}
        if steps.imitation_steps:
            found[IMITATED] = imitate(first, self.analysed[1], steps)
        new = first.parts().keys() - (set() if before is None else before.parts().keys())
        for name, tuned in self.tuned.items():
            if new & tuned.parts().keys() and f"tuned {name}" in contained:
                found[f"tuned {name}"] = contained[f"tuned {name}"]
        return found


def _analysed(
    task: Task, optimizer: ComponentwiseRNN, seen: HeldOut
) -> tuple[Guess, Demonstration]:
    """What the ladder starts from: modes, saturation, and what the optimizer does."""
    other = dataclasses.replace(seen, seed=seen.seed + DEMONSTRATION_SEED_OFFSET)
    elsewhere = other.problems(task, VALIDATION_STREAM)
    visited = visit(optimizer.as_optax(), elsewhere.problems, seen.objective.num_steps)
    steps = visited.gradients.shape[-1]
    shown = Demonstration(visited.gradients.reshape(-1, steps), visited.updates.reshape(-1, steps))
    modes = operating_points(elsewhere)(optimizer).modes
    sizes = np.abs(shown.gradients[shown.gradients != 0])
    top = float(np.max(sizes))
    threshold = update_function(step_map(optimizer), np.geomspace(1e-8, 10.0, 81) * top).threshold
    guess = Guess(
        *leading_momentum(modes),
        threshold=threshold if math.isfinite(threshold) else top,
        gradient=float(np.median(sizes)),
    )
    return guess, shown


def _level(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "diverges"
