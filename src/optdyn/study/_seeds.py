"""Headline numbers of a recipe's training, and their spread over training seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import jax
import numpy as np

from optdyn.distillation import linear_account
from optdyn.dynamics import step_map
from optdyn.dynamics._operating_point import operating_point
from optdyn.errors import UserError
from optdyn.evaluation import evaluate_on, paired_difference
from optdyn.mechanisms._measurement import measure, visit
from optdyn.mechanisms._momentum_stage import HISTORIES

if TYPE_CHECKING:
    import optax

    from optdyn.dynamics import Eigenmodes, StepMap
    from optdyn.inner_loop import ProblemSet
    from optdyn.optimizers import ComponentwiseRNN

EXPLAINED = 16
"""Problems, the first of the set, on which mechanisms are measured."""

Headlines = dict[str, float]
"""Numbers that decide headline claims, by name; NaN where one does not exist."""


@dataclasses.dataclass(frozen=True)
class SeedSpread:
    """One headline number over training seeds: ``values``, in the seeds' order.

    ``mean`` and ``standard_deviation`` (over seeds, not of the mean) leave out values that are
    not finite; the deviation is infinite for fewer than two.
    """

    values: tuple[float, ...]
    mean: float
    standard_deviation: float
    smallest: float
    largest: float


def spread_over_seeds(headlines: Iterable[Headlines]) -> dict[str, SeedSpread]:
    """The spread of each number over ``headlines``, one a training.

    Raises `UserError` when there are none, or they are not of the same numbers.
    """
    rows = list(headlines)
    if not rows:
        raise UserError("seeds: no training to take a spread over (at least one)")
    for row in rows[1:]:
        if row.keys() != rows[0].keys():
            different = ", ".join(sorted(row.keys() ^ rows[0].keys()))
            raise UserError(f"seeds: the trainings tell different numbers ({different})")
    return {name: _spread([row[name] for row in rows]) for name in rows[0]}


def reproduce_seeds(
    trained: Callable[[int], ComponentwiseRNN],
    measured: Callable[[ComponentwiseRNN], Headlines],
    seeds: Iterable[int],
    *,
    on_seed: Callable[[int, Headlines], None] = lambda seed, headlines: None,
    done: Mapping[int, Headlines] | None = None,
) -> dict[str, SeedSpread]:
    """Train once a seed, measure each training, and give the spread of every number.

    ``trained`` gives the learned optimizer of a seed, ``measured`` its headline numbers: for
    the paper's, `headline_numbers` with the same problems and baselines for all seeds, so
    that the spread is that of training alone. ``on_seed`` sees each new training's numbers;
    ``done`` holds those of earlier ones, which are taken over instead of being computed again.
    """
    found, chosen = dict(done or {}), list(seeds)
    for seed in chosen:
        if seed not in found:
            found[seed] = measured(trained(seed))
            on_seed(seed, found[seed])
    return spread_over_seeds(found[seed] for seed in chosen)


def headline_numbers(
    optimizer: ComponentwiseRNN,
    problems: ProblemSet,
    baselines: Mapping[str, optax.GradientTransformation],
) -> Headlines:
    """What headline claims hang on, for one learned optimizer.

    Fig. 9, for each baseline: the relative ``advantage_over_…`` in meta-objective, and
    ``standard_errors_below_…`` (the paired difference). Appendix A, against the best of the
    baselines: the fractions of the advantage that ``linear_dynamics``, the
    ``initial_transient`` and ``nonlinearity`` explain. The main text's mechanisms:
    ``saturation`` (part of the linear update left at a problem's largest gradient),
    ``warm_up`` and ``decay`` of the learning rate without a gradient, and ``adaptation`` (the
    effective rate at large constant gradients over that at small ones).

    Raises `UserError` without a baseline, and where there is no fixed point.
    """
    if not baselines:
        raise UserError("baselines: none given (at least one to compare with)")
    tx = optimizer.as_optax()
    learned = evaluate_on(tx, problems)
    numbers, best = {"meta_objective": learned.mean}, ("", np.inf)
    for name, baseline in baselines.items():
        other = evaluate_on(baseline, problems)
        difference = paired_difference(learned, other)
        numbers[f"advantage_over_{name}"] = 1.0 - learned.mean / other.mean
        numbers[f"standard_errors_below_{name}"] = -difference.mean / difference.standard_error
        if other.mean <= best[1]:
            best = name, other.mean
    step = step_map(optimizer)
    histories = problems.gradient_histories(lambda o: o.as_optax(), HISTORIES)(optimizer)
    point = operating_point(step, histories)
    account = linear_account(problems, optimizer, point, baselines[best[0]])
    for part in ("linear_dynamics", "initial_transient", "nonlinearity"):
        numbers[part] = getattr(account, part).fraction
    return {**numbers, **_mechanisms(tx, step, point.modes, problems)}


def _mechanisms(
    tx: optax.GradientTransformation, step: StepMap, modes: Eigenmodes, problems: ProblemSet
) -> Headlines:
    few = jax.tree.map(lambda leaf: leaf[:EXPLAINED], problems.problems)
    found = measure(step, modes, visit(tx, few, problems.objective.num_steps))
    start, peak, end = found.schedule[0], np.max(found.schedule), found.schedule[-1]
    return {
        "saturation": found.largest_part.mean,
        "warm_up": float(peak / start) if start > 0 else float("nan"),
        "decay": float(end / peak) if peak > 0 else float("nan"),
        "adaptation": found.adaptation_ratio.mean,
    }


def _spread(values: list[float]) -> SeedSpread:
    known = np.array([value for value in values if np.isfinite(value)])
    nothing = len(known) == 0
    return SeedSpread(
        values=tuple(values),
        mean=float("nan") if nothing else float(np.mean(known)),
        standard_deviation=float(np.std(known, ddof=1)) if len(known) > 1 else float("inf"),
        smallest=float("nan") if nothing else float(np.min(known)),
        largest=float("nan") if nothing else float(np.max(known)),
    )
