"""How well an optimizer does on held-out problems (Fig. 9)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from optdyn.errors import UserError, require_choice, require_positive_int, shown
from optdyn.inner_loop._batching import map_runs, runs_at_once
from optdyn.inner_loop._objective import NORMALIZATIONS, meta_loss
from optdyn.inner_loop._unroll import unroll
from optdyn.meta_training._containment import exploded
from optdyn.random_streams import keys_at, stream
from optdyn.tasks import Problem, sample_batch

if TYPE_CHECKING:
    import optax
    from jax.sharding import Mesh
    from jaxtyping import Array, Float, PyTree

    from optdyn.tasks import Task

EVALUATION_STREAM = "evaluation problems"

FEWEST_PROBLEMS = 8
"""The problems in a chunk, where more do not fit at once."""


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """An optimizer's results on the test problems.

    ``losses`` [problems, T + 1]: each problem's loss before the first step and
    after each one. ``meta_objectives`` [problems]: `meta_loss` of each curve,
    +inf where it is not finite. ``mean`` and ``standard_error`` are theirs over
    problems. ``exploded``: how many problems blew up
    (`optdyn.meta_training._containment.exploded`).
    """

    losses: Float[np.ndarray, "problems steps"]
    meta_objectives: Float[np.ndarray, " problems"]
    mean: float
    standard_error: float
    exploded: int


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """Mean and standard error of one optimizer's meta-objectives minus another's.

    Where one diverged the mean is infinite, where both did on a problem NaN.
    """

    mean: float
    standard_error: float


def evaluate(
    tx: optax.GradientTransformation,
    task: Task,
    *,
    seed: int,
    num_problems: int = 64,
    num_steps: int = 200,
    normalization: str = "none",
    at_once: int | None = None,
    mesh: Mesh | None = None,
    on_chunk: Callable[[np.ndarray], None] = lambda losses: None,
    done: Float[np.ndarray, "some steps"] | None = None,
) -> Evaluation:
    """Run ``tx`` for ``num_steps`` on problems of ``task`` that neither training nor tuning sees.

    The same seed gives the same problems, so that optimizers can be compared
    problem by problem. Of the ``num_problems``, ``at_once`` (default: `runs_at_once`)
    are held in memory together on each device of ``mesh``.

    ``on_chunk`` is given the losses [problems so far, T + 1] after each chunk of
    problems; passed back as ``done``, an evaluation goes on after them, to the
    same bits (for one device count).

    Raises `UserError` for bad counts, an unknown normalization, or what is no optimizer or task.
    """
    if not all(callable(getattr(tx, name, None)) for name in ("init", "update")):
        raise UserError(
            f"optimizer: {shown(tx)} is not allowed (an optax.GradientTransformation, such as "
            "as_optax() of a learned one)"
        )
    run = evaluator(
        lambda: tx,
        task,
        seed=seed,
        num_problems=num_problems,
        num_steps=num_steps,
        normalization=normalization,
        at_once=at_once,
        mesh=mesh,
        on_chunk=on_chunk,
        done=done,
    )
    return run()


def evaluator(
    make: Callable[..., optax.GradientTransformation],
    task: Task,
    *,
    seed: int,
    num_problems: int = 64,
    num_steps: int = 200,
    normalization: str = "none",
    at_once: int | None = None,
    mesh: Mesh | None = None,
    on_chunk: Callable[[np.ndarray], None] = lambda losses: None,
    done: Float[np.ndarray, "some steps"] | None = None,
) -> Callable[..., Evaluation]:
    """`evaluate` as a function of ``make``'s arguments, compiled once for all their values.

    They are arrays or pytrees of arrays, and ``make`` gives the optimizer; the
    rest is as in `evaluate`.

    Raises `UserError` for bad counts or an unknown normalization.
    """
    require_positive_int("num_problems", num_problems)
    require_positive_int("num_steps", num_steps)
    if at_once is not None:
        require_positive_int("at_once", at_once)
    require_choice("normalization", normalization, list(NORMALIZATIONS))
    keys = keys_at(stream(seed, EVALUATION_STREAM), jnp.arange(num_problems))
    batch = sample_batch(task, keys)

    def curve(problem: Problem, arguments: tuple[PyTree, ...]) -> Float[Array, " steps"]:
        return unroll(make(*arguments), problem, num_steps).losses

    @functools.partial(jax.jit, static_argnums=2)
    def curves(problems: Problem, arguments: tuple[PyTree, ...], width: int) -> Array:
        count = jax.tree.leaves(problems)[0].shape[0]
        each = jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *jnp.shape(a))), arguments)
        return map_runs(curve, (problems, each), width, mesh)

    def run(*arguments: PyTree) -> Evaluation:
        width = runs_at_once(make(*arguments), batch) if at_once is None else at_once
        devices = 1 if mesh is None else mesh.size
        chunk = min(num_problems, max(FEWEST_PROBLEMS, width * devices))
        parts = [] if done is None else [done]
        for start in range(0 if done is None else len(done), num_problems, chunk):
            rows = np.arange(start, min(start + chunk, num_problems))
            # Rows are repeated in a short last chunk so that one compiled shape serves all.
            filled = np.resize(rows, chunk)
            problems = jax.tree.map(lambda leaf: leaf[filled], batch)  # noqa: B023
            parts.append(np.asarray(curves(problems, arguments, width))[: rows.size])
            on_chunk(np.concatenate(parts))
        return _evaluation(np.concatenate(parts), normalization)

    return run


def _evaluation(losses: Float[np.ndarray, "problems steps"], normalization: str) -> Evaluation:
    by_step = jnp.asarray(losses.T)
    each = np.asarray(meta_loss(by_step, normalization), np.float64)
    each = np.where(np.isfinite(each), each, np.inf)
    mean, standard_error = _mean_and_standard_error(each)
    return Evaluation(
        losses=losses,
        meta_objectives=each,
        mean=mean,
        standard_error=standard_error,
        exploded=int(jnp.sum(exploded(by_step))),
    )


def paired_difference(a: Evaluation, b: Evaluation) -> PairedDifference:
    """``a``'s meta-objectives minus ``b``'s, problem by problem: below zero, ``a`` is better.

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
    return PairedDifference(*_mean_and_standard_error(differences))


def _mean_and_standard_error(values: np.ndarray) -> tuple[float, float]:
    """Standard error: sample standard deviation over √n; infinite where any value is not finite."""
    with np.errstate(invalid="ignore"):
        mean = float(np.mean(values))
    if not np.all(np.isfinite(values)) or values.size < 2:
        return mean, math.inf
    return mean, float(np.std(values, ddof=1)) / math.sqrt(values.size)
