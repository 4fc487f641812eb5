"""Bootstrap confidence intervals of all metrics at once, from counts of sorted scores."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

from skdice.metrics._rates import authors_place, validated

FloatArray = NDArray[np.floating[Any]]

# Resamples that are computed at a time: their counts stay in cache.
CHUNK_CELLS = 1 << 20


def bootstrap_interval(
    y_true: ArrayLike,
    y_score: ArrayLike,
    metric: str = "auroc",
    *,
    level: float = 0.95,
    n_resamples: int = 1000,
    tpr: float = 0.95,
    random_state: Any = 0,
) -> tuple[float, float]:
    """Confidence interval of a metric by the percentile bootstrap.

    Rows of each class are drawn with replacement, as many as there are; the interval is
    between the quantiles ``(1 - level) / 2`` and ``(1 + level) / 2`` of the metric over the
    resamples.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        +1 in-distribution, -1 out-of-distribution.
    y_score : array-like of shape (n_samples,)
        Scores, higher = more in-distribution.
    metric : {"auroc", "aupr_in", "aupr_out", "fpr_at_tpr", "fpr_at_tpr_authors", \
            "detection_error"}, default="auroc"
        The function of `skdice.metrics` of that name.
    level : float in (0, 1), default=0.95
        Coverage.
    n_resamples : int, default=1000
        Resamples.
    tpr : float in (0, 1], default=0.95
        For the rates.
    random_state : int, RandomState or None, default=0
        Seed.

    Returns
    -------
    low, high : float

    Raises
    ------
    ValueError
        A class has no rows, a score is not finite, or a parameter is out of its range.

    References
    ----------
    Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.

    Examples
    --------
    >>> import numpy as np
    >>> from skdice.metrics import auroc, bootstrap_interval
    >>> rng = np.random.default_rng(0)
    >>> y_true, y_score = np.repeat([1, -1], 500), rng.normal(np.repeat([1, 0], 500))
    >>> low, high = bootstrap_interval(y_true, y_score)
    >>> low < auroc(y_true, y_score) < high
    True
    """
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}, expected one of {', '.join(METRICS)}")
    if not isinstance(level, Real) or not 0 < float(level) < 1:
        raise ValueError(f"level is {level!r}, expected a float in (0, 1)")
    if not isinstance(n_resamples, Integral) or n_resamples < 1:
        raise ValueError(f"n_resamples is {n_resamples!r}, expected an int above 0")
    labels, scores = validated(y_true, y_score)
    distinct, group = np.unique(scores, return_inverse=True)
    random = check_random_state(random_state)
    groups = [group[labels == label] for label in (1, -1)]
    values: list[FloatArray] = []
    size = max(1, CHUNK_CELLS // len(distinct))
    for start in range(0, n_resamples, size):
        n = min(size, n_resamples - start)
        inliers, outliers = (_resampled(each, len(distinct), n, random) for each in groups)
        values.append(METRICS[metric](inliers, outliers, tpr))
    low, high = np.quantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled(
    group: NDArray[np.intp], n_groups: int, n_resamples: int, random: np.random.RandomState
) -> FloatArray:
    """Return how often each distinct score is drawn, (n_resamples, n_groups)."""
    drawn = group[random.randint(len(group), size=(n_resamples, len(group)))]
    drawn += n_groups * np.arange(n_resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=n_resamples * n_groups)
    return counts.reshape(n_resamples, n_groups).astype(np.float64)


# Of counts of the two classes at each distinct score in ascending order, (..., n_groups).


def _beyond(counts: FloatArray) -> FloatArray:
    """Return the share of rows at each score or above it."""
    total = counts.sum(axis=-1, keepdims=True)
    share: FloatArray = np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1] / total
    return share


def _auroc(inliers: FloatArray, outliers: FloatArray, tpr: float) -> FloatArray:
    n_in, n_out = (each.sum(axis=-1) for each in (inliers, outliers))
    below = np.cumsum(outliers, axis=-1) - outliers / 2
    area: FloatArray = (inliers * below).sum(axis=-1) / (n_in * n_out)
    return area


def _average_precision(positives: FloatArray, negatives: FloatArray) -> FloatArray:
    above = np.cumsum(positives[..., ::-1], axis=-1)
    taken = above + np.cumsum(negatives[..., ::-1], axis=-1)
    precision = np.divide(above, taken, out=np.zeros_like(above), where=taken > 0)
    total = positives.sum(axis=-1)
    average: FloatArray = (positives[..., ::-1] * precision).sum(axis=-1) / total
    return average


def _aupr_in(inliers: FloatArray, outliers: FloatArray, tpr: float) -> FloatArray:
    return _average_precision(inliers, outliers)


def _aupr_out(inliers: FloatArray, outliers: FloatArray, tpr: float) -> FloatArray:
    return _average_precision(outliers[..., ::-1], inliers[..., ::-1])


def _fpr_at_tpr(inliers: FloatArray, outliers: FloatArray, tpr: float) -> FloatArray:
    # The highest score at which enough of the inliers lie, or above it.
    reached = _beyond(inliers) >= tpr
    last = reached.shape[-1] - 1 - np.argmax(reached[..., ::-1], axis=-1)
    rate: FloatArray = np.take_along_axis(_beyond(outliers), last[..., None], axis=-1)[..., 0]
    return rate


def _fpr_at_tpr_authors(inliers: FloatArray, outliers: FloatArray, tpr: float) -> FloatArray:
    place = authors_place(int(inliers.sum(axis=-1).flat[0]), tpr)
    threshold = np.argmax(np.cumsum(inliers, axis=-1) > place, axis=-1)
    n_out = outliers.sum(axis=-1)
    up_to = np.take_along_axis(np.cumsum(outliers, axis=-1), threshold[..., None], axis=-1)
    rate: FloatArray = (n_out - up_to[..., 0]) / n_out
    return rate


def _detection_error(inliers: FloatArray, outliers: FloatArray, tpr: float) -> FloatArray:
    error = (1 - _beyond(inliers)) / 2 + _beyond(outliers) / 2
    # A threshold above all scores takes none for in-distribution.
    lowest: FloatArray = np.minimum(error.min(axis=-1), 0.5)
    return lowest


METRICS: dict[str, Callable[[FloatArray, FloatArray, float], FloatArray]] = {
    "auroc": _auroc,
    "aupr_in": _aupr_in,
    "aupr_out": _aupr_out,
    "fpr_at_tpr": _fpr_at_tpr,
    "fpr_at_tpr_authors": _fpr_at_tpr_authors,
    "detection_error": _detection_error,
}
