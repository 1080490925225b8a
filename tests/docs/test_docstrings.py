"""The docstrings that the API pages show: complete, and with examples that run."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import jax
import pytest

import optdyn
from generated_pages import generated_pages

ROOT = Path(__file__).parents[2]
HAS_TORCH = importlib.util.find_spec("torch") is not None
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    for path in sorted((ROOT / "src" / "optdyn").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8") and (HAS_TORCH or path.parent.name != "torch")
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)
    # The names that a reader of the example has imported.
    namespace = {**vars(module), "jax": jax, "jnp": jax.numpy, "optdyn": optdyn}
    with jax.numpy_rank_promotion("allow"):
        result = doctest.testmod(module, extraglobs=namespace)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_names_at_the_top_tell_every_argument() -> None:
    for name in optdyn.__all__:
        value = getattr(optdyn, name)
        if not inspect.isroutine(value):
            continue
        told = inspect.getdoc(value) or ""
        for parameter in inspect.signature(value).parameters:
            assert re.search(rf"\b{parameter}\b", told), f"{name}: {parameter}"


def test_a_function_that_checks_its_input_tells_so() -> None:
    checked = 0
    made = generated_pages()
    for module_name in (name for names in made.API.values() for name in names):
        module = importlib.import_module(f"optdyn.{module_name}")
        for name in made.public_names(module_name):
            value = getattr(module, name)
            if not inspect.isfunction(value) or name.startswith("require_"):
                continue
            told = value.__doc__ or ""
            code = inspect.getsource(value).replace(told, "")
            if re.search(r"raise UserError|\brequire_\w+\(", code):
                checked += 1
                assert re.search(r"[Rr]aises? `UserError`", told), f"{module_name}.{name}"
    assert checked >= 15
