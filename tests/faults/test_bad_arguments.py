"""Whatever is given to a function of the package: it is taken, or refused in one line."""

from __future__ import annotations

import dataclasses
import decimal
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optdyn
from optdyn.errors import UserError
from optdyn.inner_loop import Objective
from optdyn.meta_training import UnrollOptions
from optdyn.optimizers._baselines import Baseline
from optdyn.optimizers._search_space import Axis
from optdyn.random_streams import stream
from optdyn.search import Execution, SearchProtocol
from optdyn.search._learning_rate import LearningRateSearch
from optdyn.tasks import Digits, LinearRegression, Rosenbrock, TwoMoons

ANYTHING = [
    None, True, False, 0, -1, -0.0, 0.5, -1e30, 1e308, 10**400, 10**5000, 2**31, 2**63,
    float("nan"), float("inf"), "", "x", "5", "\ud800", "a\nb", "../x", b"x", [], [1], (1, 2), {},
    {"a": 1}, set(), object(), len, int, np.float32(0.5), np.int64(3), np.array([1, 2]),
    jnp.ones(2), 1j, decimal.Decimal("1"), Path("x"), Path("a\0b"), "a\0b.safetensors",
]  # fmt: skip
AXIS = Axis("alpha", "log", 0.1, 1.0, 5)
RECORDS = [
    optdyn.Architecture(),
    optdyn.Encoding(),
    optdyn.MetaTraining(),
    UnrollOptions(),
    Objective(),
    SearchProtocol(),
    LearningRateSearch(),
    LinearRegression(),
    TwoMoons(),
    Digits(),
    AXIS,
]
SEARCH = [
    "seed", "num_samples", "num_problems", "num_steps", "rescore_top", "rescore_problems",
    "max_rounds", "normalization", "at_once", "runs_per_chunk", "grid",
]  # fmt: skip
EVALUATION = {"seed": 0, "num_problems": 2, "num_steps": 2, "normalization": "none"}


def told(call: Callable[[Any], object], value: object) -> str:
    """Why ``value`` is refused; nothing where it is taken."""
    try:
        call(value)
    except UserError as error:
        return str(error)
    return ""


def taken_or_refused(call: Callable[[Any], object], value: object) -> None:
    why = told(call, value)
    assert why == "" or (why.isprintable() and len(why) < 400)


def changed(record: Any, name: str, value: object) -> Any:
    return dataclasses.replace(record, **{name: value})


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_fields_of_records(record: Any) -> None:
    for field in dataclasses.fields(record):
        for value in ANYTHING:
            change = functools.partial(changed, record, field.name)
            taken_or_refused(change, value)


def test_names_and_folders() -> None:
    for value in ANYTHING:
        taken_or_refused(optdyn.make_task, value)
        taken_or_refused(optdyn.load_pretrained, value)
        taken_or_refused(lambda v: optdyn.load_pretrained("rosenbrock", stage=v), value)
        taken_or_refused(lambda v: optdyn.load_pretrained("rosenbrock", folder=v), value)
        taken_or_refused(lambda v: optdyn.pretrained_card(v), value)
        taken_or_refused(lambda v: stream(v, "any"), value)


BAD_COUNTS = [0, -1, True, 0.5, 2**31, 10**400, "2", None, np.array([1, 2]), {}]


@pytest.mark.parametrize("name", EVALUATION)
def test_settings_of_an_evaluation(name: str) -> None:
    bad = {
        "seed": [-1, 2**32, True, 0.5, "0", None],
        "normalization": ["x", None, 1, np.array([1, 2])],
    }
    for value in bad.get(name, BAD_COUNTS):
        with pytest.raises(UserError, match=f"^{name}: "):
            optdyn.evaluate(optax.sgd(0.1), Rosenbrock(), **{**EVALUATION, name: value})


def search(baseline: Baseline, name: str, value: object) -> None:
    """A small search, one of whose settings has another ``value``."""
    given: dict[str, Any] = {"seed": 0, name: value}

    def those_of(*names: str) -> dict[str, Any]:
        return {each: given[each] for each in names if each in given}

    protocol = SearchProtocol(
        objective=Objective(**those_of("num_steps", "normalization")),
        **those_of(*(field.name for field in dataclasses.fields(SearchProtocol))),
    )
    execution = Execution(**those_of("at_once", "runs_per_chunk"))
    optdyn.random_search(
        baseline, Rosenbrock(), seed=given["seed"], protocol=protocol, execution=execution
    )


@pytest.mark.parametrize("name", SEARCH)
def test_settings_of_a_search(name: str) -> None:
    bad: dict[str, list[object]] = {
        "seed": [-1, 2**32, True, 0.5, "0", None],
        "normalization": ["x", None, 1, np.array([1, 2])],
        "at_once": [value for value in BAD_COUNTS if value is not None],
        "runs_per_chunk": [value for value in BAD_COUNTS if value is not None],
        "grid": ["x", 1, [AXIS], AXIS],
    }
    baseline = optdyn.optimizers._baselines.get_baseline("gradient_descent")
    for value in bad.get(name, BAD_COUNTS):
        with pytest.raises(UserError, match=f"^{name}: "):
            search(baseline, name, value)


@pytest.mark.parametrize("value", ["rosenbrock", None, Rosenbrock, 3, {}])
def test_what_is_no_task_or_no_optimizer(value: object) -> None:
    with pytest.raises(UserError, match=r"^task: .* is not allowed"):
        optdyn.evaluate(optax.sgd(0.1), value, **EVALUATION)
    with pytest.raises(UserError, match=r"^optimizer: .* is not allowed"):
        optdyn.evaluate(value, Rosenbrock(), **EVALUATION)


def test_a_learned_optimizer_is_no_optax_pair_before_it_is_asked_for_one() -> None:
    learned = optdyn.load_pretrained("rosenbrock")
    with pytest.raises(UserError, match=r"as_optax\(\)"):
        optdyn.evaluate(learned, Rosenbrock(), **EVALUATION)
