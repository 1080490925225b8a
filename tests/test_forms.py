"""What a file must look like: the first fault is named by its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optdyn.errors import UserError
from optdyn.runs import _forms as forms
from optdyn.runs._forms import Form, require_form

PATH = Path("a.json")
FORM = forms.fields(
    step=forms.count,
    rate=forms.number,
    modes=forms.fields(beta=forms.numbers("modes", 2), gain=forms.numbers("modes")),
    edges=forms.numbers("bins+1"),
    bins=forms.numbers("bins"),
    named=forms.table(forms.known),
    stages=forms.rows(forms.fields(name=forms.text, good=forms.flag), "stages"),
    theory=forms.or_null(forms.fields(alpha=forms.known)),
    rest=forms.anything,
)


def sound() -> dict[str, Any]:
    return {
        "step": 3,
        "rate": None,
        "modes": {"beta": [[0.5, 0.0], [0.25, None]], "gain": [1, 2.5]},
        "edges": [0, 1, 2],
        "bins": [4, 5],
        "named": {"alpha": 0.5},
        "stages": [{"name": "one", "good": True}],
        "theory": None,
        "rest": [{}],
        "more": "is allowed",
    }


def test_what_has_the_form_is_accepted() -> None:
    require_form(PATH, sound(), FORM)
    require_form(PATH, {**sound(), "theory": {"alpha": 1.0}}, FORM)


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("step",), -1, "step: -1 is not an integer >= 0"),
        (("step",), True, "step: True is not an integer >= 0"),
        (("step",), 3.0, "step: 3.0 is not an integer >= 0"),
        (("rate",), "0.5", "rate: '0.5' is not a number"),
        (("rate",), False, "rate: False is not a number"),
        (("modes",), [], r"modes: \[\] is not an object"),
        (("modes", "beta"), [[0.5, 0.0], [0.25]], r"modes\.beta\[1\]: has 1 items, not 2"),
        (("modes", "beta", 1), None, r"modes\.beta\[1\]: None is not a list"),
        (("modes", "beta", 1, 0), "x", r"modes\.beta\[1\]\[0\]: 'x' is not a number"),
        (("modes", "gain"), [1.0], "modes.gain: has 1 items, not 2"),
        (("bins",), [4], "bins: has 1 items, not 2"),
        (("named", "alpha"), None, "named.alpha: None is not a number"),
        (("named",), 0.5, "named: 0.5 is not an object"),
        (("stages",), [], r"stages: \[\] is not a list of something"),
        (("stages", 0, "name"), 1, r"stages\[0\]\.name: 1 is not a text"),
        (("stages", 0, "good"), 1, r"stages\[0\]\.good: 1 is not true or false"),
        (("theory",), {}, r"theory\.alpha: is missing \(made by an earlier version\?"),
    ],
)
def test_the_first_fault_is_named(place: tuple[Any, ...], value: object, told: str) -> None:
    content = sound()
    holder: Any = content
    for name in place[:-1]:
        holder = holder[name]
    holder[place[-1]] = value
    with pytest.raises(UserError, match=rf"^a\.json: {told}"):
        require_form(PATH, content, FORM)


@pytest.mark.parametrize("content", [None, [], "x", 3])
@pytest.mark.parametrize("form", [FORM, forms.table(forms.text)])
def test_content_that_is_no_object_is_refused(content: object, form: Form) -> None:
    with pytest.raises(UserError, match=r"^a\.json: content: .* is not an object"):
        require_form(PATH, content, form)
