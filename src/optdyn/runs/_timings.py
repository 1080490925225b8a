"""How long each part of a study took, in its run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optdyn.runs import _forms as forms
from optdyn.runs._files import read_json
from optdyn.runs._forms import require_form

TIMINGS = "timings.json"


def read_timings(path: Path) -> dict[str, Any]:
    """The seconds of each part, by task; raises `UserError` for a file of another form."""
    timings = read_json(path)
    require_form(path, timings, forms.table(forms.table(forms.known)))
    return timings
