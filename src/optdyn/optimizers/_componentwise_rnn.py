"""The learned optimizer: one recurrent network shared by all components."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from optdyn.errors import UserError, require_choice, require_number, shown
from optdyn.optimizers._cells import CELLS, Cell, cell_class, require_rows_apart, step_and_readout
from optdyn.optimizers._encodings import Encoding
from optdyn.optimizers._gradient_range import GradientRange, OneWarning
from optdyn.optimizers._gru_kernel import Weights
from optdyn.optimizers._state_precision import STATE_DTYPES


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Everything about a learned optimizer but its meta-parameters.

    Attributes:
        cell: kind of recurrent network: gru, gru_reset_after (as in PyTorch), lstm, rnn, ugrnn, or
            a class of your own (on the command line module:Class)
        units: hidden units of the network (the paper's largest has 256)
        encoding: how a gradient enters the network
        output_scale: factor on the network's output; a larger one makes larger steps

    Raises `UserError` for an unknown cell, no `Encoding`, or a size or scale not positive.
    """

    cell: Any = "gru"
    units: int = 32
    encoding: Encoding = Encoding()
    output_scale: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.cell, str) and self.cell in CELLS):
            object.__setattr__(self, "cell", cell_class(self.cell))
        if not isinstance(self.encoding, Encoding):
            raise UserError(f"encoding: {shown(self.encoding)} is not allowed (an Encoding)")
        require_number("output_scale", self.output_scale)
        self.make_cell()

    def make_cell(self) -> Cell:
        """The cell this architecture names. Raises `UserError` on a bad size."""
        return cell_class(self.cell)(self.units)

    @property
    def cell_name(self) -> str:
        """The cell's name, in files and messages: ``module:Class`` for a class of one's own."""
        if isinstance(self.cell, str):
            return self.cell
        return f"{self.cell.__module__}:{self.cell.__qualname__}"


class RNNState(NamedTuple):
    """The optimizer's state: the parameters' tree, each leaf [..., state] with one axis more.

    So it follows the parameters' sharding, and `optax.tree_map_params` reaches it.
    """

    h: PyTree[Float[Array, "... state"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ComponentwiseRNN:
    """``h_{k+1} = F(h_k, g_k)``, ``x_{k+1} = x_k + s·wᵀh_{k+1}`` (eqs. 1, 2).

    A pytree whose leaves are the meta-parameters θ: the cell's ``weights``, the
    readout ``w`` [units] and the initial state ``h0`` [state size].
    ``architecture`` names the cell F, the input encoding and the output scale s.
    ``trained_on``: the sizes of gradients that it was trained on, where they are known. Other
    sizes make the optimizer warn once, outside of ``jax.jit``; `GradientRange.watch` warns
    inside, too.

    >>> rnn = ComponentwiseRNN.init(jax.random.key(0), Architecture(units=8))
    >>> tx = rnn.as_optax()
    >>> state = tx.init({"a": jnp.ones(3)})
    >>> updates, state = tx.update({"a": jnp.ones(3)}, state)
    >>> updates["a"].tolist()  # the readout starts at zero: it stands still
    [0.0, 0.0, 0.0]
    """

    componentwise: ClassVar[bool] = True

    weights: Weights
    w: Float[Array, " units"]
    h0: Float[Array, " state"]
    architecture: Architecture = dataclasses.field(metadata={"static": True})
    trained_on: GradientRange | None = dataclasses.field(default=None, metadata={"static": True})

    @classmethod
    def init(cls, key: Key[Array, ""], architecture: Architecture) -> ComponentwiseRNN:
        """Random cell weights; readout and initial state zero."""
        cell = architecture.make_cell()
        return cls(
            weights=cell.init(key, architecture.encoding.size),
            w=jnp.zeros((cell.units,)),
            h0=jnp.zeros((cell.state_size,)),
            architecture=architecture,
        )

    def as_optax(
        self, *, reverse_only: bool = False, state_dtype: str = "float32"
    ) -> optax.GradientTransformation:
        """The optimizer as an optax pair; works on any pytree of real floating-point leaves.

        Leaves may be of any shape and dtype, and there may be none. The state (see `RNNState`)
        is stored, and the network computed, in the meta-parameters' dtype, also where parameters
        are bfloat16; each update comes back in the dtype of its gradient (as `jax.grad` makes
        it: the parameter's). There is no learning rate, step sizes being learned;
        ``optax.chain(tx, optax.scale(0.5))`` halves them.

        ``reverse_only``: an update that only reverse mode can differentiate, once, with a
        reverse pass several times faster: for meta-training.

        ``state_dtype``: ``"bfloat16"`` halves the state's memory and, on processors that multiply
        such numbers, takes a GRU's step about two thirds of the time. The state and a GRU's
        weights ``W_*`` are rounded to it, sums are not. ``"float32"`` stores the state as it is.

        ``init`` and ``update`` raise `UserError` for a leaf that is not a real float, and
        ``update`` for gradients that differ from the state in tree or shapes. So does this for a
        cell of one's own whose rows change each other.
        """
        require_choice("state_dtype", state_dtype, list(STATE_DTYPES))
        cell = self.architecture.make_cell()
        if self.architecture.cell not in CELLS:
            made_by = cell_class(self.architecture.cell)
            require_rows_apart(made_by, cell.units, self.architecture.encoding.size)
        stored = self.w.dtype if state_dtype == "float32" else jnp.dtype(state_dtype)
        step = step_and_readout(
            cell, self.weights, self.w, reverse_only=reverse_only, stored=stored
        )
        h0 = self.h0.astype(stored)
        size = h0.shape[-1]
        compare = None if self.trained_on is None else OneWarning(self.trained_on)

        def init(params: PyTree) -> RNNState:
            _require_floats("parameters", params)

            def rows(leaf: Any) -> Array:
                return jnp.tile(h0, (np.size(leaf), 1)).reshape(*np.shape(leaf), size)

            return RNNState(h=jax.tree.map(rows, params))

        def advance(g: Array, h: Array) -> tuple[Array, Array]:
            encoded = self.architecture.encoding(jnp.ravel(g).astype(self.w.dtype))
            following, readout = step(h, encoded)
            update = (self.architecture.output_scale * readout).reshape(g.shape)
            return update.astype(g.dtype), following

        def update(
            gradients: PyTree, state: RNNState, params: PyTree | None = None
        ) -> tuple[PyTree, RNNState]:
            del params
            _require_floats("gradients", gradients)
            leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(gradients)]
            treedef: Any = jax.tree.structure(gradients)
            _require_same_tree(gradients, state.h)
            if compare is not None:
                compare(leaves)
            pairs = [
                advance(g, h) if g.size else (g, h)
                for g, h in zip(leaves, jax.tree.leaves(state.h), strict=True)
            ]
            updates, following = ([pair[part] for pair in pairs] for part in (0, 1))
            return treedef.unflatten(updates), RNNState(h=treedef.unflatten(following))

        return optax.GradientTransformation(init, update)


def _require_same_tree(gradients: PyTree, h: PyTree) -> None:
    """Raise `UserError` unless the state has one more axis on each of the gradients' leaves."""
    given = jax.tree_util.tree_leaves_with_path(gradients)
    structures: list[Any] = [jax.tree.structure(tree) for tree in (gradients, h)]
    advice = "(give init the same pytree of parameters)"
    if structures[0] != structures[1]:
        raise UserError(f"gradients: not the tree that the state was made for {advice}")
    for (path, leaf), state in zip(given, jax.tree.leaves(h), strict=True):
        if np.shape(leaf) != state.shape[:-1]:
            name = jax.tree_util.keystr(path)
            raise UserError(
                f"gradients{name}: shape {np.shape(leaf)}, but the state is for "
                f"{state.shape[:-1]} {advice}"
            )


def _require_floats(name: str, tree: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise UserError(
                f"{name}{jax.tree_util.keystr(path)}: {dtype} is not allowed (real floating-point "
                "leaves; leave others out, or mask them)"
            )
