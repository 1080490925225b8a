"""The file of a task's fitted readable optimizers: in its run folder, and where it ships from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optdyn.distillation import LADDER, from_values
from optdyn.errors import UserError
from optdyn.runs import _forms as forms
from optdyn.runs._files import is_version, read_signed_json
from optdyn.runs._forms import require_form

FOLDER = "distillation"
FITTED = f"{FOLDER}/fitted.json"
"""The fitted sizes, by their place in a task's part of a run folder, and where they ship."""
FORMAT = "optdyn readable optimizers"
FORMAT_VERSION = 1
SIZE_FIELDS = {
    "name": forms.text,
    "added": forms.text,
    "start": forms.text,
    "numbers": forms.count,
    "values": forms.table(forms.table(forms.anything)),
    "validation": forms.number,
}
FITTED_FORM = forms.fields(
    task=forms.text,
    command=forms.text,
    inputs=forms.fields(
        task_options=forms.table(forms.anything),
        protocol=forms.fields(normalization=forms.text, unroll_length=forms.count),
    ),
    sizes=forms.rows(forms.fields(**SIZE_FIELDS)),
)


def read_fitted(path: Path) -> dict[str, Any]:
    """What `fit_sizes` kept at ``path``: its ``task``, ``command``, ``inputs`` and ``sizes``.

    A size tells its ``name``, the part ``added``, the ``start`` its fit began from,
    its ``values``, and its meta-objective on ``validation`` problems.
    Raises `UserError` for a damaged file, or one that holds something else.
    """
    found = read_signed_json(path)
    if found.get("format") != FORMAT or not is_version(found.get("format_version"), FORMAT_VERSION):
        raise UserError(f"{path}: not a file of format {FORMAT!r}, version {FORMAT_VERSION}")
    require_form(path, found, FITTED_FORM)
    try:
        for size in found["sizes"]:
            from_values(size["values"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    added = tuple(size["added"] for size in found["sizes"])
    if added != LADDER[: len(added)]:
        raise UserError(f"{path}: not the sizes of readable optimizers")
    return found
