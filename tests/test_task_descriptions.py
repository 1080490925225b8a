"""Tasks by name, and back."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

import helpers
from optdyn.errors import UserError
from optdyn.tasks import (
    TASKS,
    Digits,
    LinearRegression,
    describe_task,
    sample_batch,
    task_from,
    with_options,
)

OWN = """
import dataclasses
import jax
import jax.numpy as jnp
from optdyn.tasks import Problem

@dataclasses.dataclass(frozen=True)
class Bowl:
    width: int = 3
    scale: float = 1.0

    def sample(self, key):
        start = jax.random.normal(key, (self.width,))
        return Problem(start, lambda x: self.scale * jnp.sum(x**2))

class Outer:
    Inner = Bowl

wide = Bowl(width=7)
number = 3
"""


@pytest.fixture(scope="module", autouse=True)
def own_module(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("own")
    Path(folder / "strange_tasks.py").write_text(OWN)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


@pytest.mark.parametrize("name", TASKS)
def test_a_built_in_task_comes_back_from_its_description(name: str) -> None:
    task = helpers.small_task(name)
    described = describe_task(task)
    assert described.name == name
    assert json.loads(json.dumps(described.options)) == described.options
    assert task_from(described.name, **described.options) == task


def test_a_task_of_ones_own_comes_back_from_its_description() -> None:
    task = task_from("strange_tasks:Bowl", width=4)
    described = describe_task(task)
    assert described.name == "strange_tasks:Bowl"
    assert described.options == {"width": 4, "scale": 1.0}
    assert task_from(described.name, **described.options) == task
    assert task_from("strange_tasks:Outer.Inner", width=4) == task
    assert task_from("strange_tasks:wide").width == 7


def test_options_that_json_cannot_hold_are_told_by_their_repr() -> None:
    @dataclasses.dataclass(frozen=True)
    class Odd:
        shape: complex = 1j

        def sample(self, key: object) -> None: ...

    described = describe_task(Odd())
    assert described.options == {"shape": "1j"}
    assert described.name == f"{__name__}:{Odd.__qualname__}"
    with pytest.raises(UserError, match="top level"):
        task_from(described.name)


@pytest.mark.parametrize(
    ("text", "options", "why"),
    [
        ("strange_tasks:Missing", {}, "cannot find strange_tasks:Missing"),
        ("no_such_module:Bowl", {}, "No module named"),
        ("strange_tasks:", {}, "cannot find"),
        ("strange_tasks:number", {}, "has no method sample"),
        ("strange_tasks:Bowl", {"depth": 3}, "unexpected keyword argument 'depth'"),
        ("strange_tasks:wide", {"width": 3}, "takes no options"),
        ("strange_tasks:Outer", {}, "an object with the method sample"),
        ("nothing", {}, "unknown value 'nothing'"),
    ],
)
def test_what_gives_no_task_is_refused(text: str, options: dict[str, int], why: str) -> None:
    with pytest.raises(UserError, match=why) as raised:
        task_from(text, **options)
    assert "\n" not in str(raised.value)


def test_what_is_no_task_is_refused() -> None:
    for value in (LinearRegression, "rosenbrock", None):
        with pytest.raises(UserError, match="sample"):
            describe_task(value)
        with pytest.raises(UserError, match="sample"):
            sample_batch(value, None)


def test_some_options_are_replaced() -> None:
    assert with_options(Digits(width=3), {"batch": 8}) == Digits(width=3, batch=8)
    task = task_from("strange_tasks:Bowl", width=4)
    assert describe_task(with_options(task, {"scale": 2.0})).options == {"width": 4, "scale": 2.0}
    assert with_options(task, {}) is task
    with pytest.raises(UserError, match=r"unknown option 'depth' .has: width, scale"):
        with_options(task, {"depth": 1})
    with pytest.raises(UserError, match=r"digits.batch: 0"):
        with_options(Digits(), {"batch": 0})
