"""The report as people see it: opened from disk in Chromium, clicked, and looked at for requests and errors."""

import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report_results import ELEMENT, LONG, MODEL, SCRIPT, write_results

from aeflow_monai.cli.summary import say_metrics
from aeflow_monai.cli.terminal import Terminal
from aeflow_monai.files import read_json, write_json
from aeflow_monai.metrics import format_report
from aeflow_monai.output.report import write_report
from aeflow_monai.result_tables import rows_of

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright, which drives a browser, is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")

Page = Any
Capture = pytest.CaptureFixture[str]
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # its socket takes a path of 100 characters, and the folder of a server's temporary files may be deep
        environment = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], env=environment)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An evaluation and an inference of volumes, an inference of 2D images, and one whose pictures are gone."""
    kinds: dict[str, dict[str, Any]] = {
        "evaluation": {},
        "inference": {"labelled": False},
        "pictures": {"labelled": False, "n_slices": 1},
        "bare": {},
        "outlier": {"labelled": False},
        "few": {"n_cases": 5, "labelled": False},
        "earlier": {},
    }
    found = {}
    for name, options in kinds.items():
        folder = tmp_path_factory.mktemp(name)
        pictures = write_results(folder, **options)
        if name == "earlier":  # found by another rule
            localisation = read_json(folder / "localisation.json")
            write_json(folder / "localisation.json", {k: v for k, v in localisation.items() if k != "found_by"})
        if name == "outlier":  # a score many times the others
            table = folder / "scores.csv"
            lines = table.read_text("utf-8").splitlines()
            cells = lines[-1].split(",")
            cells[2] = "250.0"
            table.write_text("\n".join([*lines[:-1], ",".join(cells), ""]), "utf-8")
        found[name] = write_report(folder, {} if name == "bare" else pictures, {} if name == "bare" else MODEL)
    return found


@pytest.fixture
def open_report(browser: Any, reports: dict[str, Path]) -> Iterator[Open]:
    """Opens a report from disk; at the end nothing was asked of a network, and nothing complained."""
    complaints: list[str] = []
    contexts = []

    def open_one(name: str, width: int = 1280, scheme: str = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on(
            "request", lambda request: None if request.url[:5] in ("file:", "data:") else complaints.append(request.url)
        )
        page.goto(reports[name].as_uri())
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert complaints == []


def cells(page: Page, column: int) -> list[str]:
    found: list[str] = page.locator(f"#cases tbody tr td:nth-child({column})").all_inner_texts()
    return found


def pixels(page: Page) -> str:
    url: str = page.locator("#viewer canvas").nth(1).evaluate("canvas => canvas.toDataURL()")
    return url


def test_the_verdict_is_on_top(open_report: Open) -> None:
    page = open_report("evaluation")
    assert "of 20 abnormal cases found" in page.locator("h1").inner_text()
    said = page.locator("#summary").inner_text()
    note = re.search(r"(\d+) of 40 normal cases passed: a specificity of (0\.\d{3}) ", said)
    assert note
    assert f"{int(note[1]) / 40:.3f}" == note[2]
    assert "0.950 was expected" in said
    summary = page.locator("#summary").inner_text()
    assert (
        "The threshold comes from 19 patients. By the chance of who they were, anything from 85 % to 100 %" in summary
    )
    assert "Research use only" in summary
    assert page.locator(".tile").count() == 4
    assert page.locator("#failures tbody tr").count() == 1
    assert "2 files of other kinds" in page.locator("#about").inner_text()


def test_a_metric_is_shown_in_one_way(open_report: Open, reports: dict[str, Path], capsys: Capture) -> None:
    folder = reports["evaluation"].parent
    metrics = read_json(folder / "metrics.json")
    said = open_report("evaluation").locator("main").inner_text()
    log = format_report(metrics)
    terminal = Terminal()
    say_metrics(metrics, terminal)
    printed = capsys.readouterr().out
    for name in ("auroc", "sensitivity", "specificity"):
        low, high = metrics[f"{name}_ci95"]
        assert f"{metrics[name]:.3f}" in said
        assert f"{low:.3f}\N{EN DASH}{high:.3f}" in said
        assert f"{metrics[name]:.3f}  [{low:.3f}, {high:.3f}]" in log
        assert f"{metrics[name]:.3f}" in printed
    assert f"the higher score in {100 * metrics['auroc']:.1f} % of pairs (AUROC {metrics['auroc']:.3f})." in said
    assert metrics["specificity_note"] in said
    assert metrics["specificity_note"] in log
    assert metrics["specificity_note"] in printed


def test_names_stay_text(open_report: Open) -> None:
    page = open_report("evaluation")
    names = cells(page, 1)
    page.locator("#cases input[type=search]").fill("onerror")
    assert cells(page, 1) == [SCRIPT]
    page.locator("#cases input[type=search]").fill("</script>")
    assert cells(page, 1) == [ELEMENT]
    assert page.locator("img[src='x']").count() == 0
    assert len(names) == 50  # with more to be shown


def test_the_table_is_sorted_searched_and_filtered(open_report: Open) -> None:
    page = open_report("evaluation")
    scores = [float(text.replace("\N{MINUS SIGN}", "-")) for text in cells(page, 2)]
    assert scores == sorted(scores, reverse=True)
    head = page.locator("#cases").get_by_role("columnheader", name="Score")
    assert head.get_attribute("aria-sort") == "descending"
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert float(cells(page, 2)[0].replace("\N{MINUS SIGN}", "-")) == min(scores_of(page))
    page.locator("#cases").get_by_role("columnheader", name="Case").get_by_role("button").click()
    page.locator("#cases input[type=search]").fill("case_00")
    assert cells(page, 1) == [f"case_{number:03d}" for number in range(3, 10)]
    page.locator("#cases input[type=search]").fill("")
    page.locator("#cases").get_by_role("button", name="Missed").click()
    assert set(cells(page, 4)) == {"missed"}
    page.locator("#cases input[type=search]").fill("nothing is called so")
    assert page.get_by_text("No case fits.").is_visible()


def scores_of(page: Page) -> list[float]:
    found: list[float] = page.evaluate(
        "JSON.parse(document.getElementById('data').textContent).cases.map(one => one.anomaly_score)"
    )
    return [round(score, 2) for score in found]


def test_the_slider_explores_other_thresholds(open_report: Open) -> None:
    page = open_report("evaluation")
    text = page.locator(".explorer output")
    before = text.inner_text()
    assert before.startswith("2.00: sensitivity")
    assert "Exploratory" in page.locator(".explorer").inner_text()
    page.locator("#explore").focus()
    page.keyboard.press("Home")
    assert "sensitivity 1.000 (20 of 20), specificity" in text.inner_text()
    page.keyboard.press("End")
    assert "sensitivity 0.000 (0 of 20), specificity 1.000" in text.inner_text()
    page.get_by_role("button", name="Back to the stored one").click()
    assert text.inner_text() == before


def test_a_bent_axis_says_so_and_has_round_ticks(open_report: Open) -> None:
    for name, is_bent in (("evaluation", False), ("outlier", True)):
        chart = open_report(name).locator("#scores svg").first
        assert ("on a bent axis (asinh)" in chart.text_content()) == is_bent
        ticks = [float(text.replace("\N{MINUS SIGN}", "-")) for text in chart.locator(".tick").all_text_contents()]
        assert len(ticks) >= 3
        assert ticks == sorted(ticks)
        if is_bent:
            assert all(re.fullmatch(r"-?0*[125]?0*", str(tick).replace(".", "")) for tick in ticks)


def test_steps_of_a_bent_axis_are_exact(open_report: Open) -> None:
    steps = open_report("evaluation").evaluate("roundSteps(0.7)")
    assert steps == [5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001]


def test_a_case_is_walked_through_with_the_keyboard(open_report: Open) -> None:
    page = open_report("evaluation")
    page.locator("#cases tbody .link").first.press("Enter")
    title = page.locator("#viewer-title")
    first = title.inner_text()
    page.wait_for_selector("#viewer canvas")
    assert page.locator("#viewer figcaption").all_inner_texts() == [
        *("Image", "Anomaly map", "Reconstruction", "Residual, \N{MULTIPLICATION SIGN} 2", "Coronal", "Sagittal")
    ]
    where = page.locator(".where output")
    assert "axial, k = 3 (0 to 8)" in where.inner_text()
    assert "S +14.0 mm" in where.inner_text()
    shown = {pixels(page)}
    for key in ("ArrowRight", "m", "m", "m", "-", "o", "l"):
        page.keyboard.press(key)
        shown.add(pixels(page))
    assert len(shown) == 7  # of eight looks, since the third m leads back to the map
    assert "axial, k = 2 (0 to 8)" in where.inner_text()
    page.keyboard.press("n")
    page.wait_for_function("first => document.getElementById('viewer-title').textContent !== first", arg=first)
    page.keyboard.press("p")
    assert title.inner_text() == first
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()


def test_the_parts_of_a_score_give_it_by_the_formula_that_stands_beside_them(open_report: Open) -> None:
    page = open_report("inference")
    page.locator("#cases tbody .link").first.press("Enter")
    said = page.locator("#viewer .facts-line").inner_text().replace("\N{MINUS SIGN}", "-")
    number = r"(-?\d+\.\d\d)"
    parts = rf"map {number} and global term {number}, joined by a soft maximum, no sum"
    found = re.search(rf"score {number}, threshold .*{parts}", said, re.DOTALL)
    assert found
    score, of_map, term = map(float, found.groups())
    assert "score = log((exp(map) + exp(2 \N{MULTIPLICATION SIGN} t)) / 2) with t = min(term, 1.5) + " in said
    assert score == pytest.approx(math.log((math.exp(of_map) + math.exp(2 * term)) / 2), abs=0.02)


def test_other_planes_follow_a_click_and_opacity_a_slider(open_report: Open) -> None:
    page = open_report("evaluation")
    page.locator(".thumb").first.click()
    page.wait_for_selector("#viewer canvas")
    before = page.locator("#viewer canvas").nth(5).evaluate("canvas => canvas.toDataURL()")
    page.locator("#viewer canvas").first.click(position={"x": 20, "y": 30})
    assert page.locator("#viewer canvas").nth(5).evaluate("canvas => canvas.toDataURL()") != before
    shown = pixels(page)
    page.locator("#opacity").fill("0.2")
    assert pixels(page) != shown
    page.get_by_role("button", name="Close").click()


def test_lists_of_pictures_are_short_and_say_by_which_rule(open_report: Open, reports: dict[str, Path]) -> None:
    page = open_report("evaluation")
    scores = [float(row["anomaly_score"]) for row in rows_of(reports["evaluation"].parent / "scores.csv")]
    near = sum(abs(score - 2) <= 0.5 for score in scores)
    assert 0 < near < 14
    tabs = page.locator("#gallery [role=tab]")
    assert tabs.first.inner_text() == "Most anomalous 7 of 60"
    assert page.locator(".thumb").count() == 7
    page.get_by_role("tab", name="Borderline").click()
    assert page.get_by_role("tab", name="Borderline").inner_text() == f"Borderline {near}"
    assert page.locator(".thumb").count() == near
    assert "within 0.5 of the threshold" in page.locator("#gallery").inner_text()
    page = open_report("few")
    assert page.locator("#gallery [role=tab]").first.inner_text() == "Most anomalous 2 of 5"


@pytest.mark.parametrize(("width", "room"), [(400, False), (1280, True)])
def test_a_long_name_is_cut_in_the_middle_and_shown_by_a_pointer(open_report: Open, width: int, room: bool) -> None:
    page = open_report("evaluation", width)
    page.locator("#cases input[type=search]").fill("highres")
    assert cells(page, 1) == [LONG]
    name = page.locator("#cases tbody .cut").first
    assert name.get_attribute("title") == LONG
    is_cut = "span => span.scrollWidth > span.clientWidth"
    assert name.locator("span").first.evaluate(is_cut)
    cell, end = page.locator("#cases tbody td").first.bounding_box(), name.locator("span").last.bounding_box()
    assert end["x"] + end["width"] <= cell["x"] + cell["width"]  # the end is in sight
    assert name.locator("span").last.inner_text() == LONG[-10:]
    page.locator("#cases input[type=search]").fill("onerror")  # of 28 characters
    assert page.locator("#cases tbody .cut span").first.evaluate(is_cut) != room
    # whatever holds a name has room for what is left of it, or its end would be cut too
    assert page.evaluate(
        "[...document.querySelectorAll('.cut')].map(cut => cut.parentElement)"
        ".every(room => room.scrollWidth <= room.clientWidth)"
    )


def test_lesions_are_listed_and_lead_to_their_case(open_report: Open) -> None:
    page = open_report("evaluation")
    page.locator("#lesions").get_by_role("button", name="Missed").click()
    rows = page.locator("#lesions .scroll tbody tr")
    assert rows.count() == 1
    assert rows.first.locator("td").nth(4).inner_text() == "1.25"
    rows.first.click()
    assert page.locator("#viewer-title").inner_text() == SCRIPT


def test_the_rules_of_lesions_are_those_of_the_docs(open_report: Open) -> None:
    said = open_report("evaluation").locator("#lesions").inner_text()
    assert "Lesions at the map threshold of 3.00: 2 of 3 found" in said
    docs = " ".join((Path(__file__).parents[2] / "docs/report.md").read_text("utf-8").split())
    rules = re.findall(r"A lesion is \w+ if .*?\.(?= |$)", " ".join(said.split()))
    assert len(rules) == 2
    assert all(rule in docs for rule in rules)


def test_lesions_found_by_another_rule_are_listed_by_size(open_report: Open) -> None:
    lesions = open_report("earlier").locator("#lesions")
    assert "A lesion is found" not in lesions.inner_text()
    assert "does not say by which rule lesions count as found" in lesions.inner_text()
    heads = [text.split("\n")[0] for text in lesions.locator(".scroll th").all_inner_texts()]
    assert heads == ["Case", "Lesion", "Diameter of its size, mm", "Voxels"]
    assert lesions.locator(".scroll tbody tr").count() == 3


def test_a_case_can_be_linked_to(open_report: Open, reports: dict[str, Path]) -> None:
    page = open_report("inference")
    page.goto("about:blank")
    page.goto(f"{reports['inference'].as_uri()}#case=case_007")
    assert page.locator("#viewer-title").inner_text() == "case_007"


def test_pictures_and_bare_tables(open_report: Open) -> None:
    page = open_report("pictures")
    page.locator(".thumb").first.click()
    page.wait_for_selector("#viewer canvas")
    assert page.locator("#viewer canvas").count() == 5  # four layers and the scale of colours
    assert page.locator("#viewer input[aria-label=Slice]").count() == 0
    page = open_report("bare")
    page.locator("#cases tbody .link").first.click()
    assert "there are none" in page.locator("#viewer").inner_text()


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(open_report: Open, width: int, scheme: str) -> None:
    page = open_report("evaluation", width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 19, 22)"
    assert dark == (scheme == "dark")
    page.locator(".thumb").first.click()
    page.wait_for_selector("#viewer canvas")
    assert page.locator("#viewer").evaluate("dialog => dialog.scrollWidth") <= width
