"""The step of a PyTorch optimizer class: run as it is, and exported as a graph."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import inspect
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
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
    """The step of an optimizer called ``name``.

    ``make(params)`` gives an optimizer of those tensors, as the user has set it;
    ``make(params, exportable=True)`` one with those of `FLAGS` that it knows. Everything is
    run in float64, on the CPU.
    """

    name: str
    make: Callable[..., Any]

    def advance(self, optimizer: Any, params: list[Tensor], gradients: list[Tensor]) -> None:
        """One step of ``optimizer``. Raises `UserError` where it fails."""
        for p, g in zip(params, gradients, strict=True):
            p.grad = g.clone()
        try:
            optimizer.step()
        except Exception as error:  # the class may be the user's own
            raise UserError(
                f"{self.name}: its step fails on dense real gradients: {first_line(error)}"
            ) from error


def step_of_class(kind: type[torch.optim.Optimizer], hyperparameters: dict[str, Any]) -> OwnStep:
    """The step of a class with its hyperparameters (numbers in tensors count as numbers).

    Raises `UserError` for what is no class of PyTorch optimizers, and for hyperparameters
    that it refuses.
    """
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise UserError(
            f"optimizer: {shown(kind)} is not allowed (a class such as torch.optim.AdamW, its "
            "hyperparameters by name)"
        )

    known = inspect.signature(kind).parameters
    _require_known(kind.__name__, hyperparameters, known)
    given = {name: _as_number(value) for name, value in hyperparameters.items()}

    def make(params: list[Tensor], *, exportable: bool = False) -> Any:
        flags = {flag: value for flag, value in FLAGS.items() if exportable and flag in known}
        return kind(params, **{**given, **flags})

    try:
        make([torch.zeros(1)])
    except Exception as error:  # the class may be the user's own
        raise UserError(f"{kind.__name__}: {first_line(error)}") from error
    return OwnStep(kind.__name__, make)


def _require_known(
    name: str, hyperparameters: dict[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> None:
    """Raise `UserError` for the first hyperparameter that the class called ``name`` lacks."""
    if any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
        return
    allowed = list(parameters)[1:]  # the first are the tensors
    for given in hyperparameters:
        if given not in allowed:
            usual = "; the learning rate is lr" if "rate" in given and "lr" in allowed else ""
            raise UserError(f"{name}: {given} is not allowed (one of: {', '.join(allowed)}{usual})")


def _as_number(value: Any) -> Any:
    """``value``, where tensors of one number, alone or in a tuple, are that number."""
    if isinstance(value, tuple):
        return tuple(map(_as_number, value))
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def step_of_optimizer(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> OwnStep:
    """The step that a living optimizer makes of some of its ``params``, in that order.

    Each keeps the hyperparameters of its group.
    """
    position = {p: i for i, p in enumerate(params)}
    groups = [
        (group, [position[p] for p in group["params"] if p in position])
        for group in optimizer.param_groups
    ]

    def make(tensors: list[Tensor], *, exportable: bool = False) -> Any:
        copied = object.__new__(type(optimizer))
        # A scheduler wraps `step` in the instance; the copy has its class's own.
        copied.__dict__.update({k: v for k, v in vars(optimizer).items() if k != "step"})
        copied.state = collections.defaultdict(dict)
        copied.param_groups = [
            {
                **{k: _as_number(v) for k, v in group.items() if k != "param_names"},
                **{k: v for k, v in FLAGS.items() if k in group and (exportable or k == "fused")},
                "params": [tensors[i] for i in positions],
            }
            for group, positions in groups
            if positions
        ]
        return copied

    return OwnStep(type(optimizer).__name__, make)


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
    """What the class itself does with one parameter.

    After a first step with the gradient zero, in which it makes its state: that state; the
    parameter, from zero, after each of the ``gradients`` [steps, n]; and the last state.
    """
    with _float64():
        p = torch.zeros(gradients.shape[1])
        optimizer = own.make([p])
        own.advance(optimizer, [p], [torch.zeros_like(p)])
        start, path = _arrays(optimizer.state[p]), []
        p.zero_()
        for g in gradients:
            own.advance(optimizer, [p], [torch.as_tensor(g)])
            path.append(p.numpy().copy())
        return start, np.array(path), _arrays(optimizer.state[p])


def run_from(
    own: OwnStep,
    params: list[np.ndarray],
    gradients: list[np.ndarray],
    states: list[dict[str, np.ndarray]],
) -> list[np.ndarray]:
    """The parameters after one step of the optimizer itself from these states."""
    fixed = first_state(own, tuple(array.shape for array in params)).fixed
    with _float64():
        tensors = [torch.tensor(array) for array in params]
        optimizer = own.make(tensors)
        for p, state, rest in zip(tensors, states, fixed, strict=True):
            optimizer.state[p] = {k: torch.tensor(a) for k, a in state.items()} | rest
        own.advance(optimizer, tensors, [torch.tensor(g) for g in gradients])
        return [p.numpy() for p in tensors]


def living_state(
    own: OwnStep, optimizer: torch.optim.Optimizer, params: list[Tensor]
) -> list[dict[str, np.ndarray]]:
    """The numbers in the state of each of ``params`` now; where it has none, in its first one."""
    first = first_state(own, tuple(tuple(p.shape) for p in params)).numbers
    found = [_arrays(dict(optimizer.state.get(p, {}))) for p in params]
    return [now or new for now, new in zip(found, first, strict=True)]


def clock_names(own: OwnStep, count: int) -> set[str]:
    """The entries of a state that all components share: step numbers, and what follows them.

    ``count``: how many parameters the optimizer has.
    """
    states = first_state(own, ((2,),) * count).numbers
    return {name for state in states for name, array in state.items() if array.ndim == 0}


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
            own.advance(optimizer, params, [torch.zeros_like(p) for p in params])
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
    plain = (bool, int, float, complex, str, tuple, type(None), Tensor)
    kept = {key: v for key, v in found.items() if isinstance(v, plain)}
    return {key: v.tolist() if isinstance(v, Tensor) else v for key, v in kept.items()}


class _Step(torch.nn.Module):
    """The function that `export_step` exports: a step without side effects."""

    def __init__(self, own: OwnStep, first: FirstState) -> None:
        super().__init__()
        self.own, self.first = own, first

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        copies = iter([tensor.clone() for tensor in inputs])
        params, gradients = ([next(copies) for _ in self.first.numbers] for _ in range(2))
        optimizer = self.own.make(params, exportable=True)
        for i, p in enumerate(params):
            p.grad = gradients[i]
            numbers = {name: next(copies) for name in self.first.numbers[i]}
            optimizer.state[p] = {**numbers, **self.first.fixed[i]}
        optimizer.step()
        pairs = zip(params, self.first.numbers, strict=True)
        after = [optimizer.state[p][name] for p, numbers in pairs for name in numbers]
        return [*params, *(v if isinstance(v, Tensor) else torch.tensor(v) for v in after)]


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor | int | float) and not isinstance(value, bool)


def _arrays(state: dict[str, Any]) -> dict[str, np.ndarray]:
    """The numbers in a parameter's state, by name, as JAX orders them.

    Whole ones are floats too, as PyTorch's own step numbers are.
    """
    return {
        key: torch.as_tensor(value, dtype=torch.float64).detach().cpu().numpy().copy()
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
