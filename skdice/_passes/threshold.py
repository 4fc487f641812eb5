"""The threshold on the scores, from in-distribution scores and contamination."""

from __future__ import annotations

from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._passes.quantiles import order_statistics
from skdice._rows.dask import DaskRows


def score_threshold(scores: NDArray[np.floating[Any]], contamination: float) -> float:
    """Return the smallest score with more than `contamination` of the scores at or below it.

    Without ties exactly ``floor(contamination * n)`` scores lie below it.

    Parameters
    ----------
    scores : ndarray of shape (n_samples,)
        Scores of in-distribution rows, at least one.
    contamination : float in (0, 0.5]
        Share of the rows below the threshold.

    Returns
    -------
    float

    Examples
    --------
    >>> import numpy as np
    >>> score_threshold(np.arange(100.0), 0.05)
    5.0
    """
    n_below = rows_below(len(scores), contamination)
    return float(np.partition(scores, n_below)[n_below])


def distributed_threshold(scores: Any, contamination: float) -> float:
    """Return the `score_threshold` of a lazy Dask array of scores, which stay on its workers.

    They are kept there meanwhile, for two passes that count them, three in float64.
    """
    rows = DaskRows(scores.persist()[:, None])
    values, _ = order_statistics(rows, lambda n: [rows_below(n, contamination)])
    (value,) = values.values()
    return float(value)


def rows_below(n: int, contamination: float) -> int:
    """Return how many of n rows fall below the threshold."""
    n_below = floor(contamination * n)
    # A product a hair off a whole number must not cost a row: 0.29 * 100 is 28.999...
    return n_below + 1 if (n_below + 1) / n <= contamination else n_below


def conformal_threshold(scores: NDArray[np.floating[Any]], contamination: float) -> float:
    """Return the threshold below which a further score falls with at most that probability.

    Of n exchangeable scores and one more, the last is below the k-th smallest of the n with
    probability k / (n + 1) at most: k is the largest with ``k / (n + 1) <= contamination``.

    Parameters
    ----------
    scores : ndarray of shape (n_samples,)
        Scores of in-distribution rows.
    contamination : float in (0, 0.5]
        The probability.

    Examples
    --------
    >>> import numpy as np
    >>> conformal_threshold(np.arange(100.0), 0.05)
    4.0
    """
    n = len(scores)
    k = floor(contamination * (n + 1))
    # As in `score_threshold`.
    if (k + 1) / (n + 1) <= contamination:
        k += 1
    if k == 0:
        raise ValueError(
            f"{n} rows are too few to guarantee a contamination of {contamination:g}: give at "
            f"least {ceil(1 / contamination) - 1}, or method='quantile'"
        )
    return float(np.partition(scores, k - 1)[k - 1])


def conformal_pvalues(
    calibration: NDArray[np.floating[Any]], scores: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """Return the share of calibration scores, and the score itself, at or below each score.

    Parameters
    ----------
    calibration : ndarray of shape (n_calibration,)
        In ascending order.
    scores : ndarray of shape (n_samples,)
        Of other rows.

    Examples
    --------
    >>> import numpy as np
    >>> conformal_pvalues(np.arange(4.0), np.array([-1.0, 1.0, 9.0]))
    array([0.2, 0.6, 1. ])
    """
    at_or_below = np.searchsorted(calibration, scores, side="right")
    values: NDArray[np.float64] = (at_or_below + 1) / (len(calibration) + 1)
    return values
