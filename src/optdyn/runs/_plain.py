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
    return plain(value, lambda number: number if math.isfinite(number) else None)


def result_plain(value: Any) -> Any:
    """``value`` as results hold it: as `to_plain`, but that what is not finite can be read back."""
    return plain(value, lambda n: n if math.isfinite(n) else NOT_FINITE.get(n, "nan"))


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


def plain(
    value: Any,
    number: Callable[[float], Any],
    parts: Callable[[np.ndarray], Any] = lambda value: np.stack([value.real, value.imag], axis=-1),
) -> Any:
    """``value`` as JSON can hold it: each float as ``number`` says, complex ones as ``parts``."""
    if isinstance(value, complex) or (hasattr(value, "dtype") and np.iscomplexobj(value)):
        value = parts(np.asarray(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item, number, parts) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item, number, parts) for item in value]
    if isinstance(value, type):
        return f"{value.__module__}:{value.__qualname__}"
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist(), number, parts)
    return number(value) if isinstance(value, float) else value
