"""The numbers of the README and of the landing page are those of the files that they name."""

import json
import re
from pathlib import Path
from statistics import median

import pytest

from skdice import DICEDetector, make_ensemble

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.rst", ROOT / "docs" / "index.rst"]


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def words(request):
    """The text of the page without line breaks and emphasis."""
    return " ".join(request.param.read_text(encoding="utf-8").replace("*", "").split())


def test_speed(words):
    cells = json.loads((RESULTS / "2026-11-24-compare.json").read_text(encoding="utf-8"))["cells"]

    def median_ratio(rival, sparsity):
        ratios = [cell["ratio"][rival] for cell in cells if cell["sparsity"] == sparsity]
        assert f"over {len(ratios)} settings" in words
        return median(ratios)

    assert f"{median_ratio('torch', 0.1):.1f} times as fast as torch" in words
    assert f"{median_ratio('torch', 0.9):.1f} times if 90 %" in words
    assert f"{median_ratio('pytorch-ood', 0.1):.0f} times as fast as the detector" in words


def test_cost_of_the_ensemble(words):
    text = (RESULTS / "2026-11-25-ensemble.rst").read_text(encoding="utf-8")
    ratios = [float(ratio) for ratio in re.findall(r"(?m) s +([\d.]+) +[\d.]+ +[\d.]+ s", text)]
    assert len(ratios) == 3
    assert f"takes {min(ratios):.1f} to {max(ratios):.1f} times as long as" in words


def test_gain_of_the_ensemble(words):
    text = (RESULTS / "2026-11-25-which-score.txt").read_text(encoding="utf-8")
    table = text[text.index("FPR95") : text.index("ID rows flagged")]
    mean = {
        name.strip(): value
        for name, value in re.findall(r"(?m)^(\S.*?)  .*\)\s+(\d+\.\d)\s+\d+\.\d\s+\d+\.\d$", table)
    }
    for name in ("ensemble", "energy", "DICE 0.7"):
        assert f"{100 - float(mean[name]):.1f} %" in words


def test_shares_of_flagged_rows(words, fashion):
    text = (RESULTS / "2026-11-25-confident-digit.txt").read_text(encoding="utf-8")
    unseen, test = fashion.id_test[:2000], fashion.id_test[2000:]

    def share(detector, rows):
        return (detector.predict(rows) == -1).mean()

    ensemble = make_ensemble(fashion.head).fit(fashion.id_train)
    ensemble.calibrate(unseen, contamination=0.05, method="conformal")
    assert f"ensemble, test images: {share(ensemble, test):.1%} flagged" in text
    assert f"{100 * share(ensemble, test):.1f} % where 5 % were allowed" in words
    found = share(ensemble, fashion.ood["mnist"])
    assert f"ensemble, mnist: {found:.1%} flagged" in text
    assert f"{100 * found:.0f} %" in words

    usual = DICEDetector(fashion.head, sparsity=0, score_func="msp").fit(fashion.id_train)
    usual.calibrate(unseen, contamination=0.05, method="conformal")
    found_by_usual = share(usual, fashion.ood["mnist"])
    assert f"probability, mnist: {found_by_usual:.1%} flagged" in text
    if "own confidence" in words:
        assert f"Of the digits in the example, the ensemble flags {100 * found:.0f} %" in words
        assert f"own confidence flags {100 * found_by_usual:.0f} %" in words
