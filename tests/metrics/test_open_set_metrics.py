"""Tests of the metrics of classifiers that may refuse a row, by independent references."""

from fractions import Fraction
from functools import partial
from itertools import pairwise, permutations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdice import DICEDetector, OpenSetClassifier
from skdice.metrics import (
    aurc,
    open_set_report,
    oscr_auc,
    oscr_auc_scorer,
    oscr_curve,
    risk_coverage_curve,
)

# Rows (label, predicted class, score) with few scores, so that many tie.
rows = st.lists(
    st.tuples(st.sampled_from([-1, 0, 1, 2]), st.integers(0, 2), st.integers(0, 6).map(float)),
    min_size=2,
    max_size=40,
)


def columns(given_rows):
    return [list(column) for column in zip(*given_rows, strict=True)]


@given(rows)
def test_oscr_by_its_definition(given_rows):
    known = [row for row in given_rows if row[0] != -1]
    unknown = [row for row in given_rows if row[0] == -1]
    assume(known and unknown)
    fpr, ccr, thresholds = oscr_curve(*columns(given_rows))
    assert thresholds[0] == np.inf
    np.testing.assert_array_equal(thresholds[1:], sorted({row[2] for row in given_rows})[::-1])
    for rate, correct, threshold in zip(fpr, ccr, thresholds, strict=True):
        assert rate == sum(score >= threshold for *_, score in unknown) / len(unknown)
        accepted = [label == pred and score >= threshold for label, pred, score in known]
        assert correct == sum(accepted) / len(known)


@given(rows)
def test_oscr_auc_counts_pairs(given_rows):
    known = [row for row in given_rows if row[0] != -1]
    unknown = [row for row in given_rows if row[0] == -1]
    assume(known and unknown)
    won = Fraction(0)
    for label, predicted, score in known:
        for *_, other in unknown:
            if label == predicted:
                won += Fraction(1, 2) if score == other else int(score > other)
    expected = float(won / (len(known) * len(unknown)))
    labels, predicted, scores = columns(given_rows)
    area = oscr_auc(labels, predicted, scores)
    assert area == pytest.approx(expected, abs=1e-12)
    auroc = roc_auc_score(np.not_equal(labels, -1), scores)
    accuracy = np.mean([label == pred for label, pred, _ in known])
    assert area <= min(auroc, accuracy) + 1e-12


def test_a_perfect_classifier_has_the_auroc():
    labels, scores = [0, 1, -1, -1, 2], [0.3, 0.9, 0.5, 0.1, 0.5]
    assert oscr_auc(labels, [0, 1, 0, 1, 2], scores) == roc_auc_score([1, 1, 0, 0, 1], scores)


@given(rows)
def test_risk_and_coverage_by_their_definition(given_rows):
    coverage, risk, thresholds = risk_coverage_curve(*columns(given_rows))
    np.testing.assert_array_equal(thresholds, sorted({row[2] for row in given_rows})[::-1])
    for share, wrong, threshold in zip(coverage, risk, thresholds, strict=True):
        accepted = [row for row in given_rows if row[2] >= threshold]
        assert share == len(accepted) / len(given_rows)
        assert wrong == sum(label != pred for label, pred, _ in accepted) / len(accepted)


@given(
    st.lists(
        st.tuples(st.sampled_from([-1, 0, 1]), st.integers(0, 1), st.integers(0, 3).map(float)),
        min_size=1,
        max_size=6,
    )
)
def test_aurc_is_the_mean_over_all_orders_of_tied_rows(given_rows):
    areas = []
    for order in permutations(given_rows):
        if any(first[2] < second[2] for first, second in pairwise(order)):
            continue  # not in the order of the scores
        wrong = [label != predicted for label, predicted, _ in order]
        risks = [Fraction(sum(wrong[:k]), k) for k in range(1, len(wrong) + 1)]
        areas.append(sum(risks) / len(risks))
    expected = float(sum(areas) / len(areas))
    assert aurc(*columns(given_rows)) == pytest.approx(expected, abs=1e-12)


def test_values_by_hand():
    # The 3 rows of highest score: right, wrong, right; then an unknown row, which is wrong.
    assert aurc([0, 0, 1, -1], [0, 1, 1, 0], [9, 8, 7, 6]) == pytest.approx(
        (0 + 1 / 2 + 1 / 3 + 2 / 4) / 4
    )
    assert aurc([0, 0], [0, 0], [1, 2]) == 0
    assert aurc([0, 0], [1, 1], [1, 1]) == 1


@given(rows)
def test_every_row_is_counted_once_in_the_report(given_rows):
    labels, predicted, scores = columns(given_rows)
    # A score of 0 or 1 stands for a row that is called unknown.
    called = [-1 if score < 2 else pred for pred, score in zip(predicted, scores, strict=True)]
    report = open_set_report(labels, called)
    assert report.labels == sorted(set(labels), key=lambda label: (label == -1, label))
    for label, row in report.to_dict().items():
        of_label = [pred for true, pred in zip(labels, called, strict=True) if true == label]
        assert row["rows"] == len(of_label)
        assert row["unknown"] == of_label.count(-1)
        assert row["right"] == (0 if label == -1 else of_label.count(label))
        assert row["right"] + row["wrong"] + row["unknown"] == row["rows"]
        assert row["flagged"] == row["unknown"] / row["rows"]


def test_the_report_of_text_labels():
    report = open_set_report(
        ["cat", "dog", "?", "cat"], ["cat", "?", "?", "dog"], unknown_label="?"
    )
    assert repr(report).splitlines() == [
        "     rows  right  wrong  unknown  flagged",
        "cat     2      1      1        0    0.0 %",
        "dog     1      0      0        1  100.0 %",
        "  ?     1      0      0        1  100.0 %",
    ]
    frame = report.to_frame()
    assert frame.loc["dog", "flagged"] == 1
    assert frame["rows"].sum() == 4


def test_labels_and_scores_that_are_refused():
    with pytest.raises(ValueError, match=r"y_true has no unknown row, .* unknown_label -1"):
        oscr_curve([0, 1], [0, 1], [1, 2])
    with pytest.raises(ValueError, match=r"y_true has no unknown row, .* unknown_label -1"):
        oscr_curve(["a", "b"], ["a", "b"], [1, 2])
    with pytest.raises(ValueError, match="y_true has no known row"):
        oscr_curve([-1, -1], [0, 1], [1, 2])
    with pytest.raises(ValueError, match=r"y_pred\[1\] is the unknown_label -1.*predict_known"):
        oscr_auc([0, -1], [0, -1], [1, 2])
    for metric in (oscr_auc, aurc, risk_coverage_curve):
        with pytest.raises(ValueError, match="y_score contains NaN"):
            metric([0, -1], [0, 0], [1, np.nan])
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            metric([0, -1], [0], [1, 2])
    with pytest.raises(ValueError, match="y_true has 0 rows"):
        open_set_report([], [])


def test_a_search_by_the_area_and_by_other_metrics_at_once():
    X, y = load_digits(return_X_y=True)
    y[y >= 8] = -1
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    model = OpenSetClassifier(pipeline, DICEDetector(None, sparsity=0), random_state=0)
    folds = StratifiedKFold(2, shuffle=True, random_state=0)
    search = GridSearchCV(
        model,
        {"estimator__logisticregression__C": [1e-4, 1.0]},
        scoring={"oscr": oscr_auc_scorer, "accuracy": "accuracy"},
        refit="oscr",
        cv=folds,
    ).fit(X, y)
    best = search.best_estimator_
    expected = oscr_auc(y, best.estimator_.predict(X), best.score_samples(X))
    assert search.score(X, y) == expected
    assert len(set(search.cv_results_["mean_test_oscr"])) == 2
    # The area does not depend on the threshold.
    measure = partial(cross_val_score, X=X, y=y, cv=folds, scoring=oscr_auc_scorer)
    areas = [measure(model.set_params(contamination=share)) for share in (0.05, 0.2)]
    np.testing.assert_array_equal(*areas)
