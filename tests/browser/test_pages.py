"""The pages in a real browser, headless: drawn, steered by mouse and keyboard, silent, and alone with their file.

pip install -e '.[test,browser]' && apt install chromium && pytest -m browser
"""

import json
import shutil

import pytest

from minirlhf.report.of_compare import write_compare_page
from minirlhf.report.of_run import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<script>document.title = 'taken'</script><img src=http://127.0.0.1:9/x onerror=\"document.title='taken'\">"
pytestmark = [pytest.mark.browser, pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")]


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(finished, tmp_path_factory):
    """The report of a run in whose files somebody wrote markup."""
    run = shutil.copytree(finished[0], tmp_path_factory.mktemp("hostile") / "run")
    for name in ("tokens.jsonl", "samples.jsonl"):
        rows = [json.loads(line) for line in (run / name).read_text().splitlines()]
        for row in rows:
            row["prompt"] = HOSTILE
            if name == "tokens.jsonl":
                row["tokens"][0] = row["likeliest"][0][0][0] = HOSTILE
            elif "policy" in row:
                row["policy"] = HOSTILE
        (run / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_report(run)


@pytest.fixture(params=["light", "dark"])
def page(request, chromium, report):
    """The report, open; whatever it says to the console or asks for is collected and must be nothing."""
    page = chromium.new_page(color_scheme=request.param, viewport={"width": 1200, "height": 900})
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda wanted: page.asked.append(wanted.url))
    page.goto(report.as_uri())
    page.wait_for_selector(".token")
    yield page
    assert page.said == []
    assert page.asked == [report.as_uri()]
    page.close()


def ink(page, canvas):
    """How many different colours there are on a canvas."""
    script = "c => new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size"
    return canvas.evaluate(script)


def test_curves_are_drawn_and_say_their_last_value(page, report):
    canvases = page.locator("#curves canvas")
    assert canvases.count() >= 9
    assert all(ink(page, canvases.nth(i)) > 10 for i in range(canvases.count()))
    assert ink(page, page.locator("#frontier canvas")) > 10
    rows = [json.loads(line) for line in (report.parent / "metrics.jsonl").read_text().splitlines()]
    legend = page.locator("figure", has_text="nats per sequence, by the run's estimator").locator(".u-legend")
    shown = legend.locator(".u-value").nth(1).inner_text()
    # the page shows four digits
    assert float(shown) == pytest.approx(rows[-1]["objective/kl"], rel=1e-3)


def test_one_cursor_for_all_curves_by_keyboard_and_mouse(page):
    page.locator("#curves").focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    iterations = page.locator("#curves .u-legend .u-series:first-child .u-value").all_inner_texts()
    assert set(iterations) == {"2"}
    first = page.locator("#curves .u-over").first
    box = first.bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 20)
    iterations = page.locator("#curves .u-legend .u-series:first-child .u-value").all_inner_texts()
    assert set(iterations) == {"1"}


def test_dragging_over_one_curve_zooms_all_of_them_and_a_double_click_shows_everything(page):
    scales = "charts.filter(c => c.root.closest('#curves')).map(c => [c.scales.x.min, c.scales.x.max].join())"
    before = page.evaluate(scales)
    box = page.locator("#curves .u-over").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 30, steps=4)
    page.mouse.up()
    zoomed = page.evaluate(scales)
    assert len(set(zoomed)) == 1
    assert zoomed[0] != before[0]
    page.mouse.dblclick(box["x"] + box["width"] * 0.5, box["y"] + 30)
    assert page.evaluate(scales) == before


def test_a_click_on_an_iteration_shows_its_tokens(page):
    over = page.locator("#curves .u-over").first
    box = over.bounding_box()
    over.click(position={"x": 1, "y": box["height"] / 2})
    assert page.locator("#step").input_value() == "1"
    over.click(position={"x": box["width"] - 1, "y": box["height"] / 2})
    assert page.locator("#step").input_value() == "4"


def test_another_quantity_colours_the_tokens(page, report):
    colours = "[...document.querySelectorAll('.token')].map(t => t.style.backgroundColor).join()"
    seen = set()
    for quantity in ("advantage", "logprob", "value", "exact"):
        page.locator("#quantity").select_option(quantity)
        seen.add(page.evaluate(colours))
    assert len(seen) == 4
    assert all("rgba" in found for found in seen)


def test_another_iteration_and_response_show_other_numbers(page, report):
    rows = [json.loads(line) for line in (report.parent / "tokens.jsonl").read_text().splitlines()]
    page.locator("#step").select_option("2")
    page.locator("#response").select_option(index=3)
    wanted = [row for row in rows if row["step"] == 2][3]
    assert page.locator(".token").count() == len(wanted["tokens"])
    cells = page.locator("#numbers td").all_inner_texts()
    # the page shows four digits
    assert float(cells[0]) == pytest.approx(wanted["advantage"][0], rel=1e-3, abs=1e-3)
    assert page.locator("#alternatives tbody tr").count() == 5


def test_the_token_view_obeys_the_keyboard(page):
    chosen = "[...document.querySelectorAll('.token')].findIndex(t => t.getAttribute('aria-selected') === 'true')"
    page.locator(".token").first.click()
    for key, where in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("Home", 0), ("ArrowLeft", 0)):
        page.keyboard.press(key)
        assert page.evaluate(chosen) == where
        assert page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
    page.keyboard.press("[")
    assert page.locator("#step").input_value() == "3"
    page.keyboard.press("]")
    page.keyboard.press("]")  # there is none after the last
    assert page.locator("#step").input_value() == "4"
    page.keyboard.press("ArrowDown")
    assert page.locator("#response").evaluate("list => list.selectedIndex") == 1
    page.keyboard.press("q")
    assert page.locator("#quantity").input_value() == "reward"


def test_prompts_are_sorted_and_all_of_them_shown(page):
    rows = page.locator("#beside tbody tr")
    gains = [float(a) - float(b) for a, b in zip(*(rows.locator(f"td:nth-child({i})").all_inner_texts() for i in (5, 3)), strict=True)]  # fmt: skip  # noqa: E501
    assert gains == sorted(gains, reverse=True)
    page.locator("#order").select_option("loss")
    losses = [float(a) - float(b) for a, b in zip(*(rows.locator(f"td:nth-child({i})").all_inner_texts() for i in (3, 5)), strict=True)]  # fmt: skip  # noqa: E501
    assert losses == sorted(losses, reverse=True)


def test_markup_of_a_model_stays_text(page):
    assert page.title() != "taken"
    assert page.locator(".token").first.inner_text() == HOSTILE
    assert page.locator("#prompt").inner_text() == HOSTILE
    assert HOSTILE in page.locator("#beside tbody td").all_inner_texts()
    assert page.locator("img").count() == 0
    assert json.dumps(HOSTILE) in page.locator("#alternatives tbody th").first.inner_text()


def test_both_themes_can_be_chosen(page):
    paper = "getComputedStyle(document.body).backgroundColor"
    page.locator("#theme").select_option("dark")
    dark = page.evaluate(paper)
    page.locator("#theme").select_option("light")
    light = page.evaluate(paper)
    assert (dark, light) == ("rgb(20, 24, 29)", "rgb(255, 255, 255)")
    page.locator("#theme").select_option("auto")
    assert page.evaluate(paper) in (dark, light)


OUTSIDE = """() => [...document.querySelectorAll(".u-legend, .u-legend *, figure, .bar, .cards")]
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.textContent)"""


@pytest.mark.parametrize("width", [390, 700, 1280])
def test_nothing_but_a_wide_table_reaches_over_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OUTSIDE) == []


def test_an_axis_has_at_least_the_span_of_its_kind(page):
    """The values of most metrics of this run hardly differ; a share gets a tenth, and stays near 0 to 1."""
    spans = page.evaluate("""() => charts.filter((c) => c.root.closest("#curves"))
      .map((c, i) => [c.scales.y.max - c.scales.y.min, Math.max(...data.curves[i].names.map((n) => data.least[n]))])""")
    assert len(spans) >= 9
    assert all(shown >= least for shown, least in spans)
    of_share = """[0.992, 1].concat(spanned(0.1, [])({ data: [], series: [] }, 0.992, 1))"""
    low, high = page.evaluate(of_share)[2:]
    assert low <= 0.9
    assert 1 <= high <= 1.02
    flat = page.evaluate("spanned(0.1, [])({ data: [], series: [] }, 0, 0)")
    assert flat[1] - flat[0] >= 0.1
    assert flat[0] >= -0.02


def test_error_bars_are_within_their_axis(page):
    """A point at 1 with a standard error of 0.3 reaches from 0.4 to 1.6."""
    found = page.evaluate(
        """spanned(0, [{ errors: [0.3] }])({ data: [[0], [1]], series: [{}, { show: true }] }, 1, 1)"""
    )
    assert found[0] <= 0.4
    assert found[1] >= 1.6
    label = page.locator("#frontier .u-legend").inner_text()
    assert "best of n (4 held-out prompts)" in label
    assert "policy (4 held-out prompts)" in label


# ---- compare.html ------------------------------------------------------------------------------------------


def test_variants_lie_over_each_other_and_a_click_hides_one_with_its_seeds(chromium, tmp_path):
    runs = {f"<b>{name}</b>": {seed: tmp_path / name / str(seed) for seed in range(2)} for name in ("a", "b")}
    for i, seeds in enumerate(runs.values()):
        for seed, run in seeds.items():
            run.mkdir(parents=True)
            rows = [
                {"step": s, "objective/kl": i + seed / 10 + s, "objective/scores": s * i} for s in range(1, 9 - seed)
            ]
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measures = {"score_mean": {"mean": 1.0, "ci95": [0.5, 1.5]}, "score_gain": {"mean": 1.0, "better_than_first": 0.75}}
    rows = [{"measures": measures, "failed": {}, "seeds": [0, 1]} for _ in runs]
    page = chromium.new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(write_compare_page(tmp_path, rows, runs).as_uri())
    assert page.locator("#curves canvas").count() == 2
    assert ink(page, page.locator("#curves canvas").first) > 10
    assert page.locator("table th[scope=row]").all_inner_texts() == [" <b>a</b>", " <b>b</b>"]
    links = page.locator("table td a")
    assert [links.nth(i).get_attribute("href") for i in range(4)] == [
        f"{n}/{s}/report.html" for n in "ab" for s in "01"
    ]
    cells = page.locator("table td.num:visible")
    assert all(
        cells.nth(i).bounding_box()["x"] + cells.nth(i).bounding_box()["width"] < 1280 for i in range(cells.count())
    )
    shown = "charts[1].series.map(s => s.show)"
    assert page.evaluate("charts[1].data[2].slice(0, 2)") == [2.05, 3.05]  # the mean of b's seeds: 1 + s + (0, 0.1)
    assert page.evaluate("charts[1].data[2][7]") == 9  # only one of them went so far
    assert page.locator("#curves figcaption").all_inner_texts()[0].startswith("mean over an iteration's responses")
    names = page.locator("#curves figure").nth(1).locator(".u-legend .u-series:visible .u-label")
    assert names.all_inner_texts() == ["iteration", "<b>a</b>", "<b>b</b>"]
    names.nth(2).click()
    assert page.evaluate(shown) == [True, True, False, True, True, False, False]
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate(OUTSIDE) == []
    assert said == []
    page.close()
