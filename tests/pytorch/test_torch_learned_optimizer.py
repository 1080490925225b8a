"""The learned optimizer in PyTorch does what the one in JAX does."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import optdyn
import optdyn.pretrained
from beside_jax import SHAPES, gradients, in_jax, ones, run
from helpers import random_rnn
from optdyn import load_pretrained
from optdyn.errors import UserError
from optdyn.optimizers import (
    CELLS,
    ENCODINGS,
    Encoding,
    GradientRangeWarning,
)
from optdyn.precision import double_precision, to_float64
from optdyn.torch import LearnedOptimizer
from optdyn.torch import _network as network

# The gradients here are of every size.
pytestmark = pytest.mark.filterwarnings("ignore::optdyn.optimizers.GradientRangeWarning")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def test_there_is_every_cell_and_encoding() -> None:
    assert set(network.CELLS) == set(CELLS)
    assert set(network.ENCODINGS) == set(ENCODINGS)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("cell", "kind"),
    [(cell, "asinh") for cell in CELLS] + [("gru", "linear"), ("gru", "log_sign")],
)
def test_equals_the_jax_optimizer_in_float64(cell: str, kind: str, device: str) -> None:
    encoding = Encoding(kind, gain=3.0, scale=0.5)
    with double_precision():
        rnn = to_float64(random_rnn(cell, encoding=encoding, output_scale=0.1, scale=0.3))
        expected = in_jax(rnn.as_optax(), gradients(), "float64")
    params = ones(torch.float64, device)
    found = run(LearnedOptimizer(params, rnn), params, gradients())
    assert max(np.max(np.abs(a - 1.0)) for a in expected) > 0.1
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["two_moons", "digits"])
def test_pretrained_weights_equal_the_jax_optimizer_in_float32(name: str, device: str) -> None:
    params = ones(torch.float32, device)
    found = run(LearnedOptimizer(params, name), params, gradients())
    expected = in_jax(load_pretrained(name).as_optax(), gradients(), "float32")
    for a, b in zip(found, expected, strict=True):
        assert np.max(np.abs(a - b)) <= 1e-6 * max(1.0, np.max(np.abs(b)))


def test_the_dtype_is_that_of_the_network_whatever_the_parameters() -> None:
    history = gradients(20)
    wide, narrow = ones(torch.float64), ones(torch.float64)
    found = run(LearnedOptimizer(wide, "two_moons", dtype=torch.float64), wide, history)
    other = LearnedOptimizer(narrow, "two_moons")
    rounded = run(other, narrow, history)
    assert other.state[narrow[0]]["h"].dtype == torch.float32
    for a, b in zip(found, rounded, strict=True):
        assert 0.0 < np.max(np.abs(a - b)) < 1e-5


def test_a_state_dict_is_taken_up_to_the_bit() -> None:
    history = gradients(12)
    through, resumed = ones(torch.float32), ones(torch.float32)
    expected = run(LearnedOptimizer(through, "two_moons", lr=0.5), through, history)
    first = LearnedOptimizer(resumed, "two_moons", lr=0.5)
    run(first, resumed, history[:7])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = LearnedOptimizer(resumed, "two_moons")
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.param_groups[0]["lr"] == 0.5
    found = run(second, resumed, history[7:])
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_half_precision_parameters_leave_the_state_alone() -> None:
    params = ones(torch.bfloat16)
    first = LearnedOptimizer(params, "two_moons")
    for p, g in zip(params, gradients(2)[1], strict=True):
        p.grad = torch.as_tensor(g, dtype=p.dtype)
    first.step()
    second = LearnedOptimizer(params, "two_moons")
    second.load_state_dict(first.state_dict())
    for p in params:
        assert second.state[p]["h"].dtype == torch.float32
        assert torch.equal(second.state[p]["h"], first.state[p]["h"])
        assert second.state[p]["h"].data_ptr() != first.state[p]["h"].data_ptr()


def test_a_copy_goes_on_alike() -> None:
    history = gradients(4)
    params = ones(torch.float32)
    original = LearnedOptimizer(params, "two_moons")
    run(original, params, history[:2])
    copied_params, copied = copy.deepcopy((params, original))
    expected = run(original, params, history[2:])
    found = run(copied, copied_params, history[2:])
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_groups_have_their_own_rates_and_schedulers_change_them() -> None:
    a, b = torch.zeros(3), torch.zeros(3)
    optimizer = LearnedOptimizer([{"params": [a]}, {"params": [b], "lr": 0.25}], "two_moons")
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    sizes = []
    for _ in range(2):
        before = a.clone(), b.clone()
        a.grad = b.grad = torch.full((3,), 0.1)
        optimizer.step()
        scheduler.step()
        sizes.append((a - before[0], b - before[1]))
    for x, y in sizes:
        torch.testing.assert_close(y, 0.25 * x)
    alone = torch.zeros(3)
    unscheduled = LearnedOptimizer([alone], "two_moons")
    moved = []
    for _ in range(2):
        before_step = alone.clone()
        alone.grad = torch.full((3,), 0.1)
        unscheduled.step()
        moved.append(alone - before_step)
    torch.testing.assert_close(sizes[1][0], 0.5 * moved[1])


def test_parameters_without_a_gradient_stand_still() -> None:
    params = ones(torch.float32)
    optimizer = LearnedOptimizer(params, "two_moons")
    params[0].grad = torch.ones(SHAPES[0])
    optimizer.step()
    assert torch.all(params[0] != 1.0)
    assert torch.all(params[2] == 1.0)
    assert set(optimizer.state) == {params[0]}


def test_a_closure_computes_the_loss() -> None:
    p = torch.ones(3, requires_grad=True)
    optimizer = LearnedOptimizer([p], "two_moons")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(20)]
    assert losses[0] == 3.0
    assert losses[-1] < losses[0]


def test_a_checkpoint_is_a_source_too() -> None:
    by_name, by_path = ones(torch.float32), ones(torch.float32)
    path = Path(optdyn.pretrained.__file__).parent / "two_moons" / "final.safetensors"
    expected = run(LearnedOptimizer(by_name, "two_moons"), by_name, gradients(3))
    found = run(LearnedOptimizer(by_path, path), by_path, gradients(3))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"optimizer": "two_moon"}, "two_moon"),
        ({"optimizer": 3}, "a pretrained name"),
        ({"optimizer": "two_moons", "lr": 0.0}, "lr: 0.0"),
        ({"optimizer": "two_moons", "lr": float("nan")}, "lr: nan"),
        ({"optimizer": "two_moons", "dtype": torch.bfloat16}, "dtype: torch.bfloat16"),
        ({"optimizer": "two_moons", "params": [torch.ones(2, dtype=torch.int32)]}, "int32"),
        ({"optimizer": "two_moons", "params": [torch.ones(2, dtype=torch.complex64)]}, "complex"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        LearnedOptimizer(**{"params": [torch.ones(2)], **arguments})


def test_sparse_gradients_are_refused() -> None:
    p = torch.ones(3)
    optimizer = LearnedOptimizer([p], "two_moons")
    p.grad = torch.ones(3).to_sparse()
    with pytest.raises(UserError, match="sparse"):
        optimizer.step()


def test_the_state_of_another_optimizer_is_refused() -> None:
    p, q = torch.ones(3), torch.ones(4)
    p.grad, q.grad = torch.ones(3), torch.ones(4)
    optimizers = {
        "Adam": torch.optim.Adam([p]),
        "digits": LearnedOptimizer([p], "digits"),
        "larger": LearnedOptimizer([q], "two_moons"),
    }
    for name, other in optimizers.items():
        other.step()
        told = "4 components" if name == "larger" else "not of this optimizer"
        with pytest.raises(UserError, match=told):
            LearnedOptimizer([p], "two_moons").load_state_dict(other.state_dict())


def test_importing_it_brings_no_jax_and_optdyn_brings_no_torch() -> None:
    code = (
        "import sys, optdyn; assert 'torch' not in sys.modules; "
        "import optdyn.torch; listed = dir(optdyn.torch); "
        "from optdyn.torch import LearnedOptimizer; assert 'jax' not in sys.modules; "
        "assert listed == optdyn.torch.__all__ == ['LearnedOptimizer', 'as_optax', "
        "'closed_loop', 'dissect', 'linearize']; from optdyn.torch import *; "
        "assert closed_loop.__module__ == 'optdyn.torch._closed_loop'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_shipped_optimizer_warns_once_about_unfamiliar_gradients() -> None:
    rnn = optdyn.load_pretrained("two_moons")
    assert rnn.trained_on is not None
    usual = float(np.sqrt(rnn.trained_on.smallest * rnn.trained_on.largest))
    for size, warned in ((usual, 0), (1e3 * rnn.trained_on.largest, 1)):
        x, unused = (torch.zeros(2, requires_grad=True) for _ in range(2))
        optimizer = LearnedOptimizer([x, unused], "two_moons")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                x.grad = torch.tensor([0.0, -size])
                optimizer.step()
        kinds = [each for each in caught if each.category is GradientRangeWarning]
        assert len(kinds) == warned
