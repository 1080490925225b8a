"""Save a figure three times: for the eye (SVG, PNG) and its numbers (JSON)."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from optdyn.figures._style import STYLE
from optdyn.runs._plain import plain
from optdyn.runs._store import safe_name, write_bytes

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
    text = json.dumps(plain(data, _rounded, _parts), allow_nan=False, ensure_ascii=False)
    write_bytes(folder / f"{name}.json", (text + "\n").encode())


def _rendered(figure: Figure, kind: str, metadata: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def _rounded(value: float) -> float | None:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None


def _parts(value: np.ndarray) -> dict[str, np.ndarray]:
    return {"real": value.real, "imaginary": value.imag}
