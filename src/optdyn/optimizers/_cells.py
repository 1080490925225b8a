"""Recurrent cells: ``h_{k+1} = F(h_k, u_k)``, one row a component.

A cell is a frozen description with ``units``; its weights are a dict of
arrays. ``V_*`` [inputs, units] multiplies the input, ``W_*`` [units, units] the
state, ``b_*`` [units] is added. The first ``units`` entries of a state are the
output that the readout sees.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import sys
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from optdyn.errors import UserError, require_positive_int, shown
from optdyn.optimizers import _fused_gru as fused_gru
from optdyn.optimizers import _fused_update as fused_update
from optdyn.optimizers._gru_kernel import Inputs, State, Weights, gru_reference, gru_step
from optdyn.random_streams import stream

CELL_METHODS = ("init", "step", "state_size")
# So many rows are compared, up to this part of the largest number.
ROWS, ROWS_AGREE = 3, 1e-4


class Cell(Protocol):
    """What every cell offers. It is made from its number of units.

    A row of ``step`` is one component: what it gives depends on that row alone.
    """

    @property
    def units(self) -> int: ...
    @property
    def state_size(self) -> int: ...
    def init(self, key: Key[Array, ""], inputs: int) -> Weights: ...
    def step(self, weights: Weights, h: State, u: Inputs) -> State: ...


@functools.partial(jax.jit, static_argnums=(1, 2, 3))  # one program, not one an operation
def init_gates(key: Key[Array, ""], gates: str, inputs: int, units: int) -> Weights:
    """Glorot-normal input weights, orthogonal state weights and zero biases for each gate."""
    glorot = jax.nn.initializers.glorot_normal()
    orthogonal = jax.nn.initializers.orthogonal()
    weights: Weights = {}
    for gate, gate_key in zip(gates, jax.random.split(key, len(gates)), strict=True):
        key_input, key_state = jax.random.split(gate_key)
        weights[f"V_{gate}"] = glorot(key_input, (inputs, units))
        weights[f"W_{gate}"] = orthogonal(key_state, (units, units))
        weights[f"b_{gate}"] = jnp.zeros((units,))
    return weights


def _preactivation(weights: Weights, gate: str, h: State, u: Inputs) -> State:
    bias = weights[f"b_{gate}"][None, :]
    return u @ weights[f"V_{gate}"] + h @ weights[f"W_{gate}"] + bias


@dataclasses.dataclass(frozen=True)
class _Gated:
    """The parts that the cells share: a size and gate-wise initial weights."""

    units: int = 32
    gates = ""

    def __post_init__(self) -> None:
        require_positive_int("units", self.units)

    @property
    def state_size(self) -> int:
        return self.units

    def init(self, key: Key[Array, ""], inputs: int) -> Weights:
        return init_gates(key, self.gates, inputs, self.units)


@dataclasses.dataclass(frozen=True)
class GRU(_Gated):
    """Gated recurrent unit (Cho et al. 2014, eqs. 5–8).

    ``reset="before"`` (Cho et al.): the candidate is ``tanh(V u + W (r ⊙ h) + b)``;
    ``reset="after"`` (cuDNN, PyTorch): ``tanh(V u + b + r ⊙ (W h))``.
    """

    reset: str = "before"
    gates = "zrc"

    def step(self, weights: Weights, h: State, u: Inputs) -> State:
        return gru_reference(self.reset, weights, h, u)


@dataclasses.dataclass(frozen=True)
class VanillaRNN(_Gated):
    """``h' = tanh(V u + W h + b)`` (Elman 1990)."""

    gates = "h"

    def step(self, weights: Weights, h: State, u: Inputs) -> State:
        return jnp.tanh(_preactivation(weights, "h", h, u))


@dataclasses.dataclass(frozen=True)
class UGRNN(_Gated):
    """Update-gate RNN (Collins et al. 2017): ``h' = z ⊙ h + (1 − z) ⊙ c``."""

    gates = "zc"

    def step(self, weights: Weights, h: State, u: Inputs) -> State:
        z = jax.nn.sigmoid(_preactivation(weights, "z", h, u))
        c = jnp.tanh(_preactivation(weights, "c", h, u))
        return c + z * (h - c)


@dataclasses.dataclass(frozen=True)
class LSTM(_Gated):
    """Long short-term memory (Hochreiter & Schmidhuber 1997); state [output, memory].

    The forget gate's bias starts at 1.
    """

    gates = "ifog"

    @property
    def state_size(self) -> int:
        return 2 * self.units

    def init(self, key: Key[Array, ""], inputs: int) -> Weights:
        weights = super().init(key, inputs)
        return {**weights, "b_f": jnp.ones((self.units,))}

    def step(self, weights: Weights, h: State, u: Inputs) -> State:
        output, memory = jnp.split(h, 2, axis=-1)
        i, f, o = (jax.nn.sigmoid(_preactivation(weights, gate, output, u)) for gate in "ifo")
        memory = f * memory + i * jnp.tanh(_preactivation(weights, "g", output, u))
        return jnp.concatenate([o * jnp.tanh(memory), memory], axis=-1)


CELLS: dict[str, Callable[[int], Cell]] = {
    "gru": GRU,
    "gru_reset_after": functools.partial(GRU, reset="after"),
    "lstm": LSTM,
    "rnn": VanillaRNN,
    "ugrnn": UGRNN,
}


def cell_class(cell: object) -> Callable[[int], Cell]:
    """What makes the cell that an architecture names: by name in `CELLS`, or a class of one's own.

    A class is an object, or ``module:Class`` of a module that has been imported. Nothing is
    imported here, so that the text may come from a file.

    Raises `UserError` for another name, or what is no class of cells.
    """
    if isinstance(cell, str) and cell in CELLS:
        return CELLS[cell]
    found = cell
    if isinstance(cell, str) and ":" in cell:
        module, _, name = cell.partition(":")
        try:
            found = operator.attrgetter(name)(sys.modules[module])
        except (KeyError, AttributeError):
            raise UserError(
                f"cell: {shown(cell)} is not known here (import the module that defines it first)"
            ) from None
    if not (isinstance(found, type) and all(hasattr(found, name) for name in CELL_METHODS)):
        raise UserError(
            f"cell: unknown value {shown(cell)} (allowed: {', '.join(CELLS)}, or a class with "
            f"{', '.join(CELL_METHODS)})"
        )
    return found


@functools.lru_cache(maxsize=64)
def require_rows_apart(make: Callable[[int], Cell], units: int, inputs: int) -> None:
    """Compare one step of three rows with a step of each row alone.

    In meta-training the rows of all problems of a batch are one array.

    Raises `UserError` where rows change each other.
    """
    cell = make(units)
    # The optimizer may be made within a compiled function; and accelerators round products.
    with jax.ensure_compile_time_eval(), jax.default_matmul_precision("highest"):
        key = stream(0, "rows of a cell")
        keys = (jax.random.fold_in(key, k) for k in itertools.count())

        def moved(leaf: Array) -> Array:
            # Weights that start at zero may be what mixes rows.
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                return leaf
            return leaf + 0.1 * jax.random.normal(next(keys), jnp.shape(leaf), leaf.dtype)

        weights = jax.tree.map(moved, cell.init(next(keys), inputs))
        h = jax.random.normal(next(keys), (ROWS, cell.state_size))
        u = jax.random.normal(next(keys), (ROWS, inputs))
        together = cell.step(weights, h, u)
        alone = [cell.step(weights, h[k : k + 1], u[k : k + 1]) for k in range(ROWS)]
        far = jnp.max(jnp.abs(together - jnp.concatenate(alone)))
        apart = bool(far <= ROWS_AGREE * jnp.max(jnp.abs(together)))
    if not apart:
        raise UserError(
            f"cell: rows of {type(cell).__qualname__}.step are not independent: three at once and "
            "each alone give other states (allowed: cells that treat each row by itself, without "
            "a mean or a norm over rows)"
        )


def step_and_readout(
    cell: Cell,
    weights: Weights,
    w: Float[Array, " units"],
    *,
    reverse_only: bool = False,
    stored: Any = None,
) -> fused_gru.StepAndReadout:
    """``(h, u) -> (h', h'[:, :units] @ w)``, native where there is native code.

    h [..., state] has as many components as u [N, inputs], in any number of axes, as a copy of
    it would be made for another shape; the readout has shape [N].

    ``reverse_only``: see `fused_gru.bind`; it changes GRUs alone. ``stored``: the type of the
    state h (None: w's own); what is narrower is widened before the step, and h' rounded after it.
    """
    stored = w.dtype if stored is None else stored
    as_it_is = jnp.dtype(stored) == w.dtype
    step = cell.step
    if reverse_only and isinstance(cell, GRU):
        step = functools.partial(gru_step, cell.reset)
    if isinstance(cell, GRU) and not as_it_is:
        weights = fused_update.rounded(weights, stored)

    def plain(h: Array, u: Array) -> tuple[Array, Array]:
        following = step(weights, h.astype(w.dtype), u)
        return following.astype(h.dtype), following[:, : cell.units] @ w

    if not (isinstance(cell, GRU) and cell.reset == "before"):
        return _on_rows(plain)
    if not reverse_only and fused_update.usable(cell.units, w.dtype, stored):
        fused = fused_update.bind(weights, w, stored)
    elif as_it_is and fused_gru.usable(cell.units, w.dtype):
        fused = _on_rows(fused_gru.bind(weights, w, reverse_only=reverse_only))
    else:
        return _on_rows(plain)
    few = _on_rows(plain)
    return lambda h, u: (fused if u.shape[0] >= fused_gru.SMALLEST_ROWS else few)(h, u)


def _on_rows(step: fused_gru.StepAndReadout) -> fused_gru.StepAndReadout:
    """``step``, which takes h as [N, state], for h of any number of axes."""

    def shaped(h: Array, u: Array) -> tuple[Array, Array]:
        following, readout = step(h.reshape(-1, h.shape[-1]), u)
        return following.reshape(h.shape), readout

    return shaped
