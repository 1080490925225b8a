"""Save a figure three times: for the eye (SVG, PNG) and its numbers (JSON)."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

from optdyn.figures._style import STYLE
from optdyn.runs._plain import to_plain
from optdyn.runs._store import safe_name, write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGNIFICANT_DIGITS = 5


def save_figure(figure: Figure, data: dict[str, Any], folder: Path, name: str) -> None:
    """Write ``name``.svg, ``name``.png and ``name``.json into ``folder``, each atomically.

    ``data`` holds the numbers drawn, as arrays, dataclasses, lists, dicts and
    scalars; floats are rounded to 5 significant digits, complex arrays become
    ``{"real", "imaginary"}``, what is not finite null. The same figure gives the
    same bytes. Raises `UserError` for an unsafe name or where the disk refuses.
    """
    safe_name(name)
    write_bytes(folder / f"{name}.svg", _rendered(figure, "svg", {"Date": None, "Creator": None}))
    figure.set_layout_engine("none")  # it is laid out by now, which takes half the time
    write_bytes(folder / f"{name}.png", _rendered(figure, "png", {"Software": None}))
    text = json.dumps(to_plain(_rounded(data)), allow_nan=False, ensure_ascii=False)
    write_bytes(folder / f"{name}.json", (text + "\n").encode())


def _rendered(figure: Figure, kind: str, metadata: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def _rounded(value: Any) -> Any:
    """``value`` with arrays as lists and every float to few digits."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _rounded({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if np.iscomplexobj(array):
            return _rounded({"real": array.real, "imaginary": array.imag})
        return _rounded(array.tolist())
    if isinstance(value, complex):
        return _rounded({"real": value.real, "imaginary": value.imag})
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value
