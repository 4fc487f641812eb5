"""The page: its structure, its figures, its size, and what it must not have."""

import base64
import hashlib
import re
import shlex
import sys
from itertools import pairwise

import numpy as np
import pytest
from pages import parse
from reported import HOSTILE, KINDS

import skdice
from skdice import DICEDetector
from skdice.report import OODReport
from skdice.report._render import MOST_CLASSES

pytest.importorskip("jinja2")

# The text of a page has no line breaks in names.
HOSTILE_LINE = " ".join(HOSTILE.split())


@pytest.fixture(scope="module")
def page_of(report_of, tmp_path_factory):
    """A function from a kind to the text of its page."""
    pages = {}

    def make(kind):
        if kind not in pages:
            path = tmp_path_factory.mktemp("page") / "report.html"
            report_of(kind).to_html(path)
            pages[kind] = path.read_text(encoding="utf-8")
        return pages[kind]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_can_be_read_by_everyone(kind, page_of):
    """Landmarks, names of tables and charts, scopes, and links that lead somewhere."""
    page = parse(page_of(kind))
    assert page.find("html").attributes["lang"] == "en"
    assert page.find("head").find("title").text.startswith("Evidence on ")
    for landmark in ("header", "main", "footer"):
        assert page.find(landmark)
    assert page.find("nav").attributes["aria-label"] == "Contents"
    assert len(page.find_all("h1")) == 1
    levels = [int(each.tag[1]) for each in page.find_all() if re.fullmatch("h[1-6]", each.tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [each.attributes["id"] for each in page.find_all() if "id" in each.attributes]
    assert len(ids) == len(set(ids))
    for each in page.find_all():
        named = each.attributes.get("aria-labelledby", "").split()
        assert set(named) <= set(ids)
        if each.tag == "a":
            assert each.attributes["href"].removeprefix("#") in ids
    for table in page.find_all("table"):
        assert table.find("caption").text
        assert all(th.attributes["scope"] in ("col", "row") for th in table.find_all("th"))
        widths = [len(row) for row in table.cells()]
        assert len(set(widths)) == 1
    charts = page.find_all("svg")
    prunes = ("uncalibrated", "no threshold", "quantile", "conformal", "confidence", "react")
    assert len(charts) == 2 * 2 + (kind in (*prunes, "search"))
    for chart in charts:
        assert chart.attributes["role"] == "img"
        title, text = chart.attributes["aria-labelledby"].split()
        assert chart.find("title", id=title).text
        assert chart.find("desc", id=text).text
    for scroll in page.find_all("div"):
        if scroll.has_class("scroll"):
            assert scroll.attributes["tabindex"] == "0"
            assert scroll.attributes["aria-label"]
    headings = [each.text for each in page.find_all("h2")]
    regions = [each.attributes["aria-label"] for each in page.find_all(role="region")]
    names = [" ".join(name.split()) for name in (*headings, *regions)]
    assert len(names) == len(set(names))
    assert [cell for row in page.find("section", id="sign").find("table").cells() for cell in row][
        :4
    ] == ["Role", "Name", "Date", "Signature"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_has_no_address_of_anything_outside(kind, page_of):
    text = page_of(kind)
    page = parse(text)
    addresses = [
        value
        for each in page.find_all()
        for name, value in each.attributes.items()
        if name in ("src", "href", "xlink:href", "data", "action", "srcset", "poster")
    ]
    assert set(addresses) - {"data:,"} == {each for each in addresses if each.startswith("#")}
    style = page.find("style").text
    assert "url(" not in style
    assert "@import" not in style
    assert "@font-face" not in style
    assert not re.search(r"https?:|\bfetch\b|XMLHttp|eval", page.find("script").text)


def test_only_the_script_of_the_template_may_run(page_of):
    page = parse(page_of("conformal"))
    (policy,) = [
        each.attributes["content"]
        for each in page.find_all("meta")
        if each.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    script = "".join(page.find("script").children)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert "on" not in {name[:2] for each in page.find_all() for name in each.attributes}


def test_hostile_names_are_text(page_of):
    text = page_of("conformal")
    page = parse(text)
    assert len(page.find_all("script")) == 1
    rows = page.find("section", id="results").find_all("table")[0].cells()
    assert rows[2][0] == HOSTILE_LINE
    assert "<script>alert" not in text


def test_a_hostile_file_name_and_key_are_text(tmp_path, detector_of, rows, page_of):
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    X_id, ood = rows
    skdice.save(detector_of("fdbd"), folder / '\'; rm -rf "$HOME" & <b>.safetensors')
    np.save(folder / "id.npy", X_id)
    np.save(folder / "</code><script>1.npy".replace("/", "_"), ood["mnist"])
    (detector,) = folder.glob("*.safetensors")
    (outliers,) = folder.glob("*script*.npy")
    report = OODReport.from_detector(detector, folder / "id.npy", {"x": outliers})
    report.to_html(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = parse(text)
    assert not page.find_all("img")
    assert not page.find_all("b")
    command = "".join(page.find("section", id="again").find("code").children)
    assert shlex.split(command) == [*report.command, "-o", "report.html"]


def in_percent(value):
    return f"{100 * value:.1f}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_is_that_of_the_report(kind, report_of, page_of):
    report, page = report_of(kind), parse(page_of(kind))

    def between(ends):
        return f"{in_percent(ends[0])} to {in_percent(ends[1])}"

    def flagged(measured):
        return "\N{EN DASH}" if measured.flagged is None else in_percent(measured.flagged)

    results, operating = page.find("section", id="results").find_all("table")
    _, *lines, mean = results.cells()
    for line, measured in zip(lines, report.sets, strict=True):
        assert line == [
            " ".join(measured.name.split()),
            str(measured.n_rows),
            in_percent(measured.fpr95.value),
            between(measured.fpr95.interval),
            in_percent(measured.auroc.value),
            between(measured.auroc.interval),
            flagged(measured),
            "\N{EN DASH}" if measured.flagged is None else between(measured.flagged_interval),
        ]
    fpr95, auroc = report.fpr95, report.auroc
    assert mean == [
        "Mean of the sets",
        "",
        in_percent(fpr95.value),
        between(fpr95.interval),
        in_percent(auroc.value),
        between(auroc.interval),
        "",
        "",
    ]
    for line, measured in zip(operating.cells()[1:], report.sets, strict=True):
        assert line[1:] == [in_percent(share) for share in measured.operating]
    tiles = [each.text for each in page.find("header").find_all("dd")]
    assert tiles[6] == f"{in_percent(fpr95.value)} %"
    assert tiles[8] == f"{in_percent(auroc.value)} %"
    if report.inside.flagged is not None:
        passing = np.mean([1 - each.flagged for each in report.sets])
        assert tiles[4] == f"{in_percent(passing)} %"
        assert tiles[2] == f"{in_percent(report.inside.flagged)} %"
        assert tiles[3] == f"{report.inside.n_flagged} of {report.inside.n_rows}"

    classes = page.find("section", id="flagged").find_all("table")
    assert bool(classes) == bool(report.inside.classes)
    for table in classes:
        assert table.cells()[1:] == [
            [
                str(each.predicted),
                str(each.n_rows),
                str(each.n_flagged),
                in_percent(each.flagged),
            ]
            for each in report.inside.classes
        ]
    extremes = page.find("section", id="rows").find_all("table")
    expected = [
        rows
        for measured in (report.inside, *report.sets)
        for rows in (measured.least_typical, measured.most_typical)
    ]
    for table, rows in zip(extremes, expected, strict=True):
        assert [line[:2] for line in table.cells()[1:]] == [
            [f"{each.row:,}", f"{each.score:.6g}"] for each in rows
        ]
    told = page.find("section", id="threshold")
    assert told.find_all("p")[0].text.replace("\xa0", " ") == report.promise.statement
    items = [each.text for each in page.find("section", id="warnings").find_all("li")]
    assert items == [" ".join(each.split()) for each in report.warnings]
    text = page.find("section", id="detector").text + page.find("section", id="data").text
    for digest in (report.detector.digest, *(each.digest for each in report.data)):
        assert digest.sha256 is None or digest.sha256 in text
    assert (report.path is None) == (not page.find_all("section", id="path"))
    if report.path is not None:
        path = report.path
        tables = page.find("section", id="path").find_all("table")
        metrics = ((path.auroc, path.mean_auroc), (path.fpr95, path.mean_fpr95))
        for table, (values, means) in zip(tables, metrics, strict=True):
            header, *lines = table.cells()
            assert header == ["Set", *(f"{sparsity:g}" for sparsity in path.sparsities)]
            for line, row in zip(lines, (*values.values(), means), strict=True):
                assert line[1:] == list(map(in_percent, row))


def test_charts_have_the_values_of_their_points(report_of, page_of):
    report, page = report_of("conformal"), parse(page_of("conformal"))
    histogram, roc, *_ = page.find_all("svg")
    tips = [each.find("title").text for each in histogram.find_all("rect")]
    shares = [re.findall(r"([\d.]+) % of", tip.replace("\xa0", " ")) for tip in tips]
    first = report.sets[0]
    for share, inside, outside in zip(
        shares, first.histogram.inside, first.histogram.outside, strict=True
    ):
        assert share == [in_percent(inside), in_percent(outside)]
    *marks, fpr95 = [each.find("title").text for each in roc.find_all("circle")]
    assert fpr95 == f"FPR95 of mnist: {in_percent(first.fpr95.value)} %"
    points = {(in_percent(tpr), in_percent(fpr)) for fpr, tpr in first.roc}
    for mark in marks:
        kept, passes = re.findall(r"([\d.]+) %", mark)
        assert (kept, passes) in points


def test_the_same_input_gives_the_same_page_but_for_the_date(detector_of, rows, tmp_path):
    texts = []
    for _ in range(2):
        report = OODReport.from_detector(detector_of("ensemble"), *rows)
        report.to_html(tmp_path / "report.html")
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert report.created in text
        texts.append(
            text.replace(report.created, "").replace(report.created[:16].replace("T", " "), "")
        )
    assert texts[0] == texts[1]


def test_a_page_with_100_classes_and_10_sets_is_small(wide_report, tmp_path):
    wide_report.to_html(tmp_path / "report.html")
    assert len(wide_report.inside.classes) == 100
    assert len(wide_report.sets) == 10
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    parse((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_a_very_large_head_shows_the_classes_that_are_flagged_most(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4000, 400)).astype(np.float32)
    report = OODReport.from_detector(
        DICEDetector("identity", sparsity=0).fit(X[:1000]), X, {"zeros": np.zeros((100, 400))}
    )
    report.to_html(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    table = parse(text).find("section", id="flagged").find("table")
    shown = [int(line[0]) for line in table.cells()[1:]]
    assert len(shown) == MOST_CLASSES < len(report.inside.classes)
    assert shown == sorted(shown)
    hidden = [each for each in report.inside.classes if each.predicted not in shown]
    least = min(each.flagged for each in report.inside.classes if each.predicted in shown)
    assert max(each.flagged for each in hidden) <= least
    assert f"The {len(hidden)} classes with the lowest shares are left out" in text


def test_a_page_without_jinja_says_how_to_get_it(report_of, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pip install 'skdice\[report\]'"):
        report_of("vim").to_html(tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_a_page_is_written_whole_or_not_at_all(report_of, tmp_path):
    report_of("vim").to_html(str(tmp_path / "report.html"))
    before = (tmp_path / "report.html").read_bytes()
    with pytest.raises(FileNotFoundError, match="no such folder"):
        report_of("vim").to_html(tmp_path / "none" / "report.html")
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_bytes() == before
