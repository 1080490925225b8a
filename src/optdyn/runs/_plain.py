"""Values as JSON, and JSON as typed values."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from jaxtyping import jaxtyped

from optdyn.errors import UserError, first_line

T = TypeVar("T")

NOT_FINITE = {math.inf: "inf", -math.inf: "-inf"}
"""What stands in a result for numbers that JSON has no word for; else ``"nan"``."""


def to_plain(value: Any) -> Any:
    """``value`` as other programs read JSON.

    Dataclasses become objects, tuples and arrays lists, paths strings, classes
    ``module:Class``, and numbers that are not finite null (JSON has no word for them).
    """
    return _without(value, lambda number: None)


def result_plain(value: Any) -> Any:
    """``value`` as results hold it: as `to_plain`, but that what is not finite can be read back."""
    return _without(value, lambda number: NOT_FINITE.get(number, "nan"))


def parse(content: bytes | str, kind: type[T], where: str) -> T:
    """JSON as a ``kind``; the same name of an axis is one size throughout.

    Raises `UserError`, which begins with ``where``.
    """
    try:
        with jaxtyped("context"):
            return msgspec.json.decode(content, type=kind, strict=False, dec_hook=_array)
    except msgspec.ValidationError as error:
        words, _, field = first_line(error).partition(" - at `$")
        place = field.rstrip("`").lstrip(".")
        if not place and words.startswith("Expected"):
            place = "content"
        hint = " (made by another version? repeat the work)" if "missing" in words else ""
        raise UserError(": ".join(filter(None, (where, place, words + hint)))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({first_line(error)})") from None


def convert(value: Any, kind: type[T], where: str) -> T:
    """What `parse` gives for the JSON of ``value``, with its errors."""
    return parse(json.dumps(result_plain(value), allow_nan=False), kind, where)


def _array(kind: Any, value: Any) -> np.ndarray:
    """The array that nested lists hold; complex numbers are pairs. Raises `ValueError`."""
    dtype = np.dtype(kind.dtypes[0])
    nested: Any = float
    for _ in range(len(kind.dims) + (dtype.kind == "c")):
        nested = list[nested]
    try:
        numbers: np.ndarray = np.array(msgspec.convert(value, nested, strict=False), np.float64)
    except ValueError as error:
        fault = "rows differ in length" if "inhomogeneous" in str(error) else first_line(error)
        raise ValueError(fault.replace("`$", "`")) from None
    if dtype.kind == "c":
        if numbers.shape[-1] != 2:
            raise ValueError("a complex number is a pair [real, imaginary]")
        numbers = numbers.view(np.complex128)[..., 0]
    with np.errstate(over="ignore"):
        array = numbers.astype(dtype)
    if not isinstance(array, kind):
        raise ValueError(f"has sizes {array.shape}, not those of the axes '{kind.dim_str}'")
    return array


def _without(value: Any, stand_in: Callable[[float], str | None]) -> Any:
    """``value`` as JSON can hold it, with ``stand_in`` of each number that is not finite."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _without(getattr(value, field.name), stand_in) for field in fields}
    if isinstance(value, dict):
        return {str(key): _without(item, stand_in) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_without(item, stand_in) for item in value]
    if isinstance(value, type):
        return f"{value.__module__}:{value.__qualname__}"
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.ndarray) and np.iscomplexobj(value):
        value = np.stack([value.real, value.imag], axis=-1)
    if hasattr(value, "tolist"):
        return _without(value.tolist(), stand_in)
    if isinstance(value, float) and not math.isfinite(value):
        return stand_in(value)
    return value
