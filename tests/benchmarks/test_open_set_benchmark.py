"""Tests of the benchmark of classifiers that may say "unknown"."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from skdice import OpenSetClassifier

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def problem():
    from open_set import Problem

    pixels, digits = load_digits(return_X_y=True)
    known = digits < 4
    unknown = {"4": pixels[digits == 4] / 16, "5": pixels[digits == 5] / 16}
    return Problem(
        "few digits",
        pixels[known] / 16,
        digits[known].astype(str),
        unknown,
        lambda seed: LogisticRegression(max_iter=300),
    )


def test_the_score_of_the_largest_probability_orders_rows_as_predict_proba_does(problem):
    from open_set import detectors

    model = OpenSetClassifier(
        problem.classifier(0), detectors(0)["largest probability"], unknown_label="?"
    ).fit(problem.rows, problem.labels)
    largest = model.predict_proba(problem.rows).max(axis=1)
    assert spearmanr(model.score_samples(problem.rows), largest).statistic > 0.99999


def test_every_method_judges_the_same_classifier(problem):
    from open_set import detectors, format_table, measure_split

    found = measure_split(problem, seed=0)
    assert list(found) == [*detectors(0), "probability < 0.5"]
    for name, values in found.items():
        assert 0 <= values["flagged"] < 0.2
        assert values["accuracy"] > 0.95
        assert {"caught 4", "caught 5"} < set(values)
        assert ("OSCR" in values) == (name != "probability < 0.5")
    default = found["OpenSetClassifier"]
    assert default["caught 4"] > 2 * default["flagged"]
    assert measure_split(problem, seed=0) == found
    lines = format_table(problem, [found, found]).splitlines()
    assert len(lines) == 2 + len(found)
    shown = f"{100 * found['energy']['caught 5']:.1f} (0.0)"
    (line,) = [line for line in lines if line.startswith("energy")]
    assert shown in line.split("  ")


def test_shares_by_hand():
    from open_set import shares

    flags = {
        "known": np.array([True, False, False, False]),
        "near": np.array([True, False]),
        "far": np.array([True]),
    }
    assert shares(flags, np.array([True, True, False, True])) == {
        "flagged": 0.25,
        "caught near": 0.5,
        "caught far": 1.0,
        "accuracy": pytest.approx(2 / 3),
    }


def test_no_text_is_in_two_subpackages_and_none_is_known_and_unknown():
    from open_set import problems

    text = problems()[-1]
    every = [*text.rows, *text.unknown["near"], *text.unknown["far"]]
    assert len(text.rows) > 500
    assert len(set(text.labels)) == 6
    assert len(set(text.rows)) == len(text.rows)
    assert not set(text.rows) & set(text.unknown["near"])
    assert all(len(each) > 10 for each in every)
