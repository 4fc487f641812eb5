"""Confidence intervals of the metrics."""

import numpy as np
import pytest
from scipy.stats import norm

from skdice import metrics
from skdice.metrics import confidence_interval
from skdice.metrics._counts import METRICS
from skdice.metrics._intervals import WITHOUT_INTERVAL, interval_of_mean
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


@pytest.mark.parametrize("rule", ["paper", "roc_curve"])
def test_rates_of_resamples_are_distributed_as_those_of_drawn_rows(rule):
    """The threshold and the rate are drawn from their laws; here the rows are drawn."""
    rng = np.random.default_rng(0)
    inliers, outliers = rng.normal(1, 1, 40).round(1), rng.normal(0, 1, 30).round(1)
    y, s = labelled(inliers, outliers)
    values = [
        metrics.fpr_at_tpr(*labelled(rng.choice(inliers, 40), rng.choice(outliers, 30)), rule=rule)
        for _ in range(1500)
    ]
    for level in (0.5, 0.8, 0.95):
        found = confidence_interval(
            y, s, metric="fpr_at_tpr", rule=rule, level=level, n_resamples=20_000
        )
        expected = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        np.testing.assert_allclose(found, expected, atol=1.01 / 30)


@pytest.mark.parametrize("rule", ["paper", "roc_curve"])
@pytest.mark.parametrize("metric", ["auroc", "fpr_at_tpr"])
def test_the_interval_of_the_mean_of_one_set_is_that_of_the_set(metric, rule):
    rng = np.random.default_rng(1)
    inliers, outliers = rng.normal(1, 1, 300).round(1), rng.normal(0, 1, 200).round(1)
    found = interval_of_mean(inliers, [outliers], metric=metric, rule=rule)
    expected = confidence_interval(*labelled(inliers, outliers), metric=metric, rule=rule)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("metric", ["auroc", "fpr_at_tpr"])
def test_intervals_of_the_mean_hold_the_true_value_as_often_as_stated(metric):
    """Of 300 intervals at 90 %, 90 % would miss 30 times; 5 % and 16 % are four errors away.

    The second set is the first one moved, so that the true mean is known: for a set from
    N(d, 1) against N(2, 1), the AUROC is Phi((2 - d) / sqrt 2) and the FPR95 Phi(d - 2 + 1.645).
    """
    rng = np.random.default_rng(0)
    centres = np.array([0.0, 1.0])
    true = {
        "auroc": norm.cdf((2 - centres) / np.sqrt(2)).mean(),
        "fpr_at_tpr": norm.cdf(centres - 2 + norm.ppf(0.95)).mean(),
    }[metric]
    missed = 0
    for _ in range(300):
        sets = [rng.normal(centre, 1, n) for centre, n in zip(centres, (200, 100), strict=True)]
        low, high = interval_of_mean(
            rng.normal(2, 1, 200), sets, metric=metric, level=0.9, n_resamples=300
        )
        missed += not low <= true <= high
    assert 15 <= missed <= 48


def test_the_interval_of_the_mean_knows_that_the_sets_share_their_inliers():
    """With few inliers and many outliers, the mean of two sets is as uncertain as one set."""
    rng = np.random.default_rng(3)
    inliers = rng.normal(1, 1, 60)
    sets = [rng.normal(0, 1, 20_000) for _ in range(2)]
    for metric in ("auroc", "fpr_at_tpr"):
        low, high = interval_of_mean(inliers, sets, metric=metric)
        alone = confidence_interval(*labelled(inliers, sets[0]), metric=metric)
        assert high - low == pytest.approx(alone[1] - alone[0], rel=0.1)


@pytest.mark.parametrize("metric", ["auroc", "fpr_at_tpr"])
def test_a_flawless_mean_is_not_certain(metric):
    sets = [np.arange(100.0), np.arange(50.0)]
    low, high = interval_of_mean(np.arange(200.0, 400.0), sets, metric=metric)
    bound = 0.025 ** (1 / 50)
    assert (low, high) == pytest.approx((bound, 1) if metric == "auroc" else (0, 1 - bound))


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
    for metric in METRICS.keys() - set(WITHOUT_INTERVAL):
        low, high = confidence_interval([1, 1, -1, -1], [3.0, 1.0, 2.0, 0.0], metric=metric)
        assert 0 <= low < high <= 1


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
