"""Random search over the meta learning rate, the one number the paper tunes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optdyn.errors import UserError, require_number, require_positive_int
from optdyn.inner_loop._batching import runs_at_once
from optdyn.inner_loop._problem_set import VALIDATION_STREAM, ProblemSet
from optdyn.meta_training._trainer import INIT_STREAM, MetaTraining, make_meta_step, start_training
from optdyn.optimizers._componentwise_rnn import Architecture, ComponentwiseRNN
from optdyn.random_streams import keys_at, stream
from optdyn.tasks._base import Task

DRAWS_STREAM = "meta learning rates"


@dataclasses.dataclass(frozen=True)
class Row:
    """One training: its settings, and the ``meta_objective`` that it reached (inf: none)."""

    learning_rate: float
    num_meta_steps: int
    seed: int
    meta_objective: float


@dataclasses.dataclass(frozen=True)
class LearningRateSearch:
    """What to search: short trainings, then the best draws at the protocol's full length.

    Attributes:
        num_draws: meta learning rates to try, drawn evenly on a logarithmic axis
        low: smallest meta learning rate
        high: largest meta learning rate
        horizon: meta-steps of each short training
        num_finalists: how many of the best to train again, for all meta-steps
        num_problems: unseen problems that each trained optimizer is tried on, the same for all
    """

    num_draws: int = 16
    low: float = 1e-4
    high: float = 1e-1
    horizon: int = 500
    num_finalists: int = 3
    num_problems: int = 64

    def __post_init__(self) -> None:
        for name in ("num_draws", "horizon", "num_problems"):
            require_positive_int(name, getattr(self, name))
        require_positive_int("num_finalists", self.num_finalists, minimum=0)
        for name in ("low", "high"):
            require_number(name, getattr(self, name))
        if self.low > self.high:
            raise UserError(f"low: {self.low!r} is not allowed (at most high = {self.high!r})")

    def learning_rates(self, seed: int) -> list[float]:
        """The draws: number i depends on ``seed``, ``low``, ``high`` and i alone."""
        keys = keys_at(stream(seed, DRAWS_STREAM), jnp.arange(self.num_draws))
        uniform = jax.vmap(jax.random.uniform)(keys).tolist()
        low, high = math.log(self.low), math.log(self.high)
        return [math.exp(low + u * (high - low)) for u in uniform]

    def training_lengths(self, protocol: MetaTraining) -> list[int]:
        """The meta-steps of each training of the search, in their order."""
        if self.horizon >= protocol.num_meta_steps:
            return [protocol.num_meta_steps] * self.num_draws
        finalists = min(self.num_finalists, self.num_draws)
        return [self.horizon] * self.num_draws + [protocol.num_meta_steps] * finalists


@dataclasses.dataclass(frozen=True)
class Journal:
    """What is known of a search from before, and who hears of what is new.

    ``done``: rows of an interrupted search, taken over instead of being computed again;
    ``on_row`` is given each new one, and ``on_step`` each meta-step, with its learning rate.
    """

    done: Sequence[Row] = ()
    on_row: Callable[[Row], None] = lambda row: None
    on_step: Callable[[float, int], None] = lambda learning_rate, meta_step: None


def search_learning_rate(
    task: Task,
    architecture: Architecture,
    protocol: MetaTraining,
    seed: int,
    search: LearningRateSearch = LearningRateSearch(),
    *,
    mesh: Mesh | None = None,
    journal: Journal = Journal(),
) -> list[Row]:
    """One row for each training of the search, draws first, then finalists.

    ``protocol.learning_rate`` is replaced by each draw. A meta-objective that
    is not finite counts, and is returned, as infinite.
    """
    validate = make_validator(task, architecture, protocol, seed, search.num_problems)
    trained = make_trainer(task, architecture, protocol, seed, mesh, journal.on_step)
    computed = {(row.learning_rate, row.num_meta_steps): row for row in journal.done}

    def row(learning_rate: float, num_meta_steps: int) -> Row:
        key = (learning_rate, num_meta_steps)
        if key not in computed:
            objective = validate(trained(learning_rate, num_meta_steps))
            computed[key] = Row(learning_rate, num_meta_steps, seed, objective)
            journal.on_row(computed[key])
        return computed[key]

    horizon = min(search.horizon, protocol.num_meta_steps)
    draws = [row(rate, horizon) for rate in search.learning_rates(seed)]
    if horizon == protocol.num_meta_steps:
        return draws
    finalists = ranked(draws)[: search.num_finalists]
    return draws + [row(r.learning_rate, protocol.num_meta_steps) for r in finalists]


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Rows from best to worst: those trained longest first, then by meta-objective."""
    return sorted(rows, key=lambda row: (-row.num_meta_steps, row.meta_objective))


def make_validator(
    task: Task, architecture: Architecture, protocol: MetaTraining, seed: int, num_problems: int
) -> Callable[[ComponentwiseRNN], float]:
    """The compiled meta-objective on validation problems, infinite where it is not finite."""
    problems = ProblemSet(task, seed, num_problems, protocol.objective, VALIDATION_STREAM)
    like = ComponentwiseRNN.init(stream(0, "any weights"), architecture)
    at_once = runs_at_once(like.as_optax(), problems.problems)
    curves = problems.curves(ComponentwiseRNN.as_optax, at_once=at_once)
    return lambda optimizer: problems.score(curves(optimizer))


def make_trainer(
    task: Task,
    architecture: Architecture,
    protocol: MetaTraining,
    seed: int,
    mesh: Mesh | None,
    on_step: Callable[[float, int], None] = lambda rate, step: None,
) -> Callable[[float, int], ComponentwiseRNN]:
    """A function from learning rate and number of meta-steps to the optimizer they give.

    All learning rates share one compiled meta-step.
    """
    unit_rate = dataclasses.replace(protocol, learning_rate=1.0)
    meta_step = make_meta_step(task, unit_rate, seed, mesh)

    def trained(learning_rate: float, num_meta_steps: int) -> ComponentwiseRNN:
        optimizer = ComponentwiseRNN.init(stream(seed, INIT_STREAM), architecture)
        state = start_training(optimizer, unit_rate)
        if mesh is not None:
            state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        for count in range(1, num_meta_steps + 1):
            state = jax.block_until_ready(meta_step(state, learning_rate)[0])
            on_step(learning_rate, count)
        return jax.device_get(state.optimizer)

    return trained
