"""The closed loop of PyTorch models: closed forms, and differences of real training steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import optdyn
from optdyn.errors import UserError
from optdyn.precision import double_precision
from optdyn.torch import LearnedOptimizer, closed_loop

CURVATURES = (0.5, 2.0, 15.0)


class Bowl(torch.nn.Module):
    """``½ Σ λ x²`` of two parameters, at a point off its minimum."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=dtype))
        self.b = torch.nn.Parameter(torch.tensor([0.5], dtype=dtype))
        self.unused = torch.nn.Parameter(torch.ones(4, dtype=dtype))

    def forward(self) -> torch.Tensor:
        curvatures = torch.tensor(CURVATURES, dtype=self.a.dtype)
        return 0.5 * (curvatures * torch.cat([self.a, self.b]) ** 2).sum()


def bowl_loss(model: Bowl) -> torch.Tensor:
    return model()


def train(
    optimizer: torch.optim.Optimizer, loss_fn: Callable[[Any], torch.Tensor], model: Any, steps: int
) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_fn(model).backward()
        optimizer.step()


def sorted_values(values: Any) -> np.ndarray:
    return np.sort_complex(np.round(np.asarray(values), 7))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_momentum_on_a_quadratic_has_its_closed_form(dtype: torch.dtype) -> None:
    rate, beta = 0.1, 0.6
    model = Bowl(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=beta)
    train(optimizer, bowl_loss, model, 3)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    found = closed_loop(optimizer, bowl_loss, model, num=6)
    blocks = [np.array([[1 - rate * c, -rate * beta], [c, beta]]) for c in CURVATURES]
    expected = np.concatenate([np.linalg.eigvals(block) for block in blocks])
    tolerance = 1e-7 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(
        sorted_values(found.largest), sorted_values(expected), atol=tolerance
    )
    assert found.margin == pytest.approx(2 * (1 + beta) / (rate * max(CURVATURES)), rel=1e-4)
    assert found.curvature[0] == pytest.approx(15.0, rel=1e-4)
    assert set(found.shares) == {"a", "b"}
    assert found.shares["b"][0] == pytest.approx(1.0)
    for old, new in zip(before, (model.state_dict(), optimizer.state_dict()), strict=True):
        assert str(old) == str(new)


def test_each_group_has_its_own_rate_and_a_scheduler_counts() -> None:
    model = Bowl()
    optimizer = torch.optim.SGD([{"params": [model.b], "lr": 0.02}, {"params": [model.a]}], lr=0.4)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(optimizer, bowl_loss, model, 1)
    scheduler.step()
    found = closed_loop(optimizer, bowl_loss, model, num=3, margin=False)
    expected = [1 - 0.2 * 0.5, 1 - 0.2 * 2.0, 1 - 0.01 * 15.0]
    np.testing.assert_allclose(sorted_values(found.largest), sorted_values(expected))
    assert np.isnan(found.margin)


def network() -> tuple[torch.nn.Module, Callable[[Any], torch.Tensor]]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1)
    ).double()
    inputs = torch.randn(16, 2, dtype=torch.float64)
    targets = torch.sin(2 * inputs[:, :1])
    return model, lambda model: ((model(inputs) - targets) ** 2).mean()


def own_multipliers(
    optimizer: torch.optim.Optimizer, loss_fn: Callable[[Any], torch.Tensor], model: Any
) -> np.ndarray:
    """Of the real training step, by differences: every parameter and all memory, largest first."""

    def moving(own: torch.optim.Optimizer) -> list[torch.Tensor]:
        params = [p for group in own.param_groups for p in group["params"]]
        memory = [v for p in params for _, v in sorted(own.state[p].items()) if v.shape == p.shape]
        return [*params, *memory]

    def step(z: np.ndarray) -> np.ndarray:
        copied, own = copy.deepcopy((model, optimizer))
        tensors = moving(own)
        pieces = np.split(z, np.cumsum([t.numel() for t in tensors])[:-1])
        with torch.no_grad():
            for tensor, piece in zip(tensors, pieces, strict=True):
                tensor.copy_(torch.as_tensor(piece).reshape(tensor.shape))
        train(own, loss_fn, copied, 1)
        return np.concatenate([t.detach().numpy().ravel() for t in tensors])

    z = np.concatenate([t.detach().numpy().ravel() for t in moving(optimizer)])
    columns = []
    for i, size in enumerate(np.maximum(np.abs(z), 1e-3)):
        move = np.zeros(z.size)
        move[i] = 1e-6 * size
        columns.append((step(z + move) - step(z - move)) / (2 * move[i]))
    found = np.linalg.eigvals(np.stack(columns, axis=1))
    return found[np.argsort(-np.abs(found), kind="stable")]


def test_adamw_on_a_network_is_its_own_training_step() -> None:
    model, loss_fn = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    train(optimizer, loss_fn, model, 10)
    expected = own_multipliers(optimizer, loss_fn, model)
    running_mean = model[2].running_mean.clone()
    found = closed_loop(optimizer, loss_fn, model, num=5, margin=False)
    np.testing.assert_allclose(np.abs(found.largest), np.abs(expected[:5]), rtol=1e-4)
    assert torch.equal(running_mean, model[2].running_mean)
    assert found.still == ()


class Tied(torch.nn.Module):
    """Two layers with the same weights, and one that the loss does not use."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = (torch.nn.Linear(2, 2, dtype=torch.float64) for _ in range(2))
        self.second.weight = self.first.weight
        self.last = torch.nn.Linear(2, 1, dtype=torch.float64)
        self.unused = torch.nn.Linear(2, 1, dtype=torch.float64)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(inputs)))))


TIED_INPUTS = torch.linspace(-1.5, 1.5, 24, dtype=torch.float64).sin().reshape(12, 2)


def tied_loss(model: Tied) -> torch.Tensor:
    return ((model(TIED_INPUTS) - torch.sin(3 * TIED_INPUTS[:, :1])) ** 2).mean()


@pytest.mark.parametrize(
    ("kind", "options", "frozen"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.5}, "first.bias"),
        (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.5}, "first.weight"),
        (torch.optim.Adam, {"lr": 0.05}, "first.weight"),
        (torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.5, "amsgrad": True}, "first.bias"),
        (torch.optim.RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.7}, "first.weight"),
    ],
)
def test_parameters_without_a_gradient_stand_still(
    kind: type[torch.optim.Optimizer], options: dict[str, Any], frozen: str
) -> None:
    model = Tied()
    optimizer = kind(model.parameters(), **options)
    train(optimizer, tied_loss, model, 3)
    still = {frozen: dict(model.named_parameters())[frozen].requires_grad_(False)}
    still |= {f"unused.{name}": p for name, p in model.unused.named_parameters()}
    train(optimizer, tied_loss, model, 6)
    entries = sum(
        p.numel() * (1 + sum(v.shape == p.shape for v in optimizer.state[p].values()))
        for p in still.values()
    )
    expected = own_multipliers(optimizer, tied_loss, model)
    found = closed_loop(optimizer, tied_loss, model, num=expected.size, margin=False)
    assert found.largest.size + entries == expected.size
    ours = np.sort(np.abs([*found.largest, *np.ones(entries)]))[::-1]
    np.testing.assert_allclose(ours, np.abs(expected), atol=2e-4)
    assert found.still == tuple(name for name, _ in model.named_parameters() if name in still)
    assert set(found.shares) == {n for n, _ in model.named_parameters()} - set(still)
    told = f"stand still without a gradient (multiplier 1, not counted): {', '.join(found.still)}"
    assert told in str(found)


def test_where_all_parameters_are_frozen_is_refused() -> None:
    model = Tied().requires_grad_(False)
    with pytest.raises(UserError, match="requires_grad"):
        closed_loop(torch.optim.SGD(model.parameters()), tied_loss, model)


def test_a_learning_rate_in_a_tensor_is_a_number() -> None:
    model = Bowl()
    rate = torch.tensor(0.02, dtype=torch.float64)
    optimizer = torch.optim.Adam([model.a, model.b], lr=rate, foreach=False)
    train(optimizer, bowl_loss, model, 4)
    found = closed_loop(optimizer, bowl_loss, model, num=3, margin=False)
    np.testing.assert_allclose(
        np.abs(found.largest), np.abs(own_multipliers(optimizer, bowl_loss, model)[:3]), rtol=1e-4
    )
    assert optimizer.param_groups[0]["lr"] is rate


def test_a_learned_optimizer_has_the_closed_loop_that_jax_finds() -> None:
    model = Bowl()
    optimizer = LearnedOptimizer([model.a, model.b], "two_moons", dtype=torch.float64, lr=0.5)
    train(optimizer, bowl_loss, model, 4)
    found = closed_loop(optimizer, bowl_loss, model, num=4, margin=False)
    with double_precision():
        rnn = jax.tree.map(
            lambda a: jnp.asarray(np.asarray(a), jnp.float64), optdyn.load_pretrained("two_moons")
        )
        tx = rnn.as_optax()
        params = {"a": jnp.asarray(model.a.detach().numpy()), "b": jnp.asarray(model.b.detach())}
        state = tx.init(params)
        h = {
            name: jnp.asarray(optimizer.state[p]["h"].numpy()).reshape(*p.shape, -1)
            for name, p in {"a": model.a, "b": model.b}.items()
        }

        def step(z: Any) -> Any:
            x, h = z
            gradients = {"a": jnp.asarray(CURVATURES[:2]) * x["a"], "b": CURVATURES[2] * x["b"]}
            updates, after = tx.update(gradients, state._replace(h=h), x)
            return jax.tree.map(lambda a, u: a + 0.5 * u, x, updates), after.h

        flat, unravel = jax.flatten_util.ravel_pytree((params, h))
        jacobian = jax.jacrev(lambda z: jax.flatten_util.ravel_pytree(step(unravel(z)))[0])(flat)
    expected = np.linalg.eigvals(np.asarray(jacobian))
    expected = expected[np.argsort(-np.abs(expected), kind="stable")][:4]
    np.testing.assert_allclose(np.abs(found.largest), np.abs(expected), rtol=1e-6)


@pytest.mark.parametrize(
    ("loss_fn", "told"),
    [
        (lambda model: torch.nn.functional.dropout(model.a).sum() + model(), "gives .* and then"),
        (lambda model: model.a**2, r"gives shape \(2,\)"),
        (lambda model: model() / 0.0, "gives inf"),
        (lambda model: model().item(), "gives float"),
        (lambda model: torch.ones(()), "cannot be differentiated"),
        (lambda model: model() + model.c, "no attribute 'c'"),
        (lambda model: 0.0 * model.a.sum() + model.b.sum() ** 2, "no derivative along a here"),
    ],
)
def test_what_has_no_closed_loop_is_refused(
    loss_fn: Callable[[Any], torch.Tensor], told: str
) -> None:
    torch.manual_seed(0)
    model = Bowl()
    with pytest.raises(UserError, match=told):
        closed_loop(torch.optim.Adam(model.parameters()), loss_fn, model)


def test_bad_arguments_are_refused() -> None:
    model = Bowl()
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(UserError, match="none of its parameters"):
        closed_loop(optimizer, bowl_loss, Bowl())
    with pytest.raises(UserError, match="one of PyTorch, in use"):
        closed_loop(torch.optim.SGD, bowl_loss, model)
    with pytest.raises(UserError, match=r"a torch\.nn\.Module"):
        closed_loop(optimizer, bowl_loss, bowl_loss)
    with pytest.raises(UserError, match="num: 0"):
        closed_loop(optimizer, bowl_loss, model, num=0)


def test_a_loss_that_holds_a_part_of_itself_fixed_is_refused() -> None:
    model = torch.nn.Linear(2, 1, bias=False).double()
    turn = torch.tensor([[0.0, 5.0], [-5.0, 0.0]], dtype=torch.float64)

    def loss(m: torch.nn.Linear) -> torch.Tensor:
        return 0.5 * ((m.weight[0] - (turn @ m.weight[0]).detach()) ** 2).sum()

    with pytest.raises(UserError, match="detach"):
        closed_loop(torch.optim.SGD(model.parameters(), 0.1), loss, model)


def test_a_hook_on_a_parameters_gradient_counts() -> None:
    model = torch.nn.Linear(1, 1, bias=False).double()
    model.weight.register_hook(lambda gradient: 0.1 * gradient)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    found = closed_loop(optimizer, lambda m: 6.0 * (m.weight**2).sum(), model)
    assert found.largest == pytest.approx([1 - 0.1 * 0.1 * 12])
    assert found.margin == pytest.approx(2 / 0.12, rel=1e-3)
