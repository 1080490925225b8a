"""A readable optimizer in PyTorch does what the one in JAX does."""

from __future__ import annotations

import copy
import dataclasses
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import optdyn
from beside_jax import gradients, in_jax, ones, run
from optdyn.distillation import (
    AdaptiveScaling,
    Distilled,
    Forgetting,
    Momenta,
    Saturation,
    Schedule,
)
from optdyn.errors import UserError
from optdyn.precision import double_precision, to_float64
from optdyn.torch import LearnedOptimizer, closed_loop

SHIPPED = ("digits", "readable")
PARTS: dict[str, Any] = {
    "momenta": lambda: Momenta.of([2e-3, -5e-4, 1e-2], [0.9, 0.99, 0.3]),
    "adaptive": lambda: AdaptiveScaling.of(0.97, 0.7, 1e-6),
    "saturation": lambda: Saturation.of(0.2, 0.6),
    "forgetting": lambda: Forgetting.of(0.5, 0.4),
    "schedule": lambda: Schedule.of([-1.2, 0.4], [0.5, 0.98]),
}


def made(*parts: str) -> Distilled:
    return Distilled(**{name: PARTS[name]() for name in ("momenta", *parts)})


@pytest.mark.parametrize(
    "parts",
    [
        (),
        ("adaptive",),
        ("saturation", "schedule"),
        ("forgetting",),
        ("adaptive", "saturation", "forgetting", "schedule"),
    ],
    ids=lambda parts: "+".join(parts) or "momenta",
)
def test_equals_the_jax_optimizer_in_float64(parts: tuple[str, ...]) -> None:
    distilled = made(*parts)
    with double_precision():
        expected = in_jax(to_float64(distilled).as_optax(), gradients(), "float64")
    params = ones(torch.float64)
    found = run(LearnedOptimizer(params, distilled, dtype=torch.float64), params, gradients())
    assert all(np.max(np.abs(a - 1.0)) > 1e-3 for a in expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_the_shipped_one_equals_the_jax_optimizer() -> None:
    params = ones(torch.float32)
    found = run(LearnedOptimizer(params, "digits", stage="readable"), params, gradients())
    expected = in_jax(optdyn.load_pretrained(*SHIPPED), gradients(), "float32")
    assert all(np.max(np.abs(a - 1.0)) > 0.1 for a in expected)
    for a, b in zip(found, expected, strict=True):
        assert np.max(np.abs(a - b)) <= 1e-6 * max(1.0, np.max(np.abs(b)))


def test_a_state_dict_with_its_schedule_is_taken_up_to_the_bit() -> None:
    history = gradients(12)
    through, resumed = ones(torch.float32), ones(torch.float32)
    made_by = {"optimizer": "digits", "stage": "readable", "lr": 0.5}
    expected = run(LearnedOptimizer(through, **made_by), through, history)
    first = LearnedOptimizer(resumed, **made_by)
    run(first, resumed, history[:7])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = LearnedOptimizer(resumed, "digits", stage="readable")
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.param_groups[0]["lr"] == 0.5
    found = run(second, resumed, history[7:])
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    restarted = ones(torch.float32)
    run(LearnedOptimizer(restarted, **made_by), restarted, history[:7])
    fresh = run(LearnedOptimizer(restarted, **made_by), restarted, history[7:])
    assert not any(np.array_equal(a, b) for a, b in zip(fresh, expected, strict=True))


def test_a_copy_goes_on_alike() -> None:
    history, params = gradients(4), ones(torch.float32)
    original = LearnedOptimizer(params, made("schedule"))
    run(original, params, history[:2])
    copied_params, copied = copy.deepcopy((params, original))
    expected = run(original, params, history[2:])
    found = run(copied, copied_params, history[2:])
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_state_of_one_with_other_numbers_is_refused() -> None:
    p = torch.ones(3)
    p.grad = torch.full((3,), 0.1)
    usual = made("schedule")
    other = dataclasses.replace(usual, schedule=Schedule.of([-1.2, 0.4], [0.5, 0.97]))
    for learned in (other, made(), made("saturation"), optdyn.load_pretrained("digits")):
        stranger = LearnedOptimizer([p], learned)
        stranger.step()
        with pytest.raises(UserError, match="not of this optimizer"):
            LearnedOptimizer([p], usual).load_state_dict(stranger.state_dict())
    same = LearnedOptimizer([p], made("schedule"))
    same.step()
    LearnedOptimizer([p], usual).load_state_dict(same.state_dict())


def test_each_group_has_its_own_rate() -> None:
    a, b = torch.zeros(3), torch.zeros(3)
    groups = [{"params": [a]}, {"params": [b], "lr": 0.25}]
    optimizer = LearnedOptimizer(groups, "digits", stage="readable")
    for _ in range(3):
        a.grad = b.grad = torch.tensor([0.1, -3.0, 1e-3])
        optimizer.step()
    assert torch.all(a != 0.0)
    torch.testing.assert_close(b, 0.25 * a)


def test_a_stage_that_does_not_ship_is_refused() -> None:
    for stage in ("readable", "legible"):
        with pytest.raises(UserError, match="stage of rosenbrock"):
            LearnedOptimizer([torch.ones(2)], "rosenbrock", stage=stage)


def test_its_closed_loop_is_the_one_that_jax_finds() -> None:
    start = {"a": np.array([[1.0, -2.0]]), "b": np.array(0.5)}
    model = torch.nn.ParameterDict({name: torch.tensor(value) for name, value in start.items()})

    def loss_fn(x: Any) -> Any:
        return 0.25 * x["a"][0, 0] ** 2 + x["a"][0, 1] ** 2 + 7.5 * x["b"] ** 2

    distilled = made("adaptive", "saturation", "forgetting", "schedule")
    optimizer = LearnedOptimizer(model.parameters(), distilled, dtype=torch.float64, lr=0.5)
    for _ in range(6):
        optimizer.zero_grad()
        loss_fn(model).backward()
        optimizer.step()
    found = closed_loop(optimizer, loss_fn, model, num=24)
    with double_precision():
        tx = optax.chain(to_float64(distilled).as_optax(), optax.scale(0.5))
        x = jax.tree.map(jnp.asarray, start)
        state, update = tx.init(x), jax.jit(tx.update)
        for _ in range(6):
            updates, state = update(jax.grad(loss_fn)(x), state)
            x = optax.apply_updates(x, updates)
        expected = optdyn.closed_loop(tx, loss_fn, x, state, num=24)
    assert found.largest.size == 24
    np.testing.assert_allclose(np.abs(found.largest), np.abs(expected.largest), rtol=1e-7)
    assert found.margin == pytest.approx(expected.margin, rel=1e-3)
    assert np.isfinite(found.margin)
