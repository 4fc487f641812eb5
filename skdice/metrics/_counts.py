"""Every metric, computed from how many rows of each class have each distinct score.

``inliers`` and ``outliers`` are arrays of shape (..., n_scores): the numbers of
in-distribution and of out-of-distribution rows at each distinct score, in ascending order of
the scores. A metric of the data has one such row of counts. The bootstrap has one row per
resample, because a resample only changes how often each row counts.
"""

from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._rows.sources import FloatArray

# Numbers of rows are integers or, with sample weights, floats.
Counts = NDArray[Any]

# The names in sentences and legends of the two rules of the false-positive rate.
RULES = {"paper": "paper's rule", "roc_curve": "roc_curve's rule"}


def metric_on_counts(
    metric: str, *, tpr: float = 0.95, rule: str = "paper"
) -> Callable[[Counts, Counts], FloatArray]:
    """Return the function of the two counts that computes a metric.

    The parameters are those of the public metrics, and are checked here.
    """
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}, expected one of {', '.join(METRICS)}")
    if not isinstance(tpr, Real) or not 0 < float(tpr) <= 1:
        hint = f": did you mean {tpr / 100:g}?" if isinstance(tpr, Real) and 1 < tpr <= 100 else ""
        raise ValueError(f"tpr is {tpr!r}, expected a fraction in (0, 1]{hint}")
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}, expected 'paper' or 'roc_curve'")
    if metric == "fpr_at_tpr":
        return partial(fpr_paper if rule == "paper" else fpr_roc_curve, tpr=tpr)
    return METRICS[metric]


def fpr_name(tpr: float, rule: str) -> str:
    """Return the name of the false-positive rate in a legend, its rule included."""
    return f"FPR{100 * tpr:g} ({RULES[rule]})"


def auroc(inliers: Counts, outliers: Counts) -> FloatArray:
    """Return the share of pairs in which the in-distribution row has the higher score."""
    outliers_below = np.cumsum(outliers, axis=-1) - outliers / 2  # a tie counts half
    n_pairs = inliers.sum(axis=-1) * outliers.sum(axis=-1)
    area: FloatArray = (inliers * outliers_below).sum(axis=-1) / n_pairs
    return area


def aupr_in(inliers: Counts, outliers: Counts) -> FloatArray:
    """Return the average precision with in-distribution as the positive class."""
    inliers_taken, outliers_taken = count_at_or_above(inliers), count_at_or_above(outliers)
    taken = inliers_taken + outliers_taken
    # A resample may leave out all rows from some score upwards; its counts are 0 there.
    precision = np.divide(inliers_taken, taken, out=np.zeros(taken.shape), where=taken > 0)
    average: FloatArray = (inliers * precision).sum(axis=-1) / inliers.sum(axis=-1)
    return average


def aupr_out(inliers: Counts, outliers: Counts) -> FloatArray:
    """Return the average precision with out-of-distribution as the positive class."""
    # With negated scores the order turns round, and the classes change their roles.
    return aupr_in(outliers[..., ::-1], inliers[..., ::-1])


def fpr_paper(inliers: Counts, outliers: Counts, tpr: float) -> FloatArray:
    """Return the false-positive rate by the rule of the papers' code."""
    n_inliers = inliers.sum(axis=-1, keepdims=True)
    # Round 1 - tpr first: 1 - 0.95 is a little more than 0.05 and would make 0.5 round up.
    # With a tpr near 0 the place would be one beyond the last row.
    place = np.minimum(np.rint(round(1 - tpr, 12) * n_inliers), n_inliers - 1)
    threshold = np.argmax(np.cumsum(inliers, axis=-1) > place, axis=-1)
    n_outliers = outliers.sum(axis=-1)
    not_above = _take(np.cumsum(outliers, axis=-1), threshold)
    rate: FloatArray = (n_outliers - not_above) / n_outliers
    return rate


def fpr_roc_curve(inliers: Counts, outliers: Counts, tpr: float) -> FloatArray:
    """Return the false-positive rate by the rule of `sklearn.metrics.roc_curve`."""
    reached = rate_at_or_above(inliers) >= tpr
    # roc_curve goes downwards: the first score that it reaches is the last in ascending order.
    threshold = reached.shape[-1] - 1 - np.argmax(reached[..., ::-1], axis=-1)
    return _take(rate_at_or_above(outliers), threshold)


def detection_error(inliers: Counts, outliers: Counts) -> FloatArray:
    """Return the lowest mean of the two error rates over all thresholds."""
    # The mean of both rates is (1 + passed - kept) / 2. A threshold above all scores keeps and
    # passes no row.
    excess = (rate_at_or_above(outliers) - rate_at_or_above(inliers)).min(axis=-1)
    lowest: FloatArray = (1 + np.minimum(excess, 0)) / 2
    return lowest


METRICS: dict[str, Callable[..., FloatArray]] = {
    "auroc": auroc,
    "aupr_in": aupr_in,
    "aupr_out": aupr_out,
    "fpr_at_tpr": fpr_paper,
    "detection_error": detection_error,
}


def count_at_or_above(counts: Counts) -> Counts:
    """Return the number of rows at each score or above it."""
    above: Counts = np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1]
    return above


def rate_at_or_above(counts: Counts) -> FloatArray:
    """Return the share of rows at each score or above it."""
    above = count_at_or_above(counts)
    # Divide by a total from the same sum, so that the last share is exactly 1 for weights too.
    rate: FloatArray = above / above[..., :1]
    return rate


def _take(values: NDArray[Any], place: NDArray[np.intp]) -> NDArray[Any]:
    taken: NDArray[Any] = np.take_along_axis(values, place[..., None], axis=-1)[..., 0]
    return taken
