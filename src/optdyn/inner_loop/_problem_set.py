"""A fixed set of problems on which optimizers are run and judged."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from optdyn.errors import require_positive_int
from optdyn.inner_loop._batching import map_runs
from optdyn.inner_loop._objective import Objective
from optdyn.inner_loop._statistics import MeanAndError, mean_and_error_along
from optdyn.inner_loop._unroll import losses_and_gradients, unroll
from optdyn.random_streams import keys_at, stream
from optdyn.tasks._base import Problem, Task
from optdyn.tasks._gate import sample_batch

if TYPE_CHECKING:
    import optax
    from jax.sharding import Mesh
    from jaxtyping import Array, Float

Make = Callable[..., "optax.GradientTransformation"]
"""Gives an optimizer from arrays, or pytrees of arrays."""

EVALUATION_STREAM = "evaluation problems"
VALIDATION_STREAM = "validation problems"

RECORDED_PROBLEMS = 4


@dataclasses.dataclass(frozen=True)
class ProblemSet:
    """The first ``number`` problems of ``task`` in a stream of keys, and the objective.

    ``seed`` and the name of the ``stream`` choose the problems: problem i is the same
    whatever ``number`` is.

    Raises `UserError` for a bad count or seed, what is no task, and for problems whose first
    losses the objective would divide by and cannot.
    """

    task: Task
    seed: int
    number: int
    objective: Objective
    stream: str

    def __post_init__(self) -> None:
        require_positive_int("num_problems", self.number)
        problems = self.problems
        if self.objective.normalization != "none":
            self.objective.require_first_losses(first_losses(problems))

    @functools.cached_property
    def problems(self) -> Problem:
        """The problems as one batch: arrays have a leading axis [number]."""
        keys = keys_at(stream(self.seed, self.stream), jnp.arange(self.number))
        return sample_batch(self.task, keys)

    def curves(
        self, make: Make, *, at_once: int | None = None, mesh: Mesh | None = None
    ) -> Callable[..., Float[np.ndarray, "problems steps"]]:
        """A function of ``make``'s arguments giving its optimizer's losses [problems, T + 1].

        Compiled once for all values of the arguments. ``at_once`` problems (default: all)
        are run together on each device of ``mesh``.
        """
        width = self.number if at_once is None else at_once

        @jax.jit
        def compiled(*arguments: Any) -> Float[Array, "problems steps"]:
            tx = make(*arguments)
            return map_runs(lambda problem: self.losses(tx, problem), (self.problems,), width, mesh)

        return lambda *arguments: np.asarray(compiled(*arguments))

    def losses(self, tx: optax.GradientTransformation, problem: Problem) -> Float[Array, " steps"]:
        """The losses [T + 1] of ``tx`` on one problem of the set."""
        return unroll(tx, problem, self.objective.num_steps).losses

    def gradient_histories(
        self, make: Make, num_components: int
    ) -> Callable[..., Float[np.ndarray, "components steps"]]:
        """As `curves`, giving gradient histories of up to ``num_components`` components.

        Taken from the first problems, evenly spread over their components. Histories that are
        not finite are left out.
        """
        few = jax.tree.map(lambda leaf: leaf[:RECORDED_PROBLEMS], self.problems)
        steps = self.objective.num_steps

        @jax.jit
        def recorded(*arguments: Any) -> Any:
            tx = make(*arguments)
            return jax.vmap(
                lambda problem: unroll(tx, problem, steps, record=("gradients",)).record
            )(few)["gradients"]

        def histories(*arguments: Any) -> Float[np.ndarray, "components steps"]:
            rows = np.concatenate(
                [
                    np.moveaxis(np.asarray(leaf), 1, -1).reshape(-1, steps)
                    for leaf in jax.tree.leaves(recorded(*arguments))
                ]
            )
            rows = rows[np.all(np.isfinite(rows), axis=1)]
            picked = np.linspace(0, len(rows) - 1, min(num_components, len(rows)))
            return rows[np.unique(picked.astype(int))]

        return histories

    def scores(self, losses: Float[np.ndarray, "problems steps"]) -> Float[np.ndarray, " problems"]:
        """The meta-objective of each problem; +inf where it is not finite."""
        each = np.asarray(self.objective.meta_loss(jnp.asarray(losses.T)), np.float64)
        return np.where(np.isfinite(each), each, np.inf)

    def score(self, losses: Float[np.ndarray, "problems steps"]) -> float:
        """The meta-objective averaged over the problems; +inf where a loss is not finite."""
        if not np.all(np.isfinite(losses)):
            return float("inf")
        return float(np.mean(self.objective.meta_loss(jnp.asarray(losses.T))))

    def fault_at_start(self) -> str | None:
        """What is not finite at the start of some of the problems, in words; None: nothing."""
        start = jax.jit(lambda batch: jax.lax.map(_first_step, batch, batch_size=8))
        losses, gradients = start(self.problems)
        leaves = [("loss", losses)] + [
            (f"gradient along params{jax.tree_util.keystr(path)}", leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        ]
        for name, leaf in leaves:
            bad = ~np.isfinite(np.asarray(leaf, np.float64)).reshape(self.number, -1).all(axis=1)
            if bad.any():
                many = f"{bad.sum()} of {self.number} problems"
                return f"the {name} is not finite at the start of {many}"
        return None

    def mean_curve(
        self, losses: Float[np.ndarray, "problems steps"]
    ) -> MeanAndError[Float[np.ndarray, " steps"]]:
        """`mean_curve` with the set's objective."""
        return mean_curve(losses, self.objective)


def first_losses(problems: Problem) -> Float[np.ndarray, " problems"]:
    """The loss at the start of each of a batch of problems."""
    return np.asarray(_starting(jax.tree.structure(problems))(problems), np.float64)


@functools.lru_cache(maxsize=8)
def _starting(kind: jax.tree_util.PyTreeDef) -> Callable[[Problem], Array]:
    """The compiled losses at the start, kept for the last kinds of problems."""
    return jax.jit(lambda batch: jax.lax.map(_first_loss, batch, batch_size=8))


def _first_loss(problem: Problem) -> Float[Array, ""]:
    return problem.whole(0).loss(problem.params).astype(jnp.float32)


def _first_step(problem: Problem) -> tuple[Array, Any]:
    return losses_and_gradients(problem.at_step(0), problem.params)


def mean_curve(
    losses: Float[np.ndarray, "problems steps"], objective: Objective = Objective()
) -> MeanAndError[Float[np.ndarray, " steps"]]:
    """Mean and standard error over problems of the loss curves, normalised as ``objective`` is.

    Raises `UserError` where the first losses cannot be divided by.
    """
    objective.require_first_losses(losses[:, 0])
    with np.errstate(over="ignore"):  # a loss that exploded is infinitely many times the first
        scaled = losses / losses[:, :1] if objective.normalization == "first" else losses
    return mean_and_error_along(scaled)
