"""Typed values survive JSON, and the first fault in a file is named by its place."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from jaxtyping import Complex128, Float32, Float64, Int64

from optdyn.errors import UserError
from optdyn.evaluation import MeanAndError
from optdyn.runs._plain import convert, parse, result_plain


@dataclasses.dataclass(frozen=True)
class Stage:
    """A row of a list."""

    name: str
    good: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
    """A file with a field of each kind."""

    step: int
    rate: float
    beta: Complex128[np.ndarray, " modes"]
    gain: Float64[np.ndarray, " modes"]
    bins: Int64[np.ndarray, " bins"]
    edges: Float32[np.ndarray, " bins+1"]
    grid: Float64[np.ndarray, "modes bins"]
    named: dict[str, float]
    stages: list[Stage]
    score: MeanAndError[float]
    theory: Stage | None = None

    def __post_init__(self) -> None:
        if self.step < 0:
            raise UserError(f"step {self.step} is not allowed (>= 0)")


def sound() -> dict[str, Any]:
    return {
        "step": 3,
        "rate": "inf",
        "beta": [[0.5, 0.25], [0.25, "nan"]],
        "gain": [1, 2.5],
        "bins": [4, 5],
        "edges": [0, 0.1, "-inf"],
        "grid": [[1, 2], [3, 4]],
        "named": {"alpha": 0.5},
        "stages": [{"name": "one", "good": True}],
        "score": {"mean": 1.0, "standard_error": "inf"},
        "more": "is allowed",
    }


def test_values_come_back_as_they_were() -> None:
    found = convert(sound(), Content, "a")
    again = convert(found, Content, "a")
    for one in (found, again):
        assert (one.step, one.rate, one.theory) == (3, math.inf, None)
        assert one.score == MeanAndError(1.0, math.inf)
        assert one.stages == [Stage("one", True)]
        assert (one.beta.dtype, one.edges.dtype, one.bins.dtype) == (
            np.complex128, np.float32, np.int64
        )  # fmt: skip
        np.testing.assert_array_equal(one.beta, [0.5 + 0.25j, complex(0.25, math.nan)])
        np.testing.assert_array_equal(one.edges, np.float32([0, 0.1, -np.inf]))
        np.testing.assert_array_equal(one.grid, [[1, 2], [3, 4]])


def test_every_float_survives_to_the_bit() -> None:
    values = np.random.default_rng(0).standard_normal(500) * 10.0 ** np.arange(-250, 250)
    text = json.dumps(result_plain({"step": values}))
    found = parse(text, dict[str, Float64[np.ndarray, " n"]], "a")
    assert found["step"].tobytes() == values.tobytes()
    single = values[200:260].astype(np.float32)
    found = convert({"step": single}, dict[str, Float32[np.ndarray, " n"]], "a")
    assert found["step"].tobytes() == single.tobytes()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("step",), 3.5, "step: Expected `int`, got `float`"),
        (("step",), -1, r"step -1 is not allowed \(>= 0\)"),
        (("rate",), None, "rate: Expected `float`, got `null`"),
        (("rate",), "fast", "rate: Expected `float`, got `str`"),
        (("rate",), False, "rate: Expected `float`, got `bool`"),
        (("beta",), [[0.5, 0.0], [0.25]], "beta: rows differ in length"),
        (("beta",), [[0.5, 0.0, 1.0]], "beta: a complex number is a pair"),
        (("beta", 1), None, r"beta: Expected `array`, got `null` - at `\[1\]`"),
        (("beta", 1, 0), "x", r"beta: Expected `float`, got `str` - at `\[1\]\[0\]`"),
        (("gain",), [1.0], r"gain: has sizes \(1,\), not those of the axes 'modes'"),
        (("edges",), [4], r"edges: has sizes \(1,\), not those of the axes 'bins\+1'"),
        (("grid",), [[1, 2]], r"grid: has sizes \(1, 2\), not those of the axes 'modes bins'"),
        (("named", "alpha"), None, r"named\[...\]: Expected `float`, got `null`"),
        (("named",), 0.5, "named: Expected `object`, got `float`"),
        (("stages", 0, "name"), 1, r"stages\[0\]\.name: Expected `str`, got `int`"),
        (("score",), {}, "score: Object missing required field `mean` .made by another version"),
    ],
)
def test_the_first_fault_is_named(place: tuple[Any, ...], value: object, message: str) -> None:
    content = sound()
    holder: Any = content
    for name in place[:-1]:
        holder = holder[name]
    holder[place[-1]] = value
    with pytest.raises(UserError, match=rf"^a\.json: {message}") as caught:
        convert(content, Content, "a.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, [], "x", 3])
def test_content_that_is_no_object_is_refused(content: object) -> None:
    with pytest.raises(UserError, match=r"^a\.json: content: Expected `object`, got"):
        convert(content, Content, "a.json")
