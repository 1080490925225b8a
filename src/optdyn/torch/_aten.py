"""A step that PyTorch exported, computed in JAX: a graph of elementary operations."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from optdyn.errors import UserError

Array = Any
"""A number, a NumPy array, or a JAX array."""
INFINITY = float("inf")


def _clamp(xp: Any, a: Array, low: Array = None, high: Array = None) -> Array:
    return xp.clip(a, -INFINITY if low is None else low, INFINITY if high is None else high)


def _where(xp: Any, condition: Array, a: Array, b: Array) -> Array:
    # A branch that a known step number rules out must not be differentiated: it may be NaN.
    if xp is np or (np.ndim(condition) == 0 and not isinstance(condition, jax.Array)):
        return np.where(condition, a, b) if np.ndim(condition) else (a if condition else b)
    return xp.where(condition, a, b)


def _same(xp: Any, a: Array) -> Array:
    return a


def _plus(xp: Any, a: Array, b: Array, alpha: float = 1) -> Array:
    return a + b if alpha == 1 else a + alpha * b


def _minus(xp: Any, a: Array, b: Array, alpha: float = 1) -> Array:
    return a - b if alpha == 1 else a - alpha * b


def _named(name: str) -> Callable[..., Array]:
    return lambda xp, *arguments: getattr(xp, name)(*arguments)


SAME_NAME = (
    *("abs", "sign", "sqrt", "square", "exp", "expm1", "log", "log1p", "tanh", "sin", "cos"),
    *("floor", "isfinite", "isnan", "isinf", "logical_and", "logical_or", "logical_not"),
    *("logical_xor", "bitwise_and", "bitwise_or", "bitwise_not"),
)
UNCHANGED = ("clone", "detach", "alias", "lift_fresh_copy", "_local_scalar_dense")
OPERATIONS: dict[str, Callable[..., Array]] = {
    "add": _plus,
    "sub": _minus,
    "rsub": lambda xp, a, b, alpha=1: _minus(xp, b, a, alpha),
    "mul": _named("multiply"),
    "div": _named("divide"),
    "pow": _named("power"),
    "maximum": _named("maximum"),
    "minimum": _named("minimum"),
    "atan2": _named("arctan2"),
    "neg": _named("negative"),
    "reciprocal": lambda xp, a: 1.0 / a,
    "rsqrt": lambda xp, a: 1.0 / xp.sqrt(a),
    "sigmoid": lambda xp, a: 0.5 * xp.tanh(0.5 * a) + 0.5,
    "asinh": _named("arcsinh"),
    "sgn": _named("sign"),
    "gt": _named("greater"),
    "ge": _named("greater_equal"),
    "lt": _named("less"),
    "le": _named("less_equal"),
    "eq": _named("equal"),
    "ne": _named("not_equal"),
    **{name: _named(name) for name in SAME_NAME},
    "where": _where,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": lambda xp, a, high: _clamp(xp, a, None, high),
    **dict.fromkeys(UNCHANGED, _same),
    "copy": lambda xp, target, source: xp.broadcast_to(source, np.shape(target)),
    "full": lambda xp, shape, value: np.full(tuple(shape), value),
    "full_like": lambda xp, a, value: np.full(np.shape(a), value),
    "scalar_tensor": lambda xp, value: np.asarray(value),
    "expand": lambda xp, a, shape: xp.broadcast_to(a, tuple(shape)),
}
"""By name: ``(numpy or jax.numpy, *arguments)``. What is known beforehand is computed by NumPy.

Element by element, all of them: what mixes components (sums, norms, products of matrices) has
no place in an optimizer that treats each by itself.
"""
CHECKS = {"_assert_tensor_metadata"}
"""Of a tensor's dtype and device, which say nothing here."""
CONVERSIONS = {"_to_copy"}
"""To another dtype: floats stay as precise as they are, and numbers that count are floats."""
STORAGE = {"dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking"}
NUMBERS = {
    getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "pow", "neg", "getitem")
}
"""What PyTorch leaves to Python: operations on numbers that were read out of a tensor."""


@dataclasses.dataclass(frozen=True)
class Moved:
    """``start + by``: what a step makes of a parameter, without the rounding of the sum.

    Updates are small beside parameters: ``(x + Δx) − x`` would lose their last digits.
    """

    start: Array
    by: Array

    @property
    def value(self) -> Array:
        """The sum."""
        return self.start + self.by

    def after(self, name: str, operands: Sequence[Array], alpha: float = 1) -> Moved | None:
        """What the operation ``name`` makes of it, if that is a parameter moved again."""
        if name in ("clone", "detach", "alias"):
            return self
        if name == "mul":
            return Moved(self.start, self.by * operands[0] + self.start * (operands[0] - 1.0))
        if name in ("add", "sub"):
            more = operands[0] if alpha == 1 else alpha * operands[0]
            return Moved(self.start, self.by + more if name == "add" else self.by - more)
        return None


class Program:
    """An exported function of a list of tensors, as one of a list of arrays.

    Inputs may be `Moved`; so are outputs that are such an input, moved on.

    Raises `UserError`, naming the operation, where one is not element by element.
    """

    def __init__(self, exported: torch.export.ExportedProgram, name: str) -> None:
        self._graph = exported.graph
        self._sources = _sources(exported)
        self._steps = [
            (node, _operation(node, name))
            for node in self._graph.nodes
            if node.op == "call_function" and _packet(node) not in CHECKS
        ]
        self._inputs = [node for node in self._graph.nodes if node.op == "placeholder"]
        (self._output,) = (node for node in self._graph.nodes if node.op == "output")

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        given = iter(inputs)
        values: dict[Any, Array] = {
            node: next(given) if source is None else source
            for node, source in zip(self._inputs, self._sources, strict=True)
        }

        def look_up(tree: Any) -> Any:
            return torch.fx.node.map_arg(tree, values.__getitem__)

        for node, operation in self._steps:
            arguments, options = look_up(node.args), look_up(node.kwargs)
            options = {key: value for key, value in options.items() if key not in STORAGE}
            if arguments and isinstance(arguments[0], Moved):
                others = jax.tree.map(plain, arguments[1:])
                moved = arguments[0].after(_packet(node) or "", others, **options)
                if moved is not None:
                    values[node] = moved
                    continue
            arguments, options = jax.tree.map(plain, (arguments, options))
            traced = any(isinstance(a, jax.Array) for a in jax.tree.leaves((arguments, options)))
            with np.errstate(all="ignore"):
                values[node] = operation(jnp if traced else np, *arguments, **options)
        return list(look_up(self._output.args[0]))


def plain(value: Array) -> Array:
    """``value`` as an array, where it may be `Moved`."""
    return value.value if isinstance(value, Moved) else value


def _sources(exported: torch.export.ExportedProgram) -> list[np.ndarray | None]:
    """For each input of the graph: None for one of the function's own, or its constant value."""
    constants = {**exported.constants, **exported.state_dict}
    user = torch.export.graph_signature.InputKind.USER_INPUT
    return [
        None if spec.kind == user else constants[spec.target].numpy()
        for spec in exported.graph_signature.input_specs
    ]


def _operation(node: Any, name: str) -> Callable[..., Array]:
    if node.target in NUMBERS:
        return lambda xp, *arguments: node.target(*arguments)
    packet = _packet(node)
    if packet in CONVERSIONS:
        return _conversion(node, name)
    if packet not in OPERATIONS:
        raise UserError(
            f"{name}: its step uses {node.target}, which is not an operation element by element "
            "that JAX can follow (allowed: optimizers that treat each component by itself)"
        )
    return OPERATIONS[packet]


def _packet(node: Any) -> str | None:
    """The operation's name, without that of its overload."""
    return getattr(getattr(node.target, "overloadpacket", None), "__name__", None)


def _conversion(node: Any, name: str) -> Callable[..., Array]:
    dtype = node.kwargs.get("dtype")
    before = node.args[0].meta["val"].dtype
    if dtype is None or dtype == before or (dtype.is_floating_point and before != torch.bool):
        return _same
    if dtype.is_floating_point:
        return lambda xp, a: xp.where(a, 1.0, 0.0)
    raise UserError(
        f"{name}: its step turns {before} into {dtype} (allowed: steps in floating-point numbers)"
    )
