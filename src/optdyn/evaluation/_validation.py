"""Loss curves of many optimizers on one set of validation problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from optdyn.inner_loop._objective import meta_loss
from optdyn.inner_loop._unroll import unroll
from optdyn.random_streams import keys_at, stream
from optdyn.search._learning_rate import VALIDATION_STREAM
from optdyn.tasks import Task, sample_batch

if TYPE_CHECKING:
    import optax
    from jaxtyping import Array, Float


class Validation:
    """A fixed set of problems from the validation stream, on which optimizers are compared.

    ``seed`` and ``num_problems`` choose the problems; ``num_steps`` and
    ``normalization`` are the meta-objective's. Problems are run ``at_once``
    at a time.
    """

    def __init__(
        self,
        task: Task,
        *,
        seed: int,
        num_problems: int,
        num_steps: int,
        normalization: str,
        at_once: int | None = None,
    ) -> None:
        keys = keys_at(stream(seed, VALIDATION_STREAM), jnp.arange(num_problems))
        self.problems = sample_batch(task, keys)
        self.num_steps = num_steps
        self.normalization = normalization
        self.at_once = num_problems if at_once is None else at_once

    def compiled(
        self, make: Callable[..., optax.GradientTransformation]
    ) -> Callable[..., Float[np.ndarray, "problems steps"]]:
        """A function of ``make``'s arguments giving its optimizer's losses [problems, T + 1].

        Compiled once for all values of the arguments (arrays or pytrees of them).
        """

        @jax.jit
        def curves(*arguments: Any) -> Float[Array, "problems steps"]:
            tx = make(*arguments)
            return jax.lax.map(
                lambda problem: unroll(tx, problem, self.num_steps).losses,
                self.problems,
                batch_size=self.at_once,
            )

        return lambda *arguments: np.asarray(curves(*arguments))

    def meta_objective(self, losses: Float[np.ndarray, "problems steps"]) -> float:
        """The meta-objective averaged over the problems; inf where a loss is not finite."""
        if not np.all(np.isfinite(losses)):
            return float("inf")
        return float(np.mean(meta_loss(jnp.asarray(losses.T), self.normalization)))

    def compiled_gradients(
        self, make: Callable[..., optax.GradientTransformation], num_components: int
    ) -> Callable[..., Float[np.ndarray, "components steps"]]:
        """As `compiled`, giving gradient histories of up to ``num_components`` components.

        Taken from the first problems, evenly spread over their components.
        """
        few = jax.tree.map(lambda leaf: leaf[: min(4, self.problem_count)], self.problems)

        @jax.jit
        def recorded(*arguments: Any) -> Any:
            tx = make(*arguments)
            return jax.vmap(
                lambda problem: unroll(tx, problem, self.num_steps, record=("gradients",)).record
            )(few)["gradients"]

        def histories(*arguments: Any) -> Float[np.ndarray, "components steps"]:
            rows = np.concatenate(
                [
                    np.moveaxis(np.asarray(leaf), 1, -1).reshape(-1, self.num_steps)
                    for leaf in jax.tree.leaves(recorded(*arguments))
                ]
            )
            rows = rows[np.all(np.isfinite(rows), axis=1)]
            picked = np.linspace(0, len(rows) - 1, min(num_components, len(rows)))
            return rows[np.unique(picked.astype(int))]

        return histories

    @property
    def problem_count(self) -> int:
        """The number of problems."""
        return int(jax.tree.leaves(self.problems)[0].shape[0])


def mean_curve(
    losses: Float[np.ndarray, "problems steps"], normalization: str
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    """Mean and standard error over problems of the loss curves, normalised as the objective is."""
    scaled = losses / losses[:, :1] if normalization == "first" else losses
    with np.errstate(over="ignore", invalid="ignore"):  # a problem may have diverged
        mean = np.mean(scaled, axis=0)
        if len(scaled) < 2:
            return mean, np.zeros_like(mean)
        return mean, np.std(scaled, axis=0, ddof=1) / np.sqrt(len(scaled))
