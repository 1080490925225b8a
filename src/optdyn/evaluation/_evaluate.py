"""How well an optimizer does on held-out problems (Fig. 9)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Float64, PyTree

from optdyn.errors import UserError, require_positive_int, shown
from optdyn.in_words import InWords
from optdyn.inner_loop._batching import map_runs, runs_at_once
from optdyn.inner_loop._objective import Objective
from optdyn.inner_loop._problem_set import EVALUATION_STREAM, ProblemSet
from optdyn.inner_loop._statistics import MeanAndError, mean_and_error
from optdyn.tasks import Problem, Task

FEWEST_PROBLEMS = 8
"""The problems in a chunk, where more do not fit at once."""


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation(InWords):
    """An optimizer's results on the test problems.

    ``losses`` [problems, T + 1]: each problem's loss before the first step and
    after each one. ``meta_objectives`` [problems]: `Objective.meta_loss` of each curve,
    +inf where it is not finite. ``mean`` and ``standard_error`` are theirs over
    problems. ``exploded``: how many problems blew up
    (`Objective.exploded`).
    """

    losses: Float32[np.ndarray, "problems steps"]
    meta_objectives: Float64[np.ndarray, " problems"]
    mean: float
    standard_error: float
    exploded: int

    def verdict(self) -> list[str]:
        """The meta-objective, the losses before and after, and how many problems exploded."""
        number, columns = self.losses.shape
        first, last = np.median(self.losses[:, 0]), np.median(self.losses[:, -1])
        best, worst = np.min(self.meta_objectives), np.max(self.meta_objectives)
        return [
            f"meta-objective {self.mean:.4g} ± {self.standard_error:.2g} (mean ± standard error)",
            f"over {number} problems of {columns - 1} steps, from {best:.4g} to {worst:.4g}",
            f"median loss: {first:.4g} before the first step, {last:.4g} after the last",
            f"exploded problems: {self.exploded or 'none'}",
        ]


def evaluate(
    tx: optax.GradientTransformation,
    task: Task,
    *,
    seed: int,
    num_problems: int = 64,
    num_steps: int = 200,
    normalization: str = "none",
    objective: Objective | None = None,
) -> Evaluation:
    """Run ``tx`` for ``num_steps`` on problems of ``task`` that neither training nor tuning sees.

    The same seed gives the same problems, so that optimizers can be compared
    problem by problem. ``objective``: in place of ``num_steps`` and ``normalization``.

    ``num_problems`` problems are drawn, the same ones for the same ``seed``.

    Raises `UserError` for bad counts, an unknown normalization, what is no optimizer or
    task, or an objective next to a number of steps or a normalization.
    """
    given = Objective(num_steps, normalization)
    if objective is not None and given != Objective():
        raise UserError(
            "objective: give it alone, or num_steps and normalization instead (it holds both)"
        )
    problems = ProblemSet(
        task,
        seed=seed,
        number=num_problems,
        objective=given if objective is None else objective,
        stream=EVALUATION_STREAM,
    )
    return evaluate_on(tx, problems)


def evaluate_on(
    tx: optax.GradientTransformation,
    problems: ProblemSet,
    *,
    at_once: int | None = None,
    mesh: Mesh | None = None,
    on_chunk: Callable[[np.ndarray], None] = lambda losses: None,
    done: Float[np.ndarray, "some steps"] | None = None,
) -> Evaluation:
    """Run ``tx`` on each of ``problems``, some of them at once.

    ``at_once`` of them (default: `runs_at_once`) are held in memory together on each
    device of ``mesh``. ``on_chunk`` is given the losses [problems so far, T + 1] after each
    chunk of problems; passed back as ``done``, an evaluation goes on after them, to the
    same bits (for one device count).

    Raises `UserError` for a bad count or what is no optimizer.
    """
    if not all(callable(getattr(tx, name, None)) for name in ("init", "update")):
        raise UserError(
            f"optimizer: {shown(tx)} is not allowed (an optax.GradientTransformation, such as "
            "as_optax() of a learned one)"
        )
    run = evaluator(lambda: tx, problems, at_once=at_once, mesh=mesh, on_chunk=on_chunk, done=done)
    return run()


def evaluator(
    make: Callable[..., optax.GradientTransformation],
    problems: ProblemSet,
    *,
    at_once: int | None = None,
    mesh: Mesh | None = None,
    on_chunk: Callable[[np.ndarray], None] = lambda losses: None,
    done: Float[np.ndarray, "some steps"] | None = None,
) -> Callable[..., Evaluation]:
    """`evaluate_on` as a function of ``make``'s arguments, compiled once for all their values.

    They are arrays or pytrees of arrays, and ``make`` gives the optimizer; the
    rest is as in `evaluate_on`.

    Raises `UserError` for a bad count.
    """
    if at_once is not None:
        require_positive_int("at_once", at_once)
    batch, number = problems.problems, problems.number

    def curve(problem: Problem, arguments: tuple[PyTree, ...]) -> Float[Array, " steps"]:
        return problems.losses(make(*arguments), problem)

    @functools.partial(jax.jit, static_argnums=2)
    def curves(some: Problem, arguments: tuple[PyTree, ...], width: int) -> Array:
        count = jax.tree.leaves(some)[0].shape[0]
        each = jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *jnp.shape(a))), arguments)
        return map_runs(curve, (some, each), width, mesh)

    def run(*arguments: PyTree) -> Evaluation:
        width = runs_at_once(make(*arguments), batch) if at_once is None else at_once
        devices = 1 if mesh is None else mesh.size
        chunk = min(number, max(FEWEST_PROBLEMS, width * devices))
        parts = [] if done is None else [done]
        for start in range(0 if done is None else len(done), number, chunk):
            rows = np.arange(start, min(start + chunk, number))
            # Rows are repeated in a short last chunk so that one compiled shape serves all.
            filled = np.resize(rows, chunk)
            some = jax.tree.map(lambda leaf: leaf[filled], batch)  # noqa: B023
            parts.append(np.asarray(curves(some, arguments, width))[: rows.size])
            on_chunk(np.concatenate(parts))
        return _evaluation(np.concatenate(parts), problems)

    return run


def _evaluation(losses: Float[np.ndarray, "problems steps"], problems: ProblemSet) -> Evaluation:
    each = problems.scores(losses)
    over_problems = mean_and_error(each)
    return Evaluation(
        losses=losses,
        meta_objectives=each,
        mean=over_problems.mean,
        standard_error=over_problems.standard_error,
        exploded=int(jnp.sum(problems.objective.exploded(jnp.asarray(losses.T)))),
    )


def paired_difference(a: Evaluation, b: Evaluation) -> MeanAndError[float]:
    """``a``'s meta-objectives minus ``b``'s, problem by problem: below zero, ``a`` is better.

    Where one diverged the mean is infinite, where both did on a problem NaN.

    Raises `UserError` when the two were not evaluated on the same problems.
    """
    same = a.losses.shape == b.losses.shape and np.allclose(
        a.losses[:, 0], b.losses[:, 0], rtol=1e-4
    )
    if not same:
        raise UserError(
            "paired difference: the two evaluations are of different problems or step counts "
            "(evaluate both with the same task, seed, num_problems and num_steps)"
        )
    with np.errstate(invalid="ignore"):  # both diverged: no difference can be told
        differences = a.meta_objectives - b.meta_objectives
    return mean_and_error(differences)
