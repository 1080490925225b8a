"""PyTorch's optimizers as linear systems: closed forms, and differences of their own steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import optdyn
from optdyn.dynamics import Linearization
from optdyn.torch import as_optax, dissect, linearize

STEPS = 50
T = STEPS + 1
"""The number of the step that is linearised."""
SCALE = 0.5
PARAM = 0.3

State = dict[str, complex]
Outputs = tuple[State, complex]


@dataclasses.dataclass(frozen=True)
class Case:
    """``step(h, g, x, **hyperparameters)``: step number T as its authors wrote it down."""

    kind: type[torch.optim.Optimizer]
    step: Callable[..., Outputs]
    hyperparameters: dict[str, Any]
    gradient: float = 0.0
    alternating: bool = True

    @property
    def point(self) -> dict[str, Any]:
        return {
            "gradient_scale": SCALE,
            "steps": STEPS,
            "alternating": self.alternating,
            "gradient": self.gradient,
            "param": PARAM,
        }

    def linearize(self) -> Linearization:
        return linearize(self.kind, **self.point, **self.hyperparameters)


def sgd(h: State, g: complex, x: complex, lr, momentum=0.0, dampening=0.0, **options: Any):
    g = g + options.get("weight_decay", 0.0) * x
    if momentum == 0.0:
        return {}, -lr * g
    b = momentum * h["momentum_buffer"] + (1 - dampening) * g
    return {"momentum_buffer": b}, -lr * (g + momentum * b if options.get("nesterov") else b)


def adam(h: State, g: complex, x: complex, lr, betas=(0.9, 0.999), eps=1e-8, **options: Any):
    decoupled = options.get("decoupled_weight_decay", False)
    decay = options.get("weight_decay", 0.0)
    g = g if decoupled else g + decay * x
    m, v = (betas[0] * h["exp_avg"] + (1 - betas[0]) * g, second(h, g, betas[1]))
    after = {"exp_avg": m, "exp_avg_sq": v}
    if options.get("amsgrad"):
        v = after["max_exp_avg_sq"] = larger(h["max_exp_avg_sq"], v)
    step = m / (1 - betas[0] ** T) / (np.sqrt(v / (1 - betas[1] ** T)) + eps)
    return after, -lr * step - (lr * decay * x if decoupled else 0.0)


def adamw(h: State, g: complex, x: complex, lr, weight_decay=1e-2, **options: Any):
    return adam(h, g, x, lr, weight_decay=weight_decay, decoupled_weight_decay=True, **options)


def second(h: State, g: complex, beta: float) -> complex:
    return beta * h["exp_avg_sq"] + (1 - beta) * g * g


def larger(a: complex, b: complex) -> complex:
    return a if a.real > b.real else b


def rmsprop(h: State, g: complex, x: complex, lr, alpha=0.99, eps=1e-8, **options: Any):
    v = alpha * h["square_avg"] + (1 - alpha) * g * g
    after = {"square_avg": v}
    if options.get("centered"):
        after["grad_avg"] = alpha * h["grad_avg"] + (1 - alpha) * g
        v = v - after["grad_avg"] ** 2
    step = g / (np.sqrt(v) + eps)
    if options.get("momentum"):
        step = after["momentum_buffer"] = options["momentum"] * h["momentum_buffer"] + step
    return after, -lr * step


def adagrad(h: State, g: complex, x: complex, lr, lr_decay=0.0, eps=1e-10, **options: Any):
    total = h["sum"] + g * g
    return {"sum": total}, -lr / (1 + (T - 1) * lr_decay) * g / (np.sqrt(total) + eps)


def adadelta(h: State, g: complex, x: complex, lr, rho=0.9, eps=1e-6):
    v = rho * h["square_avg"] + (1 - rho) * g * g
    step = np.sqrt(h["acc_delta"] + eps) / np.sqrt(v + eps) * g
    return {"square_avg": v, "acc_delta": rho * h["acc_delta"] + (1 - rho) * step**2}, -lr * step


def nadam(h: State, g: complex, x: complex, lr, betas=(0.9, 0.999), eps=1e-8, **options: Any):
    schedule = [betas[0] * (1 - 0.5 * 0.96 ** (t * 0.004)) for t in range(1, T + 2)]
    product, following = np.prod(schedule[:-1]), schedule[-1]
    m, v = betas[0] * h["exp_avg"] + (1 - betas[0]) * g, second(h, g, betas[1])
    mean = (1 - schedule[-2]) / (1 - product) * g + following / (1 - product * following) * m
    return {"exp_avg": m, "exp_avg_sq": v}, -lr * mean / (np.sqrt(v / (1 - betas[1] ** T)) + eps)


def radam(h: State, g: complex, x: complex, lr, betas=(0.9, 0.999), eps=1e-8):
    m, v = betas[0] * h["exp_avg"] + (1 - betas[0]) * g, second(h, g, betas[1])
    longest = 2 / (1 - betas[1]) - 1
    length = longest - 2 * T * betas[1] ** T / (1 - betas[1] ** T)
    step = m / (1 - betas[0] ** T)
    if length > 5:
        rectified = (length - 4) * (length - 2) * longest
        rectified /= (longest - 4) * (longest - 2) * length
        step = step * np.sqrt(rectified) * np.sqrt(1 - betas[1] ** T) / (np.sqrt(v) + eps)
    return {"exp_avg": m, "exp_avg_sq": v}, -lr * step


def adamax(h: State, g: complex, x: complex, lr, betas=(0.9, 0.999), eps=1e-8):
    m = betas[0] * h["exp_avg"] + (1 - betas[0]) * g
    u = larger(betas[1] * h["exp_inf"], g * np.sign(g.real) + eps)
    return {"exp_avg": m, "exp_inf": u}, -lr / (1 - betas[0] ** T) * m / u


def asgd(h: State, g: complex, x: complex, lr, lambd=1e-4, alpha=0.75, t0=1e6):
    rate = lr / (1 + lambd * lr * (T - 1)) ** alpha
    step = -rate * lambd * x - rate * g
    return {"ax": h["ax"] + (x + step - h["ax"]) / max(1, T - 1 - t0)}, step


def rprop(h: State, g: complex, x: complex, lr, etas=(0.5, 1.2)):
    assert (g * h["prev"]).real > 0
    size = etas[1] * h["step_size"]
    return {"prev": g, "step_size": size}, -np.sign(g.real) * size


CASES = [
    Case(torch.optim.SGD, sgd, {"lr": 0.1}),
    Case(torch.optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.02}),
    Case(torch.optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    Case(torch.optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    Case(torch.optim.Adam, adam, {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-3}),
    Case(torch.optim.Adam, adam, {"lr": 0.01, "weight_decay": 0.1}, gradient=0.4),
    Case(torch.optim.Adam, adam, {"lr": 0.01, "amsgrad": True}, gradient=-0.2),
    Case(torch.optim.AdamW, adamw, {"lr": 0.01}),
    Case(torch.optim.AdamW, adamw, {"lr": 0.01, "weight_decay": 0.5}, gradient=0.4),
    Case(torch.optim.RMSprop, rmsprop, {"lr": 0.01}, gradient=0.4),
    Case(torch.optim.RMSprop, rmsprop, {"lr": 0.01, "centered": True, "momentum": 0.7}),
    Case(
        torch.optim.RMSprop, rmsprop, {"lr": 0.01, "centered": True, "momentum": 0.7}, gradient=0.4
    ),
    Case(torch.optim.Adagrad, adagrad, {"lr": 0.1}),
    Case(torch.optim.Adagrad, adagrad, {"lr": 0.1, "lr_decay": 0.05}, gradient=0.4),
    Case(torch.optim.Adadelta, adadelta, {"lr": 1.0}),
    Case(torch.optim.Adadelta, adadelta, {"lr": 0.5, "rho": 0.8}, gradient=0.4),
    Case(torch.optim.NAdam, nadam, {"lr": 0.01}),
    Case(torch.optim.NAdam, nadam, {"lr": 0.01}, gradient=0.4),
    Case(torch.optim.RAdam, radam, {"lr": 0.01}, gradient=0.4),
    Case(torch.optim.RAdam, radam, {"lr": 0.01, "betas": (0.9, 0.6)}),
    Case(torch.optim.Adamax, adamax, {"lr": 0.01}),
    Case(torch.optim.Adamax, adamax, {"lr": 0.01}, gradient=0.7),
    Case(torch.optim.ASGD, asgd, {"lr": 0.1, "lambd": 0.2}),
    Case(torch.optim.ASGD, asgd, {"lr": 0.1, "lambd": 0.2, "t0": 10.0}, gradient=0.4),
    Case(torch.optim.Rprop, rprop, {"lr": 1e-4}, gradient=SCALE, alternating=False),
]


def jacobian(case: Case, lin: Linearization) -> tuple[np.ndarray, np.ndarray]:
    """``[h', Δx]`` and its derivatives by a complex step, which has no error of differences."""
    names, z = lin.names, [*lin.state, lin.gradient, lin.param]

    def outputs(z: list[complex]) -> np.ndarray:
        h = dict(zip(names, z[:-2], strict=True))
        after, dx = case.step(h, z[-2], z[-1], **case.hyperparameters)
        return np.array([*(after[name] for name in names), dx], complex)

    assert set(names) == set(
        case.step(dict.fromkeys(names, 1 + 0j), 1 + 0j, 0j, **case.hyperparameters)[0]
    )
    columns = []
    for i in range(len(z)):
        moved = [complex(a) for a in z]
        moved[i] += 1e-30j
        columns.append(outputs(moved).imag / 1e-30)
    return outputs([complex(a) for a in z]).real, np.stack(columns, axis=1)


def own_run(case: Case, gradients: list[float]) -> tuple[Any, torch.Tensor]:
    """The class itself after ``gradients``, its parameter held."""
    p = torch.tensor([PARAM], dtype=torch.float64)
    optimizer = case.kind([p], **case.hyperparameters)
    for g in gradients:
        p.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        p.fill_(PARAM)
    return optimizer, p


def own_states(case: Case) -> list[dict[str, torch.Tensor]]:
    signs = [(-1.0) ** k if case.alternating else 1.0 for k in range(STEPS)]
    states = []
    for count in (STEPS - 1, STEPS):
        history = [SCALE * sign for sign in signs[:count]]
        if "dampening" in case.hyperparameters:  # SGD leaves its first gradient undamped
            history.insert(0, 0.0)
        optimizer, p = own_run(case, history)
        states.append(dict(optimizer.state[p]))
    return states


def own_step(case: Case, state: dict[str, torch.Tensor], lin: Linearization, z: np.ndarray):
    """``[h', Δx]`` of the class's own step from z = [h, g, x], with default switches."""
    p = torch.tensor([z[-1]], dtype=torch.float64)
    optimizer = case.kind([p], **case.hyperparameters)
    entries = {k: v.clone() for k, v in state.items() if isinstance(v, torch.Tensor)}
    for name, value in zip(lin.names, z[:-2], strict=True):
        entries[name] = torch.tensor([value], dtype=torch.float64)
    optimizer.state[p] = entries
    p.grad = torch.tensor([z[-2]], dtype=torch.float64)
    optimizer.step()
    after = optimizer.state[p]
    return np.array([*(after[name].item() for name in lin.names), p.item() - z[-1]])


@pytest.fixture(autouse=True)
def double() -> Any:
    """PyTorch's own step numbers and products are float32 otherwise."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind.__name__)
def test_every_class_is_its_closed_form_and_its_own_step(case: Case) -> None:
    lin = case.linearize()
    found = np.block([[lin.A, lin.B[:, None], lin.E[:, None]], [lin.C, lin.D, lin.weight_decay]])
    value, expected = jacobian(case, lin)
    size = np.maximum(np.abs(expected), 1e-3 * np.max(np.abs(expected)))
    np.testing.assert_array_less(np.abs(found - expected), 1e-8 * size)
    np.testing.assert_allclose(np.append(lin.state + lin.residual, lin.drift), value, atol=1e-12)
    previous, last = own_states(case)
    for name, entry in zip(lin.names, lin.state, strict=True):
        pair = [state[name].item() for state in (previous, last)]
        np.testing.assert_allclose(entry, np.mean(pair) if case.alternating else pair[1])
    z = np.array([*lin.state, lin.gradient, lin.param])
    for i in range(len(z)):
        move = np.zeros(len(z))
        move[i] = 1e-5 * max(abs(z[i]), 1e-2)
        ahead, behind = (own_step(case, last, lin, z + sign * move) for sign in (1, -1))
        np.testing.assert_allclose(
            (ahead - behind) / (2 * move[i]), found[:, i], rtol=1e-5, atol=1e-6
        )


def test_the_default_is_settled_and_closed_forms_are_those_of_the_texts() -> None:
    lin = linearize(torch.optim.AdamW, lr=0.01, gradient_scale=0.1, weight_decay=0.1)
    assert lin.names == ("exp_avg", "exp_avg_sq")
    np.testing.assert_allclose(lin.state, [0.0, 0.01], atol=1e-10)
    np.testing.assert_allclose(lin.A, np.diag([0.9, 0.999]), atol=1e-15)
    rate = 0.01 * (1 - 0.9) / (np.sqrt(0.999 * 0.01) + 1e-8)
    np.testing.assert_allclose(-lin.D, rate, rtol=1e-8)
    np.testing.assert_allclose(lin.weight_decay, -0.001, rtol=1e-12)
    modes = optdyn.eigenmodes(lin)
    np.testing.assert_allclose(modes.beta[0], 0.9, rtol=1e-12)
    np.testing.assert_allclose(modes.alpha[0], rate, rtol=1e-8)


def test_analyses_work_on_what_comes_out() -> None:
    lin = linearize(torch.optim.SGD, lr=0.1, momentum=0.9)
    assert optdyn.stability_map(lin).edge == pytest.approx(2 * 1.9 / 0.1)
    tx = as_optax(torch.optim.Adam, lr=0.02, betas=(0.8, 0.99))
    found = optdyn.identify(tx, candidates=["adam", "momentum"])
    assert found.exact
    assert found.nearest.name == "adam"
    for name, value in {"alpha": 0.02, "beta1": 0.8, "beta2": 0.99}.items():
        assert found.nearest.hyperparameters[name] == pytest.approx(value)


def test_a_dissection_says_what_it_is() -> None:
    found = dissect(torch.optim.ASGD, lr=0.1, lambd=1e-3)
    assert found.where == "the initial state, at zero gradient"
    assert pytest.approx(-0.1) == found.linearization.D
