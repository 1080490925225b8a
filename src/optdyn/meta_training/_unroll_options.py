"""How one meta-gradient is computed, and what is told of it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from optdyn.errors import require_choice, require_number, require_positive_int
from optdyn.inner_loop._objective import Objective
from optdyn.optimizers._state_precision import STATE_DTYPES
from optdyn.tasks._base import Task

LARGEST_MEMORY = 2**63 - 1
GRADIENTS = ("exact", "es", "combined")

Keys = Key[Array, " batch"]
Counts = Bool[Array, " batch"] | None
"""Which of some problems are of the batch (None: all)."""
Tallies = tuple[Array, Array, Array]
"""Over problems: the meta-losses, which are counted, and which were contained."""


class MetaOptimizer(Protocol):
    """A pytree of meta-parameters that gives an optimizer.

    An attribute ``componentwise`` that is true says that its optimizer treats each number
    alike and by its own gradients alone. Problems are then solved side by side in one array,
    which is faster; any other optimizer is given each problem's own pytree.
    ``as_optax`` may take ``reverse_only=True``, to give an update with a faster reverse
    pass that forward mode cannot differentiate.
    """

    def as_optax(self) -> optax.GradientTransformation: ...


def reversible(optimizer: MetaOptimizer) -> optax.GradientTransformation:
    """``optimizer`` as an optax pair, with the fastest reverse pass that it offers."""
    if "reverse_only" in inspect.signature(optimizer.as_optax).parameters:
        return optimizer.as_optax(reverse_only=True)  # type: ignore[call-arg]
    return optimizer.as_optax()


class Setting(NamedTuple):
    """What every estimator is given beside the optimizer and the problems.

    ``parts``: in how many the components of each problem are spread (`spread_components`).
    """

    task: Task
    options: UnrollOptions
    parts: int = 1


class Estimator(NamedTuple):
    """An estimator of the meta-gradient, as sums over problems and what is made of them.

    ``sums(optimizer, keys, counts, setting)``: a pytree of sums over the problems drawn from
    ``keys`` [batch]; ``counts`` [batch] says which of them are of the batch, the others filling
    it up (None: all). The sums of several devices or chunks add up to those of all their problems.
    ``finish(sums, batch_size)``: the value, the gradient and the diagnostics.
    """

    sums: Callable[..., Any]
    finish: Callable[[Any, int], tuple[Array, Any, Diagnostics]]


@dataclasses.dataclass(frozen=True)
class UnrollOptions:
    """How one meta-gradient is computed; the defaults give the paper's, exactly.

    ``gradient``: the estimator, one of `GRADIENTS` (see `meta_value_and_grad`). ``es_sigma``:
    the standard deviation of evolution strategies' perturbations of each meta-parameter;
    ``es_pairs``: how many antithetic pairs of them each problem gets.
    ``max_cotangent_norm`` bounds the norm of each problem's back-propagated
    cotangent at every inner step: a departure from the exact meta-gradient for
    tasks where that explodes (None: exact). ``segment``: see `unroll`.
    ``chunk``: problems held in memory at once on each device, the rest being
    accumulated (None: all). ``memory_budget``: bytes that all devices together may
    need for what the reverse pass keeps; ``segment`` and ``chunk``, where they are
    None, are then chosen by `memory.fit_to_budget` (None: no limit). ``state_dtype``:
    see `store_state_in`.

    Raises `UserError` for a number or a name that is not allowed.
    """

    num_steps: int = 200
    normalization: str = "none"
    max_cotangent_norm: float | None = None
    segment: int | None = None
    chunk: int | None = None
    memory_budget: int | None = None
    state_dtype: str = "float32"
    gradient: str = "exact"
    es_sigma: float = 0.01
    es_pairs: int = 1

    def __post_init__(self) -> None:
        _ = self.objective
        require_choice("state_dtype", self.state_dtype, list(STATE_DTYPES))
        require_choice("gradient", self.gradient, list(GRADIENTS))
        require_number("es_sigma", self.es_sigma)
        require_positive_int("es_pairs", self.es_pairs)
        if self.max_cotangent_norm is not None:
            require_number("max_cotangent_norm", self.max_cotangent_norm)
        for name in ("segment", "chunk"):
            if getattr(self, name) is not None:
                require_positive_int(name, getattr(self, name))
        if self.memory_budget is not None:
            require_positive_int("memory_budget", self.memory_budget, maximum=LARGEST_MEMORY)

    @property
    def objective(self) -> Objective:
        """What each unroll is judged by."""
        return Objective(self.num_steps, self.normalization)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Diagnostics:
    """Counts over the batch of one meta-gradient."""

    exploded: Int[Array, ""]
    """Problems whose loss blew up, or which were held; they are left out of ``value``."""
    contained: Int[Array, ""]
    """Problems with a gradient replaced forward, a cotangent changed in the reverse pass, or
    (by evolution strategies) a loss counted as less than it was."""
    exact_share: Float[Array, ""]
    """The weight of the exact meta-gradient, averaged over the meta-parameters: 1 where
    it is taken alone, 0 where evolution strategies are."""
