"""The report: made from whatever a run folder holds, and needing nothing else."""

from __future__ import annotations

import base64
import dataclasses
import io
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import empty_pictures, save_unrendered, task_results
from optdyn import figures
from optdyn.runs import AnalysisResult, open_run, read_task_result
from optdyn.runs._run_folder import CONFIG, FORMAT, FORMAT_VERSION, Config
from optdyn.runs._store import write_json
from optdyn.runs._training_run import METRICS
from optdyn.study import Claim, Verdict, _drawing, _stories, read_ledger, report
from optdyn.study._report import DRAWN, _drawn
from optdyn.study._results import read_results
from optdyn.study._stories import STORIES, Placed
from optdyn.study._timings import TIMINGS
from optdyn.study.page import write_page
from optdyn.study.page._findings import IS_MOMENTUM, findings
from optdyn.study.page._page import LARGEST, SIGNS
from optdyn.study.page._pictures import LEVELS, Album

VOID = {"meta", "img", "br", "link", "input", "hr"}
CLAIM = Claim(
    id="rosenbrock.x", row="x", task="rosenbrock", label="a label",
    statement="<script>alert('x')</script> stands & out", source="Fig. 7b", figure="fig07b",
    measured=0.0251234, threshold="<= 0.05", verdict=Verdict.UNDERTRAINED, passed=False,
    why="too short", note="one <b>seed</b> \ud800",
)  # fmt: skip


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


def built(run: Path) -> tuple[str, Page]:
    with open_run(run) as opened:
        path = report(opened)
    assert path == run / "report.html"
    html = path.read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture(scope="module")
def whole(tiny_study: Path) -> tuple[str, Page]:
    """The page of a study of two tasks, in which two moons could not be looked at."""
    html = (tiny_study / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture(scope="module")
def partial(tiny_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with nothing but the analysis of one task."""
    run = tmp_path_factory.mktemp("partial") / "run"
    (run / "rosenbrock").mkdir(parents=True)
    for place in ("config.json", "rosenbrock/analysis.json"):
        shutil.copy(tiny_study / place, run / place)
    return run


@pytest.fixture(scope="module")
def partial_page(partial: Path) -> Page:
    """Its page."""
    with empty_pictures():
        return built(partial)[1]


def test_figures_are_the_same_from_any_number_of_processes(
    tiny_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = tmp_path / "run"  # three figures: of the task, of the wiring, of its training
    (partial / "rosenbrock").mkdir(parents=True)
    for place in ("config.json", f"rosenbrock/{METRICS}"):
        shutil.copy(tiny_study / place, partial / place)
    built(partial)

    def files(run: Path) -> dict[str, bytes]:
        paths = [path for path in (run / "figures").iterdir() if path.name != DRAWN]
        return {path.name: path.read_bytes() for path in paths}

    def drawn(folder: str) -> tuple[list[Placed], dict[str, bytes]]:
        left_out = shutil.ignore_patterns("figures")
        copy = Path(shutil.copytree(partial, tmp_path / folder, ignore=left_out))
        with open_run(copy) as run:
            placed = _stories.draw_study(run, [read_results(run, "rosenbrock")])
        return placed, files(copy)

    with open_run(partial) as run:
        alone = _drawn(run).figures, files(partial)
    assert len(alone[0]) == 3
    monkeypatch.setattr(_stories, "MANY", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert drawn("together") == alone
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    monkeypatch.setattr(_stories, "save_figure", save_unrendered)
    placed, left = drawn("helper_fails")
    assert placed == alone[0]
    assert set(left) == {name for name in alone[1] if name.endswith((".svg", ".gif"))}


def test_findings_come_first_then_explorer_figures_ledger(whole: tuple[str, Page]) -> None:
    html, page = whole
    order = ["findings", "fig09", "fig07b", "explorer", "figures", "fig08", "claims", "details"]
    assert [page.ids.index(each) for each in order] == sorted(map(page.ids.index, order))
    sentences = re.findall(r"<li>([^<]*)", html.partition('class="findings"')[2])[:5]
    for words, sentence in zip(
        (
            "beats every tuned baseline on",
            "momentum",
            "that mode",
            "saturate at large gradients on",
            "an optimizer of a few numbers",
        ),
        sentences,
        strict=True,
    ):
        assert words in sentence
    assert all(re.search(r"\d", sentence) for sentence in sentences[:4])
    assert {"main", "header", "nav", "figure", "figcaption", "table", "details", "h1"} <= page.tags


def test_every_claim_has_a_cell_a_row_and_a_figure(
    whole: tuple[str, Page], tiny_study: Path
) -> None:
    html, page = whole
    claims = read_ledger(tiny_study / "claims.json")
    cells = html.partition('class="overview')[2].partition("</table>")[0]
    rows = html.partition('id="claims"')[2]
    for claim in claims:
        (kind, sign) = re.search(
            rf'href="#claim-{re.escape(claim.id)}" class="(\w+)"[^>]*>(.)</a>', cells
        ).groups()
        assert (sign, kind) == SIGNS[claim.verdict]
        row = rows.partition(f'<tr id="claim-{claim.id}"')[2].partition("</tr>")[0]
        assert claim.verdict.value in row
        target = re.search(r'<a href="#([^"]+)">', row)
        if claim.verdict != Verdict.UNMEASURED:
            assert target is not None
            assert target.group(1) in page.ids
    assert cells.count("<a ") == len(claims)


def has_two(run: Path) -> bool:
    """Whether the momentum stage on Rosenbrock is another checkpoint than the last."""
    analysis = read_task_result(run / "rosenbrock" / "analysis.json", AnalysisResult)
    return analysis.momentum_stage != analysis.final


def test_figures_stand_under_the_papers_numbers_for_all_tasks(
    whole: tuple[str, Page], tiny_study: Path
) -> None:
    html, page = whole
    headings = re.findall(r'<h3 id="story-[^"]*">([^<]*)', html)
    known = [f"{story.number}. {story.title}" for story in STORIES if story.number]
    assert [heading for heading in headings if heading.startswith("Fig")] == [
        heading for heading in known if "Fig. 9. " not in heading
    ]
    chapter = html.partition('id="story-fig07b"')[2].partition("</section>")[0]
    ends = ["linear_regression_final", *(["rosenbrock_final"] if has_two(tiny_study) else [])]
    assert re.findall(r'<figure id="(\w+)"', chapter) == [
        f"fig07b_{one}" for one in ("rosenbrock_stage", *ends)
    ]
    assert re.search(r"Rosenbrock, meta-step \d, (momentum stage|nearest checkpoint \()", chapter)
    assert "linear regression: loss on the same 4 test problems" in page.text


def test_a_stage_that_is_the_last_checkpoint_is_drawn_once(tiny_study: Path) -> None:
    with open_run(tiny_study) as run:
        result = read_results(run, "rosenbrock")
    analysis = result.analysis
    assert analysis is not None
    for stage, count in ((0, 2), (analysis.final, 1)):
        moved = dataclasses.replace(analysis, momentum_stage=stage)
        drawn = list(_drawing.eigenvalues(dataclasses.replace(result, analysis=moved)))
        assert len(drawn) == count
        assert drawn[-1].note.endswith("last checkpoint")


@pytest.mark.parametrize(
    ("off", "missed", "told"),
    [
        (0.02, None, "it passes through momentum: "),
        (0.02, "one_mode_stands_out", "(loss within 2.0 %), but by other modes"),
        (0.2, None, "no stored checkpoint performs like tuned momentum"),
    ],
)
def test_momentum_is_told_as_the_claims_have_it(
    tiny_study: Path, off: float, missed: str | None, told: str
) -> None:
    with open_run(tiny_study) as run:
        result = read_results(run, "rosenbrock")
    analysis = result.analysis
    assert analysis is not None
    level = (1 + off) * analysis.judged.tuned.meta_objective
    row = dataclasses.replace(analysis.stage, meta_objective=level)
    judged = dataclasses.replace(analysis.judged, row=row)
    alone = task_results(analysis=dataclasses.replace(analysis, judged=judged))
    claims = [dataclasses.replace(CLAIM, row=r, passed=r != missed) for r in IS_MOMENTUM]
    assert told in findings([alone], claims)[0].text


def test_the_page_needs_nothing_from_outside(whole: tuple[str, Page]) -> None:
    html, page = whole
    for words in ("http://", "https://", "url(", "@import"):
        assert words not in re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert not {"link", "iframe", "object", "embed"} & page.tags
    assert len(page.images) > 20
    for image in page.images:
        assert str(image["src"]).startswith("data:image/")
        assert image["alt"]
    assert len(html) < LARGEST


def test_links_lead_somewhere(whole: tuple[str, Page], tiny_study: Path) -> None:
    _, page = whole
    assert len(set(page.ids)) == len(page.ids)
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        else:
            assert (tiny_study / link).is_file()


def test_a_single_command_has_its_part_of_the_report(partial: Path, partial_page: Page) -> None:
    page = partial_page
    assert "tuned momentum" in page.text.partition("On Rosenbrock ")[2].partition(".")[0]
    rows = {claim.row for claim in read_ledger(partial / "claims.json")}
    assert {"momentum_stage", "one_mode_stands_out"} <= rows
    assert not rows & {"update_saturates", "learned_beats_{}"}
    assert {"fig07a_rosenbrock_stage", "fig07b_rosenbrock_stage"} <= set(page.ids)
    assert "fig09" not in page.ids
    assert "Loss along the way (none)" in page.text


def test_nothing_is_done_again_when_nothing_changed(partial: Path, partial_page: Page) -> None:
    before = {path: path.stat().st_mtime_ns for path in partial.rglob("*")}
    built(partial)
    assert {path: path.stat().st_mtime_ns for path in partial.rglob("*")} == before


def test_an_empty_run_folder_gives_a_page_that_says_so(tmp_path: Path) -> None:
    _, page = built(tmp_path / "run")
    for part in ("findings", "the explorer", "figures", "the claims ledger"):
        assert f"Not available: {part}" in page.text


def test_texts_are_text_and_not_markup(tmp_path: Path) -> None:
    settings = {"train/x": {"rate": 0.003, "inner": {"none": None, "list": [1, 2.5]}}}
    config = Config(FORMAT, FORMAT_VERSION, {"jax": "1"}, settings)
    for place, content in {CONFIG: config, TIMINGS: {"x": {"train": 61.25}}}.items():
        write_json(tmp_path / place, content)
    html = write_page(tmp_path, [], [CLAIM], []).read_text(encoding="utf-8")
    page = Page(html)
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; stands &amp; out" in html
    assert "one <b>seed</b> ?" in page.text
    assert "b" not in page.tags
    assert page.scripts == [{}]
    for words in (
        "… not trained far enough to tell",
        "too short",
        "0.02512",
        "inner.list",
        "61.25",
    ):
        assert words in page.text


# Pictures.


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    modes = figures.eigenvalue_plane(np.array([0.9, 0.2, 0.1]))
    figures.save_figure(modes, {"beta": [0.9]}, folder, "fig08")
    return folder


STORY = next(story for story in STORIES if story.key == "fig08")
PLACED = Placed("fig08", "fig08", "rosenbrock", "a note")


def test_a_picture_is_a_small_copy_of_the_same_colours(drawn: Path) -> None:
    picture = Album(drawn, 10**6).picture(PLACED, STORY)
    kind, _, content = picture.address.partition(";base64,")
    assert kind == "data:image/webp"
    copied = Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")
    with Image.open(drawn / "fig08.png") as whole:
        difference = np.abs(np.asarray(copied, int) - np.asarray(whole.convert("RGB"), int))
    assert difference.max() <= round(255 / (LEVELS - 1) / 2)
    assert len(content) < (drawn / "fig08.png").stat().st_size
    assert picture.width == round(7.6 * 96)
    assert picture.words == "Rosenbrock, a note"
    assert [label for _, label in picture.files] == ["numbers", "SVG", "PNG"]


def test_pictures_for_which_no_room_is_left_are_linked(drawn: Path, tmp_path: Path) -> None:
    size = len(Album(drawn, 10**6).picture(PLACED, STORY).address)
    album = Album(drawn, int(1.5 * size))
    first, second = (album.picture(PLACED, STORY) for _ in range(2))
    assert first.address
    assert not second.address
    assert second.files


def test_an_svg_stands_in_for_a_picture_that_is_damaged_or_not_there(
    drawn: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(drawn, tmp_path / "figures"))
    (folder / "fig08.png").write_bytes(b"no picture")
    assert Album(folder, 10**6).picture(PLACED, STORY).address.startswith("data:image/svg+xml")
    (folder / "fig08.svg").unlink()
    assert Album(folder, 10**6).picture(PLACED, STORY).address == ""
