"""The page in a real browser: what it asks for, how it sorts, its themes and its print."""

import os
import re
import shutil

import pytest

from skdice.report import OODReport

pytestmark = pytest.mark.browser

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("jinja2")

# Debian's name comes first. Machines of continuous integration often have Google's browser.
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
if CHROMIUM is None:
    pytest.skip(f"none of {', '.join(NAMES)} is on the path", allow_module_level=True)

A4 = (595, 842)  # in points


@pytest.fixture(scope="module")
def browser():
    # Chromium refuses to run as root with its sandbox, as in containers.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def address(report_of, tmp_path_factory):
    path = tmp_path_factory.mktemp("browser") / "report.html"
    report_of("conformal").to_html(path)
    return path.as_uri()


@pytest.fixture
def open_page(browser, address):
    """A function that opens the page; at the end nothing may have been said or asked for."""
    events, contexts = [], []

    def open_it(url=address, width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: events.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: events.append(f"error: {error}"))
        page.on("dialog", lambda dialog: events.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: events.append(request.url))
        page.goto(url)
        assert events.pop(0) == url
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert events == []


def column(page, table, number):
    return [
        row.locator("th, td").nth(number).inner_text() for row in table.locator("tbody tr").all()
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_said_asked_for_or_cut_off(open_page, scheme, width):
    page = open_page(width=width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # Wide tables scroll in themselves, and no text is cut off beside them.
    cut = page.evaluate(
        """[...document.querySelectorAll("p, li, dd, h1, h2, h3, figcaption, pre")]
           .filter((each) => each.scrollWidth > each.clientWidth + 1 && !each.matches(".hidden"))
           .map((each) => each.textContent)"""
    )
    assert cut == []


def test_a_table_sorts_on_click(open_page):
    table = open_page().get_by_role("table", name=re.compile("by the class that the full head"))
    header = table.get_by_role("columnheader", name="Flagged, %")
    before = [float(each) for each in column(None, table, 3)]
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert [float(each) for each in column(None, table, 3)] == sorted(before)
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert [float(each) for each in column(None, table, 3)] == sorted(before)[::-1]
    table.get_by_role("columnheader", name="Class").get_by_role("button").click()
    assert header.get_attribute("aria-sort") is None
    assert [int(each) for each in column(None, table, 0)] == list(range(10))


def test_a_table_sorts_by_keyboard_and_says_so(open_page):
    page = open_page()
    table = page.get_by_role("table", name=re.compile("^FPR95, AUROC and rows flagged by set"))
    button = table.get_by_role("button", name="AUROC")
    button.focus()
    page.keyboard.press("Enter")
    values = [float(each) for each in column(page, table, 4)]
    assert values == sorted(values)
    page.keyboard.press("Space")
    assert [float(each) for each in column(page, table, 4)] == sorted(values)[::-1]
    assert page.get_by_role("status").inner_text().endswith("sorted by AUROC, descending")
    # The next key leads to the next header.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent").startswith("95")


def test_text_sorts_as_text_and_the_mean_stays_below(open_page):
    page = open_page()
    table = page.get_by_role("table", name=re.compile("^FPR95, AUROC and rows flagged by set"))
    table.get_by_role("button", name="Set").click()
    assert column(page, table, 0)[1] == "mnist"
    table.get_by_role("button", name="Set").click()
    assert column(page, table, 0)[0] == "mnist"
    assert table.locator("tfoot th").inner_text() == "Mean of the sets"


def test_points_show_their_values(open_page):
    page = open_page()
    tip = page.locator("#tip")
    assert tip.is_hidden()
    page.locator("svg circle.shown").first.hover()
    assert tip.inner_text().startswith("FPR95 of mnist: ")
    box = tip.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 1280
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.locator("svg rect").nth(20).hover()
    assert "of in-distribution" in tip.inner_text()
    page.get_by_role("heading", level=1).hover()
    assert tip.is_hidden()


def test_the_keyboard_reaches_the_content_first(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(open_page, scheme, width):
    """The rules of WCAG 2.2 and the best practices that axe-core tests."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(open_page(width=width, color_scheme=scheme))
    assert found.violations_count == 0, found.generate_report()


def test_only_tables_that_scroll_take_the_focus(open_page):
    focusable = {
        width: open_page(width=width).locator(".scroll[tabindex='0']").count()
        for width in (1280, 390)
    }
    assert focusable[1280] == 0
    assert focusable[390] > 0


def test_very_long_names_are_broken(open_page, detector_of, rows, tmp_path):
    X_id, ood = rows
    sets = {300 * "x": ood["mnist"], " ".join(60 * ["words"]): ood["mnist"][:150]}
    OODReport.from_detector(detector_of("conformal"), X_id, sets).to_html(tmp_path / "long.html")
    for width in (1280, 390):
        page = open_page((tmp_path / "long.html").as_uri(), width=width)
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_screen_reader_finds_its_way(open_page):
    page = open_page()
    for role in ("banner", "navigation", "main", "contentinfo"):
        assert page.get_by_role(role).count() == 1
    assert page.get_by_role("img", name="Scores of mnist").count() == 1
    assert page.get_by_role("region", name="Results").count() >= 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_themes(open_page, scheme):
    """The contrast of text is at least 4.5, which WCAG 2.2 asks for at level AA."""
    page = open_page(color_scheme=scheme)
    contrasts = page.evaluate(
        """() => {
          const style = getComputedStyle(document.documentElement);
          const light = (name) => {
            const value = style.getPropertyValue(name).trim();
            const parts = [1, 3, 5].map((at) => parseInt(value.slice(at, at + 2), 16) / 255);
            const [r, g, b] = parts.map(
              (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const contrast = (a, b) => {
            const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
            return (high + 0.05) / (low + 0.05);
          };
          const found = {dark: light("--paper") < light("--ink")};
          for (const name of ["--ink", "--quiet", "--accent", "--inside", "--outside"])
            found[name] = contrast(name, "--paper");
          found["quiet on soft"] = contrast("--quiet", "--soft");
          found["ink on warning"] = contrast("--ink", "--warn-soft");
          return found;
        }"""
    )
    assert contrasts.pop("dark") == (scheme == "dark")
    graphics = [contrasts.pop("--inside"), contrasts.pop("--outside")]
    assert min(contrasts.values()) >= 4.5, contrasts
    assert min(graphics) >= 3
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_the_page_can_be_read_without_its_script(open_page, report_of):
    page = open_page(java_script_enabled=False)
    assert page.get_by_role("button").count() == 0
    table = page.get_by_role("table", name=re.compile("by the class that the full head"))
    assert len(column(page, table, 0)) == len(report_of("conformal").inside.classes)
    assert table.get_by_role("columnheader").first.inner_text() == "Class"
    # The browser shows the title of a point as its tooltip.
    assert page.locator("svg circle.shown title").first.text_content().startswith("FPR95 of")


def test_the_print_is_light_and_on_a4(open_page):
    page = open_page(color_scheme="dark")
    document = page.pdf(prefer_css_page_size=True)
    boxes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", document)
    assert len(boxes) >= 4
    assert {(round(float(width)), round(float(height))) for width, height in boxes} == {A4}
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 680, "height": 900})  # 180 mm between the margins
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert too_wide(page) == 0


def too_wide(page):
    """Return how many tables are wider than the page."""
    return page.evaluate(
        """[...document.querySelectorAll("table")].filter(
           (each) => each.scrollWidth > each.parentElement.clientWidth + 1).length"""
    )


def test_a_large_report(browser, wide_report, tmp_path, open_page):
    wide_report.to_html(tmp_path / "report.html")
    page = open_page((tmp_path / "report.html").as_uri(), width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("svg").count() == 2 * 10 + 1
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 680, "height": 900})
    assert too_wide(page) == 0
