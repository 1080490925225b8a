"""The report: built from a run folder, whole or not, and needing nothing else."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from optdyn import figures
from optdyn.errors import UserError
from optdyn.runs._metrics_log import MetricsLog, TrainingRow
from optdyn.runs._results import LossesAtSteps, LossesRow
from optdyn.runs._store import write_result
from optdyn.study.page import _pictures as pictures
from optdyn.study.page import build_report

CLAIMS = [
    {
        "id": "lowest",
        "statement": "The learned optimizer is the lowest.",
        "source": "Fig. 9",
        "measured": 0.0251234,
        "threshold": "< 0.0384",
        "passed": True,
        "task": "linear_regression",
    },
    {
        "id": "gap",
        "statement": "<script>alert('x')</script> stands & out",
        "source": "Fig. 7a",
        "measured": {"gap": 2.5, "steps": 200},
        "threshold": 3.0,
        "passed": False,
        "task": "rosenbrock",
        "note": "one <b>seed</b>",
        "origin": "shipped",
    },
    {"id": "later", "statement": "Not run.", "source": "Fig. 8", "measured": None, "passed": None},
]
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would see: text, ids, addresses; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.scripts: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in found:
            self.ids.append(str(found["id"]))
        if tag == "a":
            self.links.append(str(found["href"]))
        if tag == "script":
            self.scripts.append(found)
        if tag == "img":
            self.images.append(found)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "title", "script"):
            self.text += data


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    modes = figures.eigenvalue_plane(np.array([0.9, 0.2, 0.1]))
    for name in ("fig07a_rosenbrock", "fig08", "unheard_of"):
        figures.save_figure(modes, {"beta": [0.9]}, folder, name)
    return folder


@pytest.fixture
def run(tmp_path: Path, drawn: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(drawn, folder / "figures")
    (folder / "rosenbrock").mkdir(parents=True)
    (folder / "claims.json").write_text(json.dumps(CLAIMS))
    (folder / "timings.json").write_text(json.dumps({"rosenbrock": {"train": 61.25}}))
    config = {
        "format": "optdyn run",
        "format_version": 2,
        "versions": {"jax": "0.10.2"},
        "settings": {
            "train/rosenbrock": {
                "architecture": {"units": 32},
                "protocol": {"learning_rate": 0.003, "batch_size": 16},
            },
            "shipped/rosenbrock": {},
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    with MetricsLog(folder / "rosenbrock" / "training.jsonl") as log:
        for k in range(4):
            log.append(TrainingRow(k, 0.5 / (k + 1), 1.0, exploded=k % 2, contained=0, seconds=0.5))
    with (folder / "rosenbrock" / "training.jsonl").open("a") as torn:
        torn.write('{"meta_step": 4, "me')
    row = LossesRow(np.array([90.5, np.inf]), np.array([40.25, 0.125]))
    losses = LossesAtSteps(np.array([0, 10]), 64, {"adam": row})
    write_result(folder / "rosenbrock" / "losses_at_steps.json", losses)
    return folder


def built(run: Path) -> tuple[str, Page]:
    path = build_report(run)
    assert path == run / "report.html"
    html = path.read_text(encoding="utf-8")
    return html, Page(html)


def test_the_page_shows_every_part(run: Path) -> None:
    _, page = built(run)
    for claim in CLAIMS:
        assert str(claim["statement"]) in page.text
        assert str(claim["id"]) in page.text
    assert "1 of 3 claims passed" in page.text
    for words in ("✓ passed", "✗ not passed", "? not measured", "0.02512", "gap: 2.5; steps: 200"):
        assert words in page.text
    for words in ("protocol.learning_rate", "0.003", "0.10.2", "rosenbrock.train", "61.25"):
        assert words in page.text
    assert figures.FIGURES["fig07a"].caption in page.text
    words = r"Rosenbrock 4 0\.5 0\.125 0\.125 2 2 2 32 16 shipped with the package"
    assert re.search(words.replace(" ", r"\s*"), page.text)
    assert "Rosenbrock: shipped" in page.text
    told = "Weights and search tables shipped with the package, evaluated in this run"
    assert f"{told}: Rosenbrock." in page.text
    assert re.search(rf"Figures: Rosenbrock\s*{told}\.", page.text)
    assert "Trained and tuned in this run" not in page.text
    assert "Rosenbrock: loss on the same 64 test problems" in page.text
    words = r"Step 10 Adam mean 90\.5 diverged Adam median 40\.25 0\.125"
    assert re.search(words.replace(" ", r"\s*"), page.text)
    assert page.text.index("claims passed") < page.text.index(figures.FIGURES["fig08"].title)
    assert {"main", "header", "nav", "figure", "figcaption", "table", "caption", "h1"} <= page.tags


def test_tasks_and_their_stages_stand_in_the_studys_order(run: Path) -> None:
    shutil.copytree(run / "rosenbrock", run / "digits")
    shutil.copytree(run / "rosenbrock", run / "linear_regression")
    for suffix in (".svg", ".png", ".json"):
        for variant in ("final", "stage"):
            shutil.copy(
                run / "figures" / f"fig08{suffix}",
                run / "figures" / f"fig07b_rosenbrock_{variant}{suffix}",
            )
    _, page = built(run)
    captions = [f"{task}: loss on the same" for task in ("linear regression", "Rosenbrock")]
    places = [page.text.index(words) for words in (*captions, "digits: loss on the same")]
    assert places == sorted(places)
    assert page.ids.index("fig07b_rosenbrock_stage") < page.ids.index("fig07b_rosenbrock_final")


def test_the_page_needs_nothing_from_outside(run: Path) -> None:
    html, page = built(run)
    assert "http://" not in html
    assert "https://" not in html
    assert not {"link", "iframe", "object", "embed"} & page.tags
    assert page.scripts == [{}]
    assert len(page.images) == 3
    for image in page.images:
        assert str(image["src"]).startswith("data:image/")
        assert image["alt"]
    assert "url(" not in html
    assert "@import" not in html


def test_links_lead_somewhere(run: Path) -> None:
    _, page = built(run)
    assert len(set(page.ids)) == len(page.ids)
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        else:
            assert (run / link).is_file()


def test_claims_are_text_and_not_markup(run: Path) -> None:
    html, page = built(run)
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; stands &amp; out" in html
    assert "one <b>seed</b>" in page.text
    assert "b" not in page.tags


def test_an_empty_run_folder_gives_a_page_that_says_so(tmp_path: Path) -> None:
    _, page = built(tmp_path)
    assert page.text.count("Not available") == 9
    for part in (
        "claims ledger", "explorer", "figures", "losses", "training logs", "settings",
        "versions", "timings",
    ):  # fmt: skip
        assert f"Not available: {part}" in page.text or f"Not available: the {part}" in page.text


@pytest.mark.parametrize("name", ["claims.json", "config.json", "timings.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff", b'"text"'])
def test_damaged_files_are_named_not_fatal(run: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    assert f"{name}: " in built(run)[1].text


def test_text_that_no_file_can_hold_does_not_stop_the_page(run: Path) -> None:
    (run / "claims.json").write_text('[{"id": "half", "statement": "a \\ud800 b"}]')
    assert "a ? b" in built(run)[1].text


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        build_report(tmp_path / "nowhere")


def test_figures_beyond_the_limit_are_linked(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(str(built(run)[1].images[0]["src"]))
    monkeypatch.setattr(pictures, "PAGE_LIMIT", int(size * 2.5))
    _, page = built(run)
    assert len(page.images) == 2
    assert "Not embedded" in page.text


def test_a_picture_is_a_small_copy_of_the_same_colours(run: Path) -> None:
    sources = {str(i["alt"]): i for i in built(run)[1].images}
    image = sources[figures.FIGURES["fig08"].title]
    kind, _, content = str(image["src"]).partition(";base64,")
    assert kind == "data:image/webp"
    copied = Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")
    with Image.open(run / "figures" / "fig08.png") as whole:
        difference = np.abs(np.asarray(copied, int) - np.asarray(whole.convert("RGB"), int))
    assert difference.max() <= round(255 / (pictures.LEVELS - 1) / 2)
    assert len(content) < (run / "figures" / "fig08.png").stat().st_size
    assert image["width"] == str(round(7.6 * 96))


def test_an_svg_stands_in_for_a_picture_that_is_damaged_or_not_there(run: Path) -> None:
    (run / "figures" / "fig08.png").write_bytes(b"no picture")
    (run / "figures" / "unheard_of.png").unlink()
    sources = [str(image["src"]) for image in built(run)[1].images]
    assert sum(source.startswith("data:image/svg+xml") for source in sources) == 2
    (run / "figures" / "fig08.svg").unlink()
    assert "not readable" in built(run)[1].text


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(CLAIMS[1], plain)), max_size=3))
def test_any_ledger_gives_a_page(tmp_path: Path, claims: list[dict[str, object]]) -> None:
    (tmp_path / "claims.json").write_text(json.dumps(claims), encoding="utf-8")
    built(tmp_path)
