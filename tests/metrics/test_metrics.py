from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from skdice import DICEDetector, metrics
from skdice.metrics import fpr_at_tpr
from skdice.metrics._counts import METRICS
from skdice.metrics._rates import labelled


def authors(inliers, outliers):
    """The published code of DICE, in three lines."""
    known = sorted(inliers)
    threshold = known[round(0.05 * len(known))]
    return sum(score > threshold for score in outliers) / len(outliers)


def openood(inliers, outliers):
    """OpenOOD: out-of-distribution is positive, by scikit-learn's curve.

    roc_curve must not drop the points on a straight line between two others, because the point at
    the rate that is asked for may be one of them.
    """
    indicator = np.repeat([0, 1], [len(inliers), len(outliers)])
    scores = -np.concatenate([inliers, outliers])
    fpr, tpr, _ = roc_curve(indicator, scores, drop_intermediate=False)
    return fpr[np.argmax(tpr >= 0.95)]


def by_definition(inliers, outliers, tpr):
    """The highest score that enough inliers reach, and the outliers that reach it."""
    inliers, outliers = np.asarray(inliers), np.asarray(outliers)
    for threshold in sorted({*inliers, *outliers}, reverse=True):
        if np.mean(inliers >= threshold) >= tpr:
            return np.mean(outliers >= threshold)
    raise AssertionError


# The scores have few values, so that many tie.
some_scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=60)


@given(some_scores, some_scores)
# The points of these curves at a rate of 0.95 lie on a straight line between two others.
@example([0.0] * 18 + [-1.0, -2.0], [-1.0, -2.0])
@example([1.0, 2.0], [0.0] * 18 + [1.0, 2.0])
def test_fpr95_by_every_rule(inliers, outliers):
    y, s = labelled(inliers, outliers)
    assert fpr_at_tpr(y, s) == authors(inliers, outliers)
    assert fpr_at_tpr(y, s, pos_label=-1) == authors(np.negative(outliers), np.negative(inliers))
    assert fpr_at_tpr(y, s, rule="roc_curve", pos_label=-1) == openood(inliers, outliers)
    fpr, tpr, _ = roc_curve(y, s, pos_label=1, drop_intermediate=False)
    assert fpr_at_tpr(y, s, rule="roc_curve") == fpr[np.argmax(tpr >= 0.95)]
    assert fpr_at_tpr(y, s, rule="roc_curve") == by_definition(inliers, outliers, 0.95)


@given(some_scores, some_scores, st.sampled_from([0.05, 0.5, 0.8, 0.9, 1.0]))
def test_fpr_at_other_rates(inliers, outliers, tpr):
    y, s = labelled(inliers, outliers)
    assert fpr_at_tpr(y, s, tpr=tpr, rule="roc_curve") == by_definition(inliers, outliers, tpr)


@given(some_scores, some_scores)
def test_areas_and_error(inliers, outliers):
    y, s = labelled(inliers, outliers)
    pairs = np.subtract.outer(inliers, outliers)
    area = Fraction(int(2 * np.sum(pairs > 0) + np.sum(pairs == 0)), 2 * pairs.size)
    # The area is the exact fraction, rounded once. scikit-learn rounds each trapezoid.
    assert metrics.auroc(y, s) == float(area)
    assert metrics.auroc(y, s) == pytest.approx(roc_auc_score(y, s), rel=1e-14)
    expected = average_precision_score(y, s, pos_label=1)
    assert metrics.aupr_in(y, s) == pytest.approx(expected, rel=1e-13)
    expected = average_precision_score(y, -s, pos_label=-1)
    assert metrics.aupr_out(y, s) == pytest.approx(expected, rel=1e-13)
    cuts = [-np.inf, *s, np.inf]
    errors = [
        (np.mean(np.less(inliers, cut)) + np.mean(np.greater_equal(outliers, cut))) / 2
        for cut in cuts
    ]
    assert metrics.detection_error(y, s) == pytest.approx(min(errors), abs=1e-15)


def test_the_two_conventions_differ_by_tens_of_points_on_skewed_scores():
    # One inlier in ten has a low score: a true-positive rate of 95 % includes some of these.
    inliers = np.r_[np.full(90, 10.0), np.full(10, 0.0)]
    outliers = np.r_[np.full(97, 5.0), np.full(3, 20.0)]
    y, s = labelled(inliers, outliers)
    assert fpr_at_tpr(y, s, rule="roc_curve") == 1.0
    assert fpr_at_tpr(y, s, rule="roc_curve", pos_label=-1) == 0.1


@pytest.mark.parametrize("rule", ["paper", "roc_curve"])
@given(some_scores, some_scores, st.data())
def test_weights_count_like_repeated_rows(rule, inliers, outliers, data):
    y, s = labelled(inliers, outliers)
    n = st.integers(1, 4)
    weights = np.array(data.draw(st.lists(n, min_size=len(y), max_size=len(y))))
    expected = fpr_at_tpr(np.repeat(y, weights), np.repeat(s, weights), rule=rule)
    assert fpr_at_tpr(y, s, rule=rule, sample_weight=weights) == pytest.approx(expected)


def test_weights_that_are_not_counts():
    y, s = [1, 1, -1], [2.0, 0.0, 1.0]
    assert fpr_at_tpr(y, s, rule="roc_curve", sample_weight=[0.99, 0.01, 0.5]) == 0
    with pytest.raises(ValueError, match="not of whole numbers, but rule='paper' counts rows"):
        fpr_at_tpr(y, s, sample_weight=[0.99, 0.01, 0.5])
    with pytest.raises(ValueError, match="sample_weight holds -1, expected no negative"):
        fpr_at_tpr(y, s, sample_weight=[1, -1, 1])
    with pytest.raises(ValueError, match="0 on all rows of a class"):
        fpr_at_tpr(y, s, sample_weight=[1, 1, 0])


ALL = [getattr(metrics, name) for name in METRICS]


@pytest.mark.parametrize("metric", ALL, ids=lambda each: each.__name__)
@pytest.mark.parametrize(
    ("y", "s", "reason"),
    [
        ([1, 1], [0.0, 1.0], "no out-of-distribution row"),
        ([-1, -1], [0.0, 1.0], "no in-distribution row"),
        ([1, -1], [0.0, np.nan], "NaN"),
        ([1, -1], [np.inf, 0.0], "infinity"),
        ([0, 1], [0.0, 1.0], "labels 0, 1; expected"),
        (["in", "out"], [0.0, 1.0], "labels 'in', 'out'"),
        ([1, -1, -1], [0.0, 1.0], "inconsistent numbers of samples"),
        ([], [], "minimum of 1"),
    ],
)
def test_what_cannot_be_measured_is_said(metric, y, s, reason):
    with pytest.raises(ValueError, match=reason):
        metric(y, s)


@pytest.mark.parametrize("rule", ["paper", "roc_curve"])
@pytest.mark.parametrize(
    ("tpr", "reason"), [(95, r"95, .*did you mean 0.95"), (0, "0"), ("x", "'x'"), (np.nan, "nan")]
)
def test_a_rate_out_of_range(rule, tpr, reason):
    with pytest.raises(ValueError, match=f"tpr is {reason}"):
        fpr_at_tpr([1, -1], [1.0, 0.0], tpr=tpr, rule=rule)


def test_another_positive_class_is_refused():
    with pytest.raises(ValueError, match="pos_label is 0, expected 1 or -1"):
        fpr_at_tpr([1, -1], [1.0, 0.0], pos_label=0)


def test_another_rule_is_refused():
    with pytest.raises(ValueError, match="rule is 'authors', expected 'paper' or 'roc_curve'"):
        fpr_at_tpr([1, -1], [1.0, 0.0], rule="authors")


def test_the_scorer_searches(fashion):
    X = np.concatenate([fashion.id_train[:1000], fashion.ood["mnist"][:1000]])
    y = np.repeat([1, -1], 1000)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    search = GridSearchCV(
        DICEDetector(fashion.head),
        {"sparsity": [0, 0.95]},
        scoring=metrics.neg_fpr95_scorer,
        cv=folds,
    ).fit(X, y)
    expected = []
    for train, test in folds.split(X, y):
        detector = DICEDetector(fashion.head, sparsity=0.95).fit(X[train], y[train])
        scores = detector.score_samples(X[test])
        expected.append(-authors(scores[y[test] == 1], scores[y[test] == -1]))
    assert search.cv_results_["mean_test_score"][1] == pytest.approx(np.mean(expected))
    assert search.best_params_ == {"sparsity": 0}
