"""Readable optimizers of every size fitted to a task, kept in its run folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

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
from optdyn.dynamics._operating_point import operating_point
from optdyn.inner_loop._objective import Objective
from optdyn.mechanisms._measurement import visit
from optdyn.mechanisms._nonlinear import update_function
from optdyn.optimizers._componentwise_rnn import ComponentwiseRNN
from optdyn.runs import _forms as forms
from optdyn.runs._analysis_run import AnalysisSettings
from optdyn.runs._checkpoints import fingerprint
from optdyn.runs._files import to_plain, write_signed_json
from optdyn.runs._fitted_sizes import (
    FITTED,
    FITTED_FORM,
    FOLDER,
    FORMAT,
    FORMAT_VERSION,
    SIZE_FIELDS,
)
from optdyn.runs._mechanisms_run import HISTORIES, kept_result
from optdyn.runs._progress import progress
from optdyn.runs._tuning_run import load_tables
from optdyn.search import best
from optdyn.study._recipes import Distillation
from optdyn.tasks import make_task

if TYPE_CHECKING:
    from jaxtyping import Float

    from optdyn.meta_training import MetaTraining
    from optdyn.tasks import Task

JUDGING = ("test_problems", "ablation_problems")
"""The choices of a `Distillation` that change nothing in a fit."""
DEMONSTRATION_SEED_OFFSET = 1
"""Demonstrations come from validation problems of another seed than those that choose a size."""
LEADING, EXTENDED, IMITATED = "leading mode", "the size before", "imitation"
UNCHANGED = "the size before, unchanged"


def fit_sizes(
    folder: Path,
    task_name: str,
    task_options: dict[str, Any],
    optimizer: ComponentwiseRNN,
    protocol: MetaTraining,
    how: Distillation,
    seed: int,
    command: str,
) -> dict[str, Any]:
    """Fit `LADDER`'s sizes one after the other; what `read_fitted` gives, kept in ``folder``.

    Each size is fitted from the best, on validation problems, of the size before it
    with the new part, that fitted to imitate the learned ``optimizer``, and the tuned
    baselines of ``folder`` that have the new part. It is no worse there than the size
    before, nor than any tuned baseline that its parts can express: else it is that one,
    with idle parts. The last size is the first that does as well as the learned
    optimizer, within the standard error over problems of their difference.
    ``command``: the command line that does this.

    An interrupted fit goes on after its last size; one with other inputs starts over.
    """
    tuned = {name: best(t).hyperparameters for name, t in load_tables(folder).items()}
    judged = judged_by(protocol, how, seed)
    inputs = to_plain(
        {
            "task_options": task_options,
            "protocol": protocol,
            "seed": seed,
            "distillation": {n: v for n, v in vars(how).items() if n not in JUDGING},
            "learned": fingerprint(optimizer),
            "tuned": tuned,
        }
    )
    path = folder / FITTED
    done = kept_result(path, inputs, FITTED_FORM)
    if done is not None:
        return done
    task = make_task(task_name, **task_options)
    validation = judged.problems(task)
    losses = validation.curves(Distilled.as_optax)
    ladder = _Ladder(
        fitted_on=make_task(task_name, **{**task_options, **how.task_options}),
        protocol=dataclasses.replace(
            protocol, batch_size=how.batch_size, max_cotangent_norm=how.max_cotangent_norm
        ),
        how=how,
        seed=seed,
        analysed=_analysed(
            task, optimizer, dataclasses.replace(judged, num_problems=how.demonstrations)
        ),
        tuned=tuned_in_parts(tuned),
        # One program serves every size.
        score=lambda readable: validation.score(losses(readable.whole())),
    )
    learned = validation.curves(optimizer.as_optax)()
    level = validation.score(learned)
    rows: list[dict[str, Any]] = []
    with progress("distilling", len(LADDER)) as advance:
        for count, added in enumerate(LADDER, start=1):
            kept = folder / FOLDER / f"size-{count}.json"
            done = kept_result(kept, inputs, forms.fields(row=forms.fields(**SIZE_FIELDS)))
            if done is None:
                before = from_values(rows[-1]["values"]) if rows else None
                done = to_plain({"inputs": inputs, "row": ladder.size(before, added, count)})
                write_signed_json(kept, done)
            rows.append(done["row"])
            found = done["row"]["validation"]
            advance(count, f"{done['row']['name']}: {_told(found)}, learned {_told(level)}")
            readable = losses(from_values(done["row"]["values"]).whole())
            if as_good(readable, learned, protocol.objective):
                break
    fitted = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "task": task_name,
        "command": command,
        "inputs": inputs,
        "sizes": rows,
    }
    write_signed_json(path, fitted)
    return to_plain(fitted)


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


def judged_by(protocol: MetaTraining, how: Distillation, seed: int) -> AnalysisSettings:
    """The validation problems that choose, and the meta-objective on them."""
    return AnalysisSettings(
        seed=seed,
        num_problems=how.validation_problems,
        num_steps=protocol.unroll_length,
        normalization=protocol.normalization,
    )


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

    def size(self, before: Distilled | None, added: str, count: int) -> dict[str, Any]:
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
        return {
            "name": fitted.name,
            "added": added,
            "numbers": fitted.size,
            "start": start,
            "starts": scores,
            "values": fitted.values(),
            "validation": found,
            "imitation_error": imitation_error(fitted, self.analysed[1]),
        }

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
    task: Task, optimizer: ComponentwiseRNN, seen: AnalysisSettings
) -> tuple[Guess, Demonstration]:
    """What the ladder starts from: modes, saturation, and what the optimizer does."""
    seed = seen.seed + DEMONSTRATION_SEED_OFFSET
    elsewhere = dataclasses.replace(seen, seed=seed).problems(task)
    visited = visit(optimizer.as_optax(), elsewhere.problems, seen.num_steps)
    steps = visited.gradients.shape[-1]
    shown = Demonstration(visited.gradients.reshape(-1, steps), visited.updates.reshape(-1, steps))
    histories = elsewhere.gradient_histories(ComponentwiseRNN.as_optax, HISTORIES)
    modes = operating_point(step_map(optimizer), histories(optimizer)).modes
    sizes = np.abs(shown.gradients[shown.gradients != 0])
    top = float(np.max(sizes))
    threshold = update_function(step_map(optimizer), np.geomspace(1e-8, 10.0, 81) * top).threshold
    guess = Guess(
        *leading_momentum(modes),
        threshold=threshold if math.isfinite(threshold) else top,
        gradient=float(np.median(sizes)),
    )
    return guess, shown


def _told(value: float | None) -> str:
    return "diverges" if value is None or not math.isfinite(value) else f"{value:.4g}"
