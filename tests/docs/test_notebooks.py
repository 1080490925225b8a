"""The notebooks run from top to bottom, draw, and are stored with their outputs."""

from __future__ import annotations

import warnings
from pathlib import Path

import nbformat
import pytest

from helpers import small_part

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
SECONDS = 300
FIGURES = {"tour": 2, "dissect_your_own": 2, "look_into_your_training": 1}
SAYS = {
    "tour": ["meta-step", "tuned momentum: ", "residual ", "median deviation: "],
    "look_into_your_training": ["margin", "closed loop: spectral radius", "decay/w1"],
    "dissect_your_own": ["not component-wise", "stable below curvature", "aggmo: residual "],
}


def test_all_notebooks_are_there_with_outputs() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(FIGURES)
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        check_outputs(notebook, path.stem)


def check_outputs(notebook: nbformat.NotebookNode, name: str) -> None:
    """The outputs say what they should, with all pictures."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert all(output.output_type != "error" for output in outputs)
    text = "".join(output.get("text", "") for output in outputs)
    for words in SAYS[name]:
        assert words in text
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == FIGURES[name]


TOUR = [path for path in NOTEBOOKS if path.stem == "tour"]


@pytest.mark.parametrize("path", small_part(TOUR, NOTEBOOKS), ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    notebook = nbformat.read(path, as_version=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the notebook machinery are not ours
        from nbclient import NotebookClient

        NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": str(tmp_path)}},
        ).execute()
    check_outputs(notebook, path.stem)
