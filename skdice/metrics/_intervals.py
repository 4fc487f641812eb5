"""Confidence intervals of the metrics, from counts of sorted scores."""

from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from scipy.stats import t as student_t
from sklearn.utils import check_random_state

from skdice._rows.sources import FloatArray
from skdice.metrics._counts import Counts, count_at_or_above, metric_on_counts, rate_at_or_above
from skdice.metrics._rates import count_scores, labelled, validated

# The number of counts that are computed at a time. They stay in the processor's cache.
CHUNK_CELLS = 1 << 20

# The bootstrap sees only about half of the bias of the detection error: a resample repeats
# rows, so the best threshold has fewer distinct rows to overfit. Subtracting twice the estimate
# would remove the whole bias but add more variance than it saves. The factor 1.5 gave the best
# coverage of those tried, and benchmarks/interval_coverage.py measures the coverage it gives.
BIAS_FACTOR = 1.5

# The metrics of which no interval held the true value as often as stated.
WITHOUT_INTERVAL = ("aupr_in", "aupr_out")


def confidence_interval(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    metric: str = "auroc",
    level: float = 0.95,
    tpr: float = 0.95,
    rule: str = "paper",
    n_resamples: int = 1000,
    random_state: Any = 0,
) -> tuple[float, float]:
    """Confidence interval of a metric.

    The rows of each class are taken as independent draws from one distribution; the interval
    is for the metric of the two distributions, with the share of the classes as in the data.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        The labels: +1 for in-distribution rows, -1 for out-of-distribution rows.
    y_score : array-like of shape (n_samples,)
        The scores; a higher score means more in-distribution.
    metric : {"auroc", "fpr_at_tpr", "detection_error"}, default="auroc"
        The function of `skdice.metrics` of that name.
    level : float in (0, 1), default=0.95
        The probability with which the interval is to hold the true value.
    tpr : float in (0, 1], default=0.95
        The true-positive rate of "fpr_at_tpr".
    rule : {"paper", "roc_curve"}, default="paper"
        The rule of "fpr_at_tpr".
    n_resamples : int, default=1000
        The number of resamples for "fpr_at_tpr" and "detection_error". The interval of "auroc"
        has a closed form.
    random_state : int, RandomState or None, default=0
        The seed of the resamples.

    Returns
    -------
    low, high : float
        The ends of the interval.

    Raises
    ------
    ValueError
        A class has fewer than 2 rows; a score is not finite; the metric has no interval, as
        "aupr_in" and "aupr_out"; or a parameter is out of its range.

    Notes
    -----
    The AUROC: the standard error is that of DeLong, DeLong and Clarke-Pearson. The interval is
    that of Student's t on the logit scale, on which an area near 1 has a nearly symmetric
    distribution.

    The detection error: the same on the logit scale, with the error of the two rates at the
    best threshold, around the value less its bias by the bootstrap.

    The false-positive rate: quantiles of the metric over resamples of each class. The rate of a
    resample is drawn from its exact distribution, so that no rows are drawn: the threshold is an
    order statistic of the in-distribution rows, and the number of outliers above it is binomial.

    The areas under precision-recall curves have no interval. The few highest scores decide them:
    on skewed scores, intervals at 95 % held the true value in 89 to 93 % of simulations, with
    1,000 rows of a class as well, because nothing in the rows tells of the rare high scores that
    are not among them.

    If the metric is exactly 0 or 1, there is no error from which to estimate a spread. With n
    rows in the smaller class, the interval then reaches to the value at which n flawless
    independent trials have the probability ``(1 - level) / 2``.

    The user guide's page on confidence intervals has the coverage measured by simulation.

    References
    ----------
    DeLong, DeLong & Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver
    Operating Characteristic Curves", Biometrics 44, 1988.

    Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 10 and 13.

    Examples
    --------
    >>> import numpy as np
    >>> from skdice.metrics import auroc, confidence_interval
    >>> rng = np.random.default_rng(0)
    >>> y_true, y_score = np.repeat([1, -1], 500), rng.normal(np.repeat([1, 0], 500))
    >>> low, high = confidence_interval(y_true, y_score)
    >>> low < auroc(y_true, y_score) < high
    True
    """
    compute = metric_on_counts(metric, tpr=tpr, rule=rule)
    if metric in WITHOUT_INTERVAL:
        raise ValueError(
            f"metric is {metric!r}, which has no interval: a few of the highest scores decide the "
            "areas under precision-recall curves, so an interval would hold the true value less "
            "often than it says; report the value alone, or take 'auroc'"
        )
    if not isinstance(level, Real) or not 0 < float(level) < 1:
        raise ValueError(f"level is {level!r}, expected a float in (0, 1)")
    if not isinstance(n_resamples, Integral) or n_resamples < 1:
        raise ValueError(f"n_resamples is {n_resamples!r}, expected an int above 0")
    labels, scores = validated(y_true, y_score)
    id_scores, ood_scores = scores[labels == 1], scores[labels == -1]
    n_smaller = min(len(id_scores), len(ood_scores))
    if n_smaller < 2:
        raise ValueError(
            f"y_true has {n_smaller} rows of a class, expected at least 2 for an interval"
        )
    if metric != "detection_error":
        return interval_of_mean(
            id_scores,
            [ood_scores],
            metric=metric,
            level=level,
            tpr=tpr,
            rule=rule,
            n_resamples=int(n_resamples),
            random_state=random_state,
        )
    inliers, outliers = count_scores(y_true, y_score)
    estimate = float(compute(inliers, outliers))
    tail = (1 - float(level)) / 2
    values = _resample(compute, inliers, outliers, int(n_resamples), random_state)
    bias = float(values.mean()) - estimate
    centre = min(estimate - BIAS_FACTOR * bias, 0.5)
    # The bias is itself uncertain, by about a third of what is subtracted.
    error = np.hypot(_error_of_detection_error(inliers, outliers), (estimate - centre) / 3)
    quantile = student_t.ppf(1 - tail, n_smaller - 1)
    low, high = _on_logit_scale(centre, float(quantile * error))
    return _widened_if_flawless(estimate, low, min(high, 0.5), tail ** (1 / n_smaller))


def interval_of_mean(
    id_scores: FloatArray,
    ood_scores: Sequence[FloatArray],
    *,
    metric: str,
    level: float = 0.95,
    tpr: float = 0.95,
    rule: str = "paper",
    n_resamples: int = 1000,
    random_state: Any = 0,
) -> tuple[float, float]:
    """Confidence interval of the mean of "auroc" or "fpr_at_tpr" over several sets of outliers.

    The sets share their in-distribution rows, so their metrics are not independent: each
    resample, or each influence, of an in-distribution row counts in all sets at once. There are
    at least 2 rows in each set.
    """
    compute = metric_on_counts(metric, tpr=tpr, rule=rule)
    counts = [count_scores(*labelled(id_scores, scores)) for scores in ood_scores]
    estimate = float(np.mean([compute(*pair) for pair in counts]))
    n_smaller = min(len(id_scores), *map(len, ood_scores))
    tail = (1 - float(level)) / 2
    if metric == "fpr_at_tpr":
        random = check_random_state(random_state)
        rows = _threshold_rows(len(id_scores), tpr, rule, n_resamples, random)
        rates = [_rates_above(*pair, rows, rule, random) for pair in counts]
        low, high = np.quantile(np.mean(rates, axis=0), [tail, 1 - tail])
    else:
        ordered = np.sort(id_scores)
        below = [_share_below(ordered, scores) for scores in ood_scores]
        # The influence of a row is by how much the metric moves if the row gets a little more
        # weight. The variance of the metric is the sum over the classes of the variance of the
        # influences divided by the number of rows.
        variance = np.mean(below, axis=0).var(ddof=1) / len(ordered)
        for scores in ood_scores:
            above = _share_below(scores, ordered)
            variance += above.var(ddof=1) / len(scores) / len(ood_scores) ** 2
        quantile = student_t.ppf(1 - tail, n_smaller - 1)
        low, high = _on_logit_scale(estimate, float(quantile * np.sqrt(variance)))
    return _widened_if_flawless(estimate, low, high, tail ** (1 / n_smaller))


def _share_below(scores: FloatArray, others: FloatArray) -> FloatArray:
    """Return the share of the other scores that is below each score; a tie counts half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    share: FloatArray = below / (2 * len(ordered))
    return share


def _on_logit_scale(centre: float, half_width: float) -> tuple[float, float]:
    """Return the ends of an interval that is symmetric on the logit scale."""
    if not 0 < centre < 1:
        return centre, centre
    # A small step on the logit scale is the step itself divided by x (1 - x).
    reach = half_width / (centre * (1 - centre))
    low, high = expit(logit(centre) + np.array([-reach, reach]))
    return float(low), float(high)


def _widened_if_flawless(
    estimate: float, low: float, high: float, flawless: float
) -> tuple[float, float]:
    """Return an interval that reaches as far as flawless trials allow if there was no error."""
    if estimate == 1:
        low, high = min(low, flawless), 1.0
    elif estimate == 0:
        low, high = 0.0, max(high, 1 - flawless)
    return float(low), float(high)


def _threshold_rows(
    n: int, tpr: float, rule: str, n_resamples: int, random: Any
) -> NDArray[np.intp]:
    """Draw the place, among the n sorted in-distribution rows, of the threshold of resamples.

    The threshold of a rate is an order statistic. That of n draws of one of n rows is the row
    at the same order statistic of n uniform numbers, which has a Beta distribution.
    """
    if rule == "paper":
        rank = min(int(np.rint(round(1 - tpr, 12) * n)), n - 1) + 1
    else:
        reached = np.arange(1, n + 1) / n >= tpr
        rank = n - int(np.argmax(reached))
    rows: NDArray[np.intp] = (n * random.beta(rank, n + 1 - rank, n_resamples)).astype(np.intp)
    return np.minimum(rows, n - 1)


def _rates_above(
    inliers: Counts, outliers: Counts, rows: NDArray[np.intp], rule: str, random: Any
) -> FloatArray:
    """Draw the rate of resampled outliers above the score of each in-distribution row."""
    place = np.searchsorted(np.cumsum(inliers), rows, side="right")
    n_outliers = int(outliers.sum())
    above = np.append(count_at_or_above(outliers), 0)
    share = above[place + 1 if rule == "paper" else place] / n_outliers
    rates: FloatArray = random.binomial(n_outliers, share) / n_outliers
    return rates


def _resample(
    compute: Callable[[Counts, Counts], FloatArray],
    inliers: Counts,
    outliers: Counts,
    n_resamples: int,
    random_state: Any,
) -> FloatArray:
    """Return a metric of resamples, in which each class is drawn with replacement."""
    random = check_random_state(random_state)
    # The place of the score of each row among the distinct scores.
    rows = [np.repeat(np.arange(len(each)), each.astype(np.intp)) for each in (inliers, outliers)]
    n_scores = len(inliers)
    values: list[FloatArray] = []
    chunk = max(1, CHUNK_CELLS // n_scores)
    for start in range(0, n_resamples, chunk):
        n = min(chunk, n_resamples - start)
        counts = []
        for places in rows:
            drawn = places[random.randint(len(places), size=(n, len(places)))]
            drawn += n_scores * np.arange(n)[:, None]
            flat = np.bincount(drawn.ravel(), minlength=n * n_scores)
            counts.append(flat.reshape(n, n_scores))
        values.append(compute(*counts))
    return np.concatenate(values)


def _error_of_detection_error(inliers: Counts, outliers: Counts) -> float:
    """Return the error of the mean of the two error rates at the best threshold."""
    kept, passed = rate_at_or_above(inliers), rate_at_or_above(outliers)
    best = np.argmin(passed - kept)
    variance = 0.0
    for rate, n in ((kept[best], inliers.sum()), (passed[best], outliers.sum())):
        # One row is added on either side: a rate of 0 or 1 is not known without error either.
        shrunk = (rate * n + 1) / (n + 2)
        variance += shrunk * (1 - shrunk) / n
    return float(np.sqrt(variance) / 2)
