"""The report in a browser: it opens alone, and every control changes what it should."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from optdyn.dynamics import reduce
from optdyn.evaluation import VALIDATION_STREAM
from optdyn.mechanisms._momentum_stage import MomentumComparison
from optdyn.runs import AnalysisResult, open_run, read_task_result
from optdyn.runs._checkpoints import analysis_path, load_optimizer
from optdyn.study import report as make_report
from optdyn.tasks import LinearRegression

SCREENSHOTS = Path(__file__).parents[2] / "artifacts" / "screenshots"
LARGEST = 4_000_000
"""Of a page with few figures."""
Opener = Callable[..., Page]
PAPER = "getComputedStyle(document.body).backgroundColor"
CHARTS = (
    "eigenvalues", "rates", "loss-curves", "training-curve",
    "portrait", "update", "schedule", "searches-chart",
)  # fmt: skip


@pytest.fixture(scope="module")
def shared(open_page: Opener, report: Path) -> Page:
    return open_page(report, color_scheme="light")


@pytest.fixture
def page(shared: Page) -> Page:
    """The page as it is when a task has just been chosen, every chart of it drawn."""
    shared.select_option("#task", label="linear regression")
    draw_all(shared)
    return shared


def draw_all(page: Page) -> None:
    for chart in CHARTS:
        page.locator(f"#{chart}").scroll_into_view_if_needed()
        page.locator(f"#{chart}[role=img]").wait_for()


def traces(page: Page, chart: str) -> dict[str, dict[str, Any]]:
    """A chart's traces by name: x, y, z, and the points' texts."""
    found = page.evaluate(
        "id => document.getElementById(id).data.map(t => ({name: t.name, x: [...t.x],"
        " y: [...t.y], z: t.z && [...t.z], text: t.text}))",
        chart,
    )
    return {trace["name"]: trace for trace in found}


def layout(page: Page, chart: str, path: str) -> Any:
    return page.evaluate(f"id => document.getElementById(id).layout.{path}", chart)


def value(page: Page, expression: str) -> Any:
    return page.evaluate(f"() => {expression}")


def until(page: Page, expression: str) -> None:
    """Wait for something to hold (the page's policy forbids the browser driver's own way)."""
    for _ in range(200):
        if value(page, expression):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never came true: {expression}")


def task_data(page: Page, name: str) -> dict[str, Any]:
    return page.evaluate(
        "name => JSON.parse(document.getElementById('explorer-data').textContent)"
        ".tasks.find(task => task.name === name)",
        name,
    )


def kept_curve(page: Page) -> list[float]:
    return traces(page, "loss-curves")["the modes kept"]["y"]


def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.locator("#explorer").screenshot(path=SCREENSHOTS / f"{name}.png")


def test_the_page_opens_alone_and_small(
    shared: Page, report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_all(shared)
    size = report.stat().st_size
    with capsys.disabled():
        print(f"\nreport: {size / 1e6:.2f} MB, opened in {shared.seconds:.1f} s")
    assert size < LARGEST
    assert shared.faults == []
    order = (".findings", "#fig09", "#explorer", "#figures", "#claims", "#details")
    top = [shared.locator(part).bounding_box()["y"] for part in order]
    assert top == sorted(top)
    assert top[1] < shared.viewport_size["height"]
    assert top[2] < 2 * shared.viewport_size["height"]
    assert value(shared, "typeof Plotly.react") == "function"


def test_on_a_telephone_nothing_is_wider_than_the_screen(open_page: Opener, report: Path) -> None:
    page = open_page(report, color_scheme="light", viewport={"width": 400, "height": 800})
    draw_all(page)
    assert value(page, "document.documentElement.scrollWidth") == 400
    page.locator(".ledger summary").first.click()
    box = page.locator(".ledger td strong").first.bounding_box()
    assert box["x"] + box["width"] <= 400
    for cell in page.locator(".overview td a").all():
        box = cell.bounding_box()
        assert box["x"] + box["width"] <= 400


def test_every_cell_of_the_grid_leads_to_its_row_and_every_source_to_its_figure(
    open_page: Opener, report: Path
) -> None:
    page = open_page(report)
    cells = page.locator(".overview td a").all()
    assert len(cells) > 20
    for cell in cells:
        target = cell.get_attribute("href").removeprefix("#")
        row = page.locator(f"[id='{target}']")
        page.evaluate("document.querySelectorAll('.ledger').forEach(f => { f.open = false; })")
        cell.click()
        row.wait_for(state="visible")
        assert row.locator("code").inner_text() in cell.get_attribute("aria-label")
    page.evaluate("document.querySelectorAll('.ledger').forEach(f => { f.open = true; })")
    sources = page.locator(".ledger td[data-label=Source] a").all()
    assert len(sources) > 20
    for source in sources:
        target = source.get_attribute("href").removeprefix("#")
        assert page.locator(f"figure[id='{target}'] img").is_visible()


def test_figures_have_no_white_card_on_a_dark_page(open_page: Opener, report: Path) -> None:
    page = open_page(report, color_scheme="dark")
    shot = page.locator("#fig09 img").screenshot()
    picture = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), int)
    paper = [int(part) for part in re.findall(r"\d+", value(page, PAPER))]
    corner = picture[2, 2]
    assert np.abs(corner - paper).max() <= 4
    assert (picture.max(axis=2) > 180).any()  # ink is light


def test_the_stage_slider_moves_eigenvalues_losses_and_cursor(page: Page) -> None:
    stages = task_data(page, "linear_regression")["analysis"]["stages"]
    page.focus("#stage")
    for key, place in (("Home", 0), ("ArrowRight", 1), ("End", len(stages) - 1)):
        page.keyboard.press(key)
        stage = stages[place]
        shown = traces(page, "eigenvalues")
        drawn = [[x, y] for name in ("kept", "not kept")
                 for x, y in zip(shown[name]["x"], shown[name]["y"], strict=True)]  # fmt: skip
        np.testing.assert_allclose(
            sorted(drawn), sorted(map(list, zip(*stage["beta"], strict=True)))
        )
        losses = traces(page, "loss-curves")
        assert losses["learned optimizer"]["y"] == stage["full"]
        assert losses["the strongest mode alone"]["y"] == stage["one_mode"]
        assert traces(page, "training-curve")["this stage"]["x"] == [stage["meta_step"] + 1]
        assert f"Meta-step {stage['meta_step']}" in page.inner_text("#stage-text")
        rate = abs(complex(*(part[0] for part in stage["alpha"])))
        shown_rates = traces(page, "rates")["kept"]["x"]
        assert shown_rates == ([pytest.approx(rate)] if rate > 1e-6 else [])


@pytest.mark.parametrize("name", ["linear regression", "Rosenbrock"])
def test_one_mode_run_in_the_page_is_that_of_the_analysis(page: Page, name: str) -> None:
    page.select_option("#task", label=name)
    stages = task_data(page, name.lower().replace(" ", "_"))["analysis"]["stages"]
    page.focus("#stage")
    page.keyboard.press("Home")
    for stage in stages:
        np.testing.assert_allclose(kept_curve(page), stage["one_mode"], rtol=1e-3)
        page.keyboard.press("ArrowRight")


def test_modes_run_in_the_page_are_the_reduced_optimizer(page: Page, tiny_study: Path) -> None:
    folder = tiny_study / "linear_regression"
    analysis = read_task_result(folder / "analysis.json", AnalysisResult)
    optimizer, _ = load_optimizer(analysis_path(folder / "checkpoints", analysis.final))
    validation = analysis.inputs.settings.problems(LinearRegression(n=3), VALIDATION_STREAM)
    point = MomentumComparison(validation, 0.1, 0.5).operating_point(optimizer)
    page.focus("#stage")
    page.keyboard.press("End")
    groups = value(page, "optdyn.modal.groups(optdyn.state.task.analysis.stages.at(-1))")
    for button, kept in (("#keep-all", groups), ("#keep-none", []), ("#keep-first", groups[:1])):
        page.click(button)
        tx = reduce(point.modes, keep=[j for group in kept for j in group], h0=point.h0)
        expected = validation.mean_curve(validation.curves(lambda tx=tx: tx)()).mean
        np.testing.assert_allclose(kept_curve(page), expected, rtol=2e-3)
        assert f"{len(kept)} of {len(groups)} modes kept" in page.inner_text("#kept-text")


def test_modes_are_chosen_by_keyboard_slider_and_click(page: Page) -> None:
    first = kept_curve(page)
    boxes = page.locator("#modes input")
    boxes.nth(0).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert boxes.nth(1).is_checked()
    both = kept_curve(page)
    assert both != first
    page.focus("#keep-count")
    page.keyboard.press("Home")
    assert page.locator("#modes input:checked").count() == 0
    none = kept_curve(page)
    assert len(traces(page, "eigenvalues")["kept"]["x"]) == 0
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert kept_curve(page) == both != none
    page.locator("#eigenvalues").scroll_into_view_if_needed()
    point = page.locator("#eigenvalues .trace:nth-child(2) path.point").first.bounding_box()
    page.mouse.click(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    expect(page.locator("#modes input:checked")).to_have_count(1)
    assert kept_curve(page) != both


def test_a_task_that_the_page_cannot_run_offers_stored_sets(page: Page) -> None:
    page.select_option("#task", label="two moons")
    told = task_data(page, "two_moons")
    stage = told["analysis"]["momentum_stage"]
    sets = told["keep"]["choices"][str(stage)]["sets"]
    assert not page.is_visible("#keep-modes")
    for place, kept in enumerate(sets):
        page.select_option("#choice", label=kept["name"])
        shown = traces(page, "loss-curves")[kept["name"]]["y"]
        assert shown == [None if loss is None else loss for loss in kept["curve"]]
        assert len(traces(page, "eigenvalues")["kept"]["x"]) == len(kept["kept"]), place
    assert "calculated when the study ran" in page.inner_text("#keep-note")


def test_the_eigenvalue_view_enlarges_what_is_near_1(page: Page) -> None:
    whole = layout(page, "eigenvalues", "xaxis.range")
    page.select_option("#view", label="near 1")
    near = layout(page, "eigenvalues", "xaxis.range")
    assert whole[0] < -1 < 1 < whole[1]
    assert 0 < near[0] < 1 < near[1]


def test_the_state_slider_moves_update_schedule_and_portrait(page: Page) -> None:
    path = task_data(page, "linear_regression")["mechanisms"]["path"]
    page.focus("#state")
    for key, place in (("End", -1), ("Home", 0), ("ArrowRight", 1)):
        page.keyboard.press(key)
        assert traces(page, "update")["the chosen state"]["y"] == path["update"][place]
        chosen = traces(page, "portrait")["the chosen state"]
        assert [chosen[axis][0] for axis in "xyz"] == path["portrait"][place]
        step = path["step"][place]
        assert traces(page, "schedule")["the chosen state"]["x"] == ([] if step is None else [step])
    assert "without gradient" in page.inner_text("#state-text")
    before = layout(page, "portrait", "scene.camera.eye")
    page.focus("#turn")
    page.keyboard.press("ArrowRight")
    turned = layout(page, "portrait", "scene.camera.eye")
    page.focus("#tilt")
    page.keyboard.press("ArrowRight")
    tilted = layout(page, "portrait", "scene.camera.eye")
    assert turned["x"] != before["x"]
    assert turned["z"] == before["z"]
    assert tilted["z"] > turned["z"]


def test_searches_show_every_combination_and_tell_of_each(page: Page) -> None:
    page.select_option("#task", label="two moons")
    searches = task_data(page, "two_moons")["searches"]
    assert [search["optimizer"] for search in searches] == ["adam", "momentum", "rmsprop"]
    options = page.locator("#search option").all_inner_texts()
    assert options == ["Adam: α and β₁", "Adam: α and β₂", "momentum: α and β", "RMSProp: α and γ"]
    seen = []
    for option in options:
        page.select_option("#search", label=option)
        shown = traces(page, "searches-chart")
        assert len(shown["tried"]["x"]) + len(shown["diverged"]["x"]) == 2500
        seen.append(shown["tried"]["y"])
    assert seen[0] != seen[1]
    page.select_option("#worst", label="2 × the best")
    fewer = traces(page, "searches-chart")
    score = [v for v in searches[2]["score"] if v is not None]
    assert len(fewer["diverged"]["x"]) == 0
    assert 0 < len(fewer["tried"]["x"]) < len(score)
    page.select_option("#worst", label="show all")
    page.locator("#searches-chart").scroll_into_view_if_needed()
    star = page.locator("#searches-chart .scatterlayer .trace").last.locator("path.point")
    box = star.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    label = page.locator("#searches-chart .hoverlayer .hovertext")
    expect(label).to_contain_text("meta-objective")
    expect(label).to_contain_text("γ = ")


def test_every_control_has_a_name_and_shows_focus(page: Page) -> None:
    controls = page.locator("select:visible, input:visible, button:visible")
    assert controls.count() > 10
    for control in controls.all():
        name = control.evaluate(
            "c => [...(c.labels ?? [])].map(l => l.textContent).join() || c.textContent"
        )
        assert name.strip()
    page.focus("#task")
    names = []
    for _ in range(4):
        assert value(page, "getComputedStyle(document.activeElement).outlineStyle") == "solid"
        names.append(value(page, "document.activeElement.id"))
        page.keyboard.press("Tab")
    assert names == ["task", "stage", "view", "keep-first"]
    for chart in CHARTS:
        assert page.locator(f"#{chart}").get_attribute("role") == "img"
        assert len(page.locator(f"#{chart}").get_attribute("aria-label")) > 20


def ink(page: Page) -> str:
    return page.evaluate("getComputedStyle(document.body).color")


def test_colours_follow_the_system_and_the_readers_choice(open_page: Opener, report: Path) -> None:
    page = open_page(report, color_scheme="dark")
    draw_all(page)
    dark = ink(page)
    assert layout(page, "eigenvalues", "font.color") == dark
    shoot(page, "dark")
    page.select_option("#theme", label="light")
    light = ink(page)
    assert light != dark
    assert layout(page, "eigenvalues", "font.color") == light
    shoot(page, "light")
    page.select_option("#theme", label="as the system's")
    assert ink(page) == layout(page, "loss-curves", "font.color") == dark
    page.emulate_media(color_scheme="light")
    assert ink(page) == light
    until(page, f"document.getElementById('update').layout.font.color === '{light}'")


def test_paper_gets_every_chart_in_ink_on_white(open_page: Opener, report: Path) -> None:
    page = open_page(report, color_scheme="dark")
    page.evaluate(
        "() => addEventListener('beforeprint', () => { window.printed ="
        " [...document.querySelectorAll('.chart')]"
        ".map(c => [c.data?.length ?? 0, c.layout?.font.color]); })"
    )
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    paper = page.pdf(path=SCREENSHOTS / "report.pdf", format="A4")
    assert paper.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", paper)) > 2
    printed = value(page, "window.printed")
    assert len(printed) == len(CHARTS)
    for drawn, colour in printed:
        assert drawn > 0
        assert colour == "rgb(26, 26, 26)"
    assert ink(page) != "rgb(26, 26, 26)"
    page.emulate_media(media="print")
    for control in ("#stage", "#keep-modes", "#theme", "nav"):
        assert not page.is_visible(control)
    shoot(page, "print")


def test_a_part_that_is_missing_says_why_in_one_line(
    open_page: Opener, tiny_study: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_study / "rosenbrock", run / "rosenbrock")
    shutil.copy(tiny_study / "config.json", run)
    for part in ("analysis", "mechanisms"):
        (run / "rosenbrock" / f"{part}.json").unlink()
    with open_run(run) as opened:
        page = open_page(make_report(opened))
    for part in ("analysis", "mechanisms"):
        assert not page.is_visible(f"#{part}-panel")
        reason = page.inner_text(f"#{part}-missing")
        assert reason.startswith("Not available: this task's ")
        assert "\n" not in reason
    assert not page.is_visible("#searches-missing")
    page.locator("#searches-chart").scroll_into_view_if_needed()
    page.locator("#searches-chart[role=img]").wait_for()
    page.select_option("#search", label="RMSProp: α and γ")
    assert "RMSProp" in layout(page, "searches-chart", "title.text")
    assert page.faults == []
