"""Optimizer classes of one's own: what is followed, and what is refused, with its cause."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import optdyn
from optdyn.errors import UserError
from optdyn.precision import double_precision
from optdyn.torch import as_optax, linearize


class Own(torch.optim.Optimizer):
    """Momentum with a bias correction; its step numbers are whole numbers of Python."""

    def __init__(self, params: Any, lr: float = 0.1, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})
        self.calls = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["step"], state["label"] = 0, "momentum"
                    state["buffer"] = torch.full_like(p, self.start(group))
                state["step"] += 1
                state["buffer"].mul_(group["beta"]).add_(p.grad)
                p.add_(self.direction(group, state, p.grad), alpha=-group["lr"])
                self.after(group)

    def start(self, group: dict[str, Any]) -> float:
        return 0.0

    def direction(self, group: dict[str, Any], state: dict[str, Any], g: torch.Tensor) -> Any:
        return state["buffer"] / (1 - group["beta"] ** state["step"])

    def after(self, group: dict[str, Any]) -> None:
        pass


def test_a_class_of_ones_own_is_followed() -> None:
    lin = linearize(Own, lr=0.2, beta=0.8)
    assert lin.names == ("buffer",)
    np.testing.assert_allclose([lin.A[0, 0], lin.B[0]], [0.8, 1.0], rtol=1e-12)
    np.testing.assert_allclose([lin.C[0], lin.D], [-0.16, -0.2], rtol=1e-12)


def test_a_first_state_other_than_zero_is_found() -> None:
    class Started(Own):
        def start(self, group: dict[str, Any]) -> float:
            return 3.0 * group["lr"]

    state = as_optax(Started, lr=0.5).init(jnp.zeros(2))
    assert state["buffer"].tolist() == [1.5, 1.5]
    assert state["step"].tolist() == 0.0
    stored = as_optax(torch.optim.Adagrad, initial_accumulator_value=0.25).init(jnp.zeros(2))
    assert stored["sum"].tolist() == [0.25, 0.25]


class ReadsANumber(Own):
    """A logarithm by Python, of a step number."""

    def direction(self, group: Any, state: Any, g: torch.Tensor) -> Any:
        return state["buffer"] * math.log(1.0 + state["step"])


class Decides(Own):
    """A branch on the gradient."""

    def direction(self, group: Any, state: Any, g: torch.Tensor) -> Any:
        return g if g.sum() > 0 else state["buffer"]


class Couples(Own):
    """A norm over all components."""

    def direction(self, group: Any, state: Any, g: torch.Tensor) -> Any:
        return g / g.norm().clamp(min=1.0)


class Draws(Own):
    """Noise."""

    def direction(self, group: Any, state: Any, g: torch.Tensor) -> Any:
        return g + torch.randn_like(g)


class CountsInItsGroup(Own):
    """A learning rate that decays."""

    def after(self, group: dict[str, Any]) -> None:
        group["lr"] *= 0.9


class CountsItself(Own):
    """Memory in an attribute."""

    def after(self, group: dict[str, Any]) -> None:
        self.calls += 1


class WritesToData(Own):
    """As optimizers were written before ``torch.no_grad``."""

    def direction(self, group: Any, state: Any, g: torch.Tensor) -> Any:
        state["buffer"].data.add_(g)
        return g


class ReadsTheClock(Own):
    """Python sees a value here that the graph cannot hold."""

    calls_of_all = 0

    def direction(self, group: Any, state: Any, g: torch.Tensor) -> Any:
        ReadsTheClock.calls_of_all += 1
        return g * ReadsTheClock.calls_of_all


class SharesState(Own):
    """State of no parameter."""

    def after(self, group: dict[str, Any]) -> None:
        self.state["all"] = {"total": torch.zeros(1)}


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (ReadsANumber, "cannot export its step"),
        (Decides, "cannot export its step"),
        (WritesToData, r"write to their \.data"),
        (Couples, "which is not an operation element by element"),
        (Draws, "which is not an operation element by element"),
        (CountsInItsGroup, r"changes param_groups\[0\]\['lr'\]"),
        (CountsItself, "changes calls outside the state"),
        (ReadsTheClock, "its exported step is not its own step"),
        (SharesState, "state that belongs to no parameter"),
        (torch.optim.LBFGS, "closure"),
        (torch.optim.SparseAdam, "does not support dense gradients"),
        (torch.optim.Adafactor, "cannot export its step"),
        (torch.optim.Adam([torch.ones(1)]), "a class such as torch.optim.AdamW"),
        (torch.nn.Linear, "a class such as torch.optim.AdamW"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_followed_is_refused(
    kind: Any, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=told) as caught:
        as_optax(kind)
    assert "\n" not in str(caught.value)
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""


def test_what_the_class_refuses_is_told() -> None:
    with pytest.raises(UserError, match="Adam: Invalid learning rate"):
        as_optax(torch.optim.Adam, lr=-1.0)
    told = r"AdamW: learning_rate is not allowed \(one of: lr, betas, .*; the learning rate is lr\)"
    with pytest.raises(UserError, match=told):
        linearize(torch.optim.AdamW, learning_rate=0.1)
    told = r"Own: beta1 is not allowed \(one of: lr, beta\)$"
    with pytest.raises(UserError, match=told):
        as_optax(Own, beta1=0.5)


def test_a_class_that_takes_any_keyword_is_asked_itself() -> None:
    class Loose(torch.optim.SGD):
        def __init__(self, params: Any, **options: Any) -> None:
            super().__init__(params, **options)

    assert linearize(Loose, lr=0.5).D == -0.5
    with pytest.raises(UserError, match=r"Loose: .*unexpected keyword"):
        linearize(Loose, rate=0.5)


def test_numbers_in_tensors_are_numbers() -> None:
    rate, beta = torch.tensor(0.05), torch.tensor(0.5)
    found, expected = (
        linearize(torch.optim.Adam, lr=lr, betas=(beta1, 0.99), steps=5, gradient=0.3)
        for lr, beta1 in ((rate, beta), (rate.item(), beta.item()))
    )
    np.testing.assert_array_equal(found.A, expected.A)
    np.testing.assert_array_equal([found.D, *found.C], [expected.D, *expected.C])
    assert linearize(torch.optim.SGD, lr=torch.tensor([0.5])).D == -0.5


def test_sign_logic_has_no_derivative_at_zero() -> None:
    with pytest.raises(UserError, match="∂Δx/∂gradient does not exist"):
        linearize(torch.optim.Rprop, lr=0.1, steps=10)


def test_a_pair_trains_as_the_class_does() -> None:
    shapes = {"a": (2, 3), "b": (), "c": (4,)}
    rng = np.random.default_rng(0)
    start = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    history = [{n: rng.standard_normal(s) for n, s in shapes.items()} for _ in range(12)]
    params = {name: torch.tensor(array) for name, array in start.items()}
    optimizer = torch.optim.RAdam(params.values(), lr=0.1, weight_decay=0.1)
    for step in history:
        for name, p in params.items():
            p.grad = torch.tensor(step[name])
        optimizer.step()
    with double_precision():
        tx = as_optax(torch.optim.RAdam, lr=0.1, weight_decay=0.1)
        x = jax.tree.map(jnp.asarray, start)
        state, update = tx.init(x), jax.jit(tx.update)
        for step in history:
            updates, state = update(step, state, x)
            x = jax.tree.map(jnp.add, x, updates)
    for name, p in params.items():
        np.testing.assert_allclose(x[name], p.numpy(), rtol=1e-12)


def test_a_pair_needs_the_parameters() -> None:
    tx = as_optax(torch.optim.SGD)
    with pytest.raises(UserError, match="update needs the parameters"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_the_default_dtype_is_left_alone() -> None:
    linearize(torch.optim.SGD)
    assert torch.get_default_dtype() == torch.float32
    assert optdyn.linearize(as_optax(torch.optim.SGD, lr=0.5)).D == -0.5
