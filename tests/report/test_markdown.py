"""The text for model cards: its figures, what must be escaped, and the cards that take it."""

import re

import numpy as np
import pytest
from reported import KINDS

import skdice
from skdice.report import OODReport

pytest.importorskip("jinja2")

ESCAPED = r"&lt;script&gt;alert('x')&lt;/script&gt;\|\`a\` \*b\* \$c\$ &amp; \"d\" # e".replace(
    '\\"', '"'
)


def tables(text):
    """Return the tables of a text as lists of lists of cells."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in block.splitlines()
        ]
        found.append(lines)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_is_that_of_the_report(kind, report_of):
    report = report_of(kind)
    text = report.to_markdown()
    assert text.endswith("\n")
    assert "\n\n\n\n" not in text
    assert re.findall(r"^#+ .*$", text, re.MULTILINE)[:2] == [
        "### Warnings",
        "### What was deployed",
    ]
    assert report.promise.statement in text.replace("\\", "")
    for table in tables(text):
        assert len({len(line) for line in table}) == 1
        assert set("".join(table[1])) <= set("-:")
    (results,) = [
        table for table in tables(text) if table[0][0] == "Set" and "FPR95, %" in table[0]
    ]
    for line, measured in zip(results[2:-1], report.sets, strict=True):
        assert line[2] == f"{100 * measured.fpr95.value:.1f}"
        low, high = measured.fpr95.interval
        assert line[3] == f"{100 * low:.1f} to {100 * high:.1f}"
        assert line[4] == f"{100 * measured.auroc.value:.1f}"
        if measured.flagged is not None:
            assert line[6] == f"{100 * measured.flagged:.1f}"
            low, high = measured.flagged_interval
            assert line[7] == f"{100 * low:.1f} to {100 * high:.1f}"
    assert results[-1][0] == "**mean**"
    assert results[-1][4] == f"{100 * report.auroc.value:.1f}"
    assert results[3][0] == ESCAPED
    assert "<" not in text.split("### How to compute")[0]
    for warning in report.warnings:
        assert f"* {warning.partition('<')[0][:30]}" in text


def test_the_text_is_written_to_a_file_as_well(report_of, tmp_path):
    text = report_of("vim").to_markdown(tmp_path / "card.md")
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == text


def test_a_command_with_any_name_stays_in_its_block(detector_of, rows, tmp_path):
    X_id, ood = rows
    paths = tmp_path / "d.safetensors", tmp_path / "id.npy", tmp_path / "a\n```\n# b.npy"
    skdice.save(detector_of("fdbd"), paths[0])
    np.save(paths[1], X_id)
    np.save(paths[2], ood["mnist"])
    report = OODReport.from_detector(paths[0], paths[1], {"x": paths[2]})
    block = report.to_markdown().split("### How to compute this again\n\n")[1]
    assert all(line.startswith("    ") for line in block.splitlines())


@pytest.mark.slow
def test_a_card_of_skops_takes_it(report_of, detector_of):
    card_module = pytest.importorskip("skops.card")
    card = card_module.Card(detector_of("conformal"))
    text = report_of("conformal").to_markdown()
    card.add(**{"Out-of-distribution detection": text})
    rendered = card.render()
    assert "# Out-of-distribution detection\n\n" in rendered
    assert text.strip() in rendered


def test_front_matter_of_a_hub_is_left_alone(report_of):
    """A hub reads what stands between lines of three dashes at the beginning of a card."""
    text = report_of("conformal").to_markdown()
    assert not re.search(r"^---\s*$", text, re.MULTILINE)
