"""Confidence intervals of the metrics."""

import numpy as np
import pytest

from skdice import metrics
from skdice.metrics import confidence_interval
from skdice.metrics._counts import METRICS
from skdice.metrics._intervals import STANDARD_ERRORS, WITHOUT_INTERVAL
from skdice.metrics._rates import labelled

# The values of scores from N(2, 1) and N(0, 1), by benchmarks/interval_coverage.py.
TRUE_VALUES = {
    "auroc": 0.9214,
    "fpr_at_tpr": 0.3612,
    "detection_error": 0.1587,
}


@pytest.mark.parametrize(
    ("metric", "rule"), [*((name, "paper") for name in TRUE_VALUES), ("fpr_at_tpr", "roc_curve")]
)
def test_intervals_hold_the_true_value_as_often_as_stated(metric, rule):
    """Of 300 intervals at 90 %, 90 % would miss 30 times; 5 % and 16 % are four errors away."""
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(300):
        y, s = labelled(rng.normal(2, 1, 200), rng.normal(0, 1, 200))
        low, high = confidence_interval(y, s, metric=metric, rule=rule, level=0.9, n_resamples=200)
        missed += not low <= TRUE_VALUES[metric] <= high
    assert 15 <= missed <= 48


def test_the_standard_error_is_that_of_resampled_rows():
    rng = np.random.default_rng(2)
    inliers, outliers = rng.normal(1, 1, 300).round(1), rng.normal(0, 1, 250).round(1)
    low, high = confidence_interval(*labelled(inliers, outliers))
    values = [
        metrics.auroc(*labelled(rng.choice(inliers, 300), rng.choice(outliers, 250)))
        for _ in range(1000)
    ]
    assert (high - low) / (2 * 1.96) == pytest.approx(np.std(values), rel=0.1)


def test_the_interval_of_the_rate_is_that_of_resampled_rows():
    rng = np.random.default_rng(2)
    inliers, outliers = rng.normal(1, 1, 120).round(2), rng.normal(0, 1, 80).round(2)
    y, s = labelled(inliers, outliers)
    found = confidence_interval(y, s, metric="fpr_at_tpr", n_resamples=4000, level=0.9)
    values = [
        metrics.fpr_at_tpr(*labelled(rng.choice(inliers, 120), rng.choice(outliers, 80)))
        for _ in range(1500)
    ]
    np.testing.assert_allclose(found, np.quantile(values, [0.05, 0.95]), atol=0.04)


@pytest.mark.parametrize("metric", ["fpr_at_tpr", "detection_error"])
def test_the_seed_decides_the_interval(metric):
    y, s = labelled(np.arange(50.0), np.arange(-25.0, 25.0))
    found = confidence_interval(y, s, metric=metric)
    assert confidence_interval(y, s, metric=metric) == found
    assert confidence_interval(y, s, metric=metric, random_state=1) != found


@pytest.mark.parametrize("metric", TRUE_VALUES)
@pytest.mark.parametrize("flawless", [True, False])
def test_a_flawless_value_is_not_certain(metric, flawless):
    """With 200 rows without an error, a rate of 1.8 % has a probability of 2.5 %."""
    y, s = labelled(np.arange(200.0, 400.0), np.arange(200.0))
    low, high = confidence_interval(y, s if flawless else -s, metric=metric)
    bound = 0.025 ** (1 / 200)
    best = 1 if metric == "auroc" else 0
    value = getattr(metrics, metric)(y, s if flawless else -s)
    if value == 1:
        assert (low, high) == pytest.approx((bound, 1))
    elif value == 0:
        assert (low, high) == pytest.approx((0, 1 - bound))
    else:
        assert not flawless
        assert low < high
    assert not flawless or value == best


def test_areas_under_precision_recall_curves_have_no_interval():
    """A few of the highest scores decide these areas."""
    for metric in WITHOUT_INTERVAL:
        with pytest.raises(ValueError, match=f"metric is '{metric}', which has no interval"):
            confidence_interval([1, 1, -1, -1], [3.0, 2.0, 1.0, 0.0], metric=metric)
    assert {*WITHOUT_INTERVAL, *STANDARD_ERRORS, "fpr_at_tpr"} == set(METRICS)


def test_one_row_of_a_class_has_no_interval():
    with pytest.raises(ValueError, match="1 rows of a class, expected at least 2"):
        confidence_interval([1, -1], [1.0, 0.0])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"metric": "f1"}, "metric is 'f1', expected one of auroc"),
        ({"level": 95}, "level is 95"),
        ({"n_resamples": 0}, "n_resamples is 0"),
        ({"tpr": 95}, "tpr is 95, .*did you mean 0.95"),
        ({"rule": "authors"}, "rule is 'authors'"),
    ],
)
def test_options_of_the_interval(options, reason):
    with pytest.raises(ValueError, match=reason):
        confidence_interval([1, -1], [1.0, 0.0], **options)
