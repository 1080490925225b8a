"""The step of a PyTorch optimizer class: run as it is, and exported as a graph."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import inspect
import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optdyn.errors import UserError, first_line, shown
from optdyn.torch._aten import Program

Shape = tuple[int, ...]
FLAGS = {"foreach": False, "fused": False, "capturable": True}
"""With these a step is written parameter by parameter, and reads no number out of a tensor."""


@dataclasses.dataclass(frozen=True)
class OwnStep:
    """An optimizer class with its hyperparameters.

    Everything is run in float64, on the CPU. Raises `UserError` for what is not a class of
    PyTorch optimizers, and for hyperparameters that it refuses.
    """

    kind: type[torch.optim.Optimizer]
    hyperparameters: dict[str, Any]

    def __post_init__(self) -> None:
        if not (isinstance(self.kind, type) and issubclass(self.kind, torch.optim.Optimizer)):
            raise UserError(
                f"optimizer: {shown(self.kind)} is not allowed (a class such as torch.optim.AdamW, "
                "its hyperparameters by name)"
            )
        try:
            self.make([torch.zeros(1)])
        except Exception as error:  # the class may be the user's own
            raise UserError(f"{self.name}: {first_line(error)}") from error

    @property
    def name(self) -> str:
        """The class's name."""
        return self.kind.__name__

    def make(self, params: list[Tensor], **flags: bool) -> Any:
        """An optimizer of ``params``, with those ``flags`` that the class has."""
        known = inspect.signature(self.kind).parameters
        flags = {flag: value for flag, value in flags.items() if flag in known}
        return self.kind(params, **{**self.hyperparameters, **flags})

    def advance(self, optimizer: Any, gradients: list[Tensor]) -> None:
        """One step of ``optimizer``. Raises `UserError` where it fails."""
        for p, g in zip(_params(optimizer), gradients, strict=True):
            p.grad = g.clone()
        try:
            optimizer.step()
        except Exception as error:  # the class may be the user's own
            raise UserError(
                f"{self.name}: its step fails on dense real gradients: {first_line(error)}"
            ) from error


@dataclasses.dataclass(frozen=True)
class FirstState:
    """The state that a class makes for new parameters.

    ``numbers``: for each parameter its entries by name, as JAX orders them. ``fixed``: those
    that are no numbers.
    """

    numbers: tuple[dict[str, np.ndarray], ...]
    fixed: tuple[dict[str, Any], ...]


def export_step(own: OwnStep, shapes: tuple[Shape, ...]) -> Program:
    """The step of one optimizer of parameters of these ``shapes``, as PyTorch exports it.

    ``[*params, *gradients, *state] -> [*params, *state]``, where the state is the numbers in
    that of each parameter in turn. Raises `UserError` where PyTorch cannot export it.
    """
    first = first_state(own, shapes)
    with _float64():
        zeros = [torch.zeros(shape) for shape in (*shapes, *shapes)]
        tensors = [torch.as_tensor(a) for state in first.numbers for a in state.values()]
        try:
            exported = torch.export.export(
                _Step(own, first), ([*zeros, *tensors],), strict=False
            ).run_decompositions()
        except Exception as error:  # whatever the exporter meets
            raise UserError(
                f"{own.name}: PyTorch cannot export its step: {first_line(error)} (allowed: steps "
                "that neither decide by the values of tensors nor write to their .data)"
            ) from error
    return Program(exported, own.name)


def run_own(
    own: OwnStep, gradients: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]]:
    """What the class itself does, with the hyperparameters as they are.

    After a first step with the gradient zero, in which it makes its state: that state; the
    parameter, from zero, after each of the ``gradients`` [steps, n]; and the last state.
    """
    with _float64():
        p = torch.zeros(gradients.shape[1])
        optimizer = own.make([p])
        own.advance(optimizer, [torch.zeros_like(p)])
        start, path = _arrays(optimizer.state[p]), []
        p.zero_()
        for g in gradients:
            own.advance(optimizer, [torch.as_tensor(g)])
            path.append(p.numpy().copy())
        return start, np.array(path), _arrays(optimizer.state[p])


class _FirstValues(dict):
    """A dictionary that remembers the first value each key had, as it was then."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, Any] = {}

    def __setitem__(self, key: str, value: Any) -> None:
        self.first.setdefault(key, value.clone() if isinstance(value, Tensor) else value)
        super().__setitem__(key, value)


def first_state(own: OwnStep, shapes: tuple[Shape, ...]) -> FirstState:
    """The state that the class makes in its first step.

    Entries that it only makes at the end of that (SGD's buffer) are taken as they are after a
    gradient of zero. Raises `UserError` where its memory is not in the state of its parameters.
    """
    with _float64():
        params = [torch.zeros(shape) for shape in shapes]
        optimizer = own.make(params)
        state: dict[Any, _FirstValues] = collections.defaultdict(_FirstValues)
        for p, made in optimizer.state.items():
            for key, value in made.items():
                state[p][key] = value
        optimizer.state = state
        before = _outside_state(optimizer)
        for _ in range(2):
            own.advance(optimizer, [torch.zeros_like(p) for p in params])
    if any(not any(key is p for p in params) for key in state):
        raise UserError(
            f"{own.name}: it holds state that belongs to no parameter (allowed: one state a "
            "parameter)"
        )
    after = _outside_state(optimizer)
    for key in before.keys() | after.keys():
        if before.get(key) != after.get(key):
            raise UserError(
                f"{own.name}: its step changes {key} outside the state of its parameters "
                "(allowed: memory in optimizer.state[parameter])"
            )
    first = [{**state[p], **state[p].first} for p in params]
    return FirstState(
        tuple(map(_arrays, first)),
        tuple({k: v for k, v in entries.items() if not _is_number(v)} for entries in first),
    )


def _outside_state(optimizer: Any) -> dict[str, Any]:
    """The plain values an optimizer has beside its parameters and their state."""
    found = dict(vars(optimizer))
    for i, group in enumerate(optimizer.param_groups):
        found |= {f"param_groups[{i}][{key!r}]": value for key, value in group.items()}
    values = {key: v.tolist() if isinstance(v, Tensor) else v for key, v in found.items()}
    plain = (bool, int, float, complex, str, tuple, type(None))
    return {key: v for key, v in values.items() if isinstance(v, plain) or key in _tensors(found)}


def _tensors(values: dict[str, Any]) -> set[str]:
    return {key for key, value in values.items() if isinstance(value, Tensor)}


class _Step(torch.nn.Module):
    """The function that `export_step` exports: a step without side effects."""

    def __init__(self, own: OwnStep, first: FirstState) -> None:
        super().__init__()
        self.own, self.first = own, first

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        copies = iter([tensor.clone() for tensor in inputs])
        params, gradients = ([next(copies) for _ in self.first.numbers] for _ in range(2))
        optimizer = self.own.make(params, **FLAGS)
        for i, p in enumerate(params):
            p.grad = gradients[i]
            numbers = {name: next(copies) for name in self.first.numbers[i]}
            optimizer.state[p] = {**numbers, **self.first.fixed[i]}
        optimizer.step()
        pairs = zip(params, self.first.numbers, strict=True)
        after = [optimizer.state[p][name] for p, numbers in pairs for name in numbers]
        return [*params, *(v if isinstance(v, Tensor) else torch.tensor(v) for v in after)]


def _params(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor | int | float) and not isinstance(value, bool)


def _arrays(state: dict[str, Any]) -> dict[str, np.ndarray]:
    """The numbers in a parameter's state, by name, as JAX orders them.

    Whole ones are floats too, as PyTorch's own step numbers are.
    """
    return {
        key: torch.as_tensor(value, dtype=torch.float64).detach().numpy().copy()
        for key, value in sorted(state.items())
        if _is_number(value)
    }


@contextlib.contextmanager
def _float64() -> Iterator[None]:
    """New tensors are float64; what PyTorch says of its own code and graphs is not shown."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(before)
