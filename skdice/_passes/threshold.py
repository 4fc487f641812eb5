"""The threshold on the scores, from in-distribution scores and contamination.

A fitted detector keeps this threshold as `offset_`. `contribution_threshold_` of DICE and
`threshold_` of ReAct are thresholds on other numbers, and do not come from here.
"""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil, floor, log1p
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from skdice._compat.arrays import is_dask, to_numpy
from skdice._passes.quantiles import order_statistics
from skdice._rows.door import as_source

FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Calibration:
    """The record of a call of `calibrate`: how the threshold was set, and what it promises.

    Attributes
    ----------
    method : {"quantile", "conformal"}
        Rule of the threshold.
    contamination : float
        Share of in-distribution rows that may fall below the threshold.
    confidence : float or None
        Probability with which the share holds for this calibration. None: a conformal
        threshold promises the share on average over calibrations, a quantile promises nothing.
    n_samples : int
        Number of calibration rows.
    rank : int
        The threshold is the score of this rank among the calibration scores, from 1.
    date : str
        Time of the calibration, UTC, in ISO 8601.
    digest : str
        SHA-256 of the calibration scores in the order of their rows, 64 hexadecimal digits.
    by : {None, "prediction"}
        What has a threshold of its own: each predicted class, or nothing. `rank` is that of the
        threshold of all rows.

    Raises
    ------
    ValueError
        A value has another type, is out of its range, or contradicts the others.

    Examples
    --------
    >>> print(Calibration("conformal", 0.05, None, 100, 5, "2026-11-25T00:00:00+00:00", 64 * "0"))
    conformal threshold for a contamination of 0.05 on average: rank 5 of 100 calibration scores, \
set at 2026-11-25T00:00:00+00:00, digest 000000000000
    """

    method: str
    contamination: float
    confidence: float | None
    n_samples: int
    rank: int
    date: str
    digest: str
    by: str | None = None

    def __post_init__(self) -> None:
        # A record that comes from a file may hold anything.
        if self.method not in ("quantile", "conformal"):
            raise _unexpected("method", self.method, "'quantile' or 'conformal'")
        if not isinstance(self.contamination, float) or not 0 < self.contamination <= 0.5:
            raise _unexpected("contamination", self.contamination, "a float in (0, 0.5]")
        if self.confidence is not None and not (
            isinstance(self.confidence, float) and 0 < self.confidence < 1
        ):
            raise _unexpected("confidence", self.confidence, "None or a float in (0, 1)")
        if type(self.n_samples) is not int or not 1 <= self.n_samples < 1 << 63:
            raise _unexpected("n_samples", self.n_samples, "an integer from 1 to 2**63 - 1")
        if type(self.rank) is not int or not 1 <= self.rank <= self.n_samples:
            raise _unexpected("rank", self.rank, f"an integer from 1 to {self.n_samples}")
        if self.method == "conformal":
            rank = conformal_rank(self.n_samples, self.contamination, self.confidence)
        elif self.confidence is None:
            rank = rows_below(self.n_samples, self.contamination) + 1
        else:
            raise _unexpected("confidence", self.confidence, "None for a quantile")
        if self.rank != rank:
            raise _unexpected("rank", self.rank, f"{rank} of {self.n_samples} scores")
        if not _is_utc_time(self.date):
            raise _unexpected("date", self.date, "a time in ISO 8601 that ends in +00:00")
        if not isinstance(self.digest, str) or not re.fullmatch("[0-9a-f]{64}", self.digest):
            raise _unexpected("digest", self.digest, "64 hexadecimal digits")
        if self.by not in (None, "prediction"):
            raise _unexpected("by", self.by, "None or 'prediction'")
        if self.by is not None and self.method != "conformal":
            raise _unexpected("by", self.by, "None for a quantile")

    def __str__(self) -> str:
        promise = "on average" if self.confidence is None else f"with confidence {self.confidence}"
        kind = f"{self.method} threshold" + ("s by predicted class" if self.by else "")
        return (
            f"{kind} for a contamination of {self.contamination:g} {promise}: "
            f"rank {self.rank:,} of {self.n_samples:,} calibration scores, set at {self.date}, "
            f"digest {self.digest[:12]}"
        )


def _unexpected(name: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{name} is {value!r}, expected {expected}")


def _is_utc_time(date: Any) -> bool:
    """Tell whether a value is a time in UTC, as text in ISO 8601."""
    try:
        return datetime.fromisoformat(date).utcoffset() == timedelta(0)
    except (TypeError, ValueError):
        return False


def score_threshold(scores: Any, contamination: float) -> float:
    """Return the smallest score with more than `contamination` of the scores at or below it.

    Without ties exactly ``floor(contamination * n)`` scores lie below it.

    Parameters
    ----------
    scores : array of shape (n_samples,)
        Scores of in-distribution rows, at least one. The scores of a Dask array are kept in the
        memory of its workers while two passes (three in float64) count them there.
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
    if not isinstance(scores, np.ndarray) and is_dask(scores):
        column = as_source(scores.persist()[:, None])
        values, _ = order_statistics(column, lambda n: [rows_below(int(n), contamination)])
        (value,) = values.values()
        return float(value)
    if not isinstance(scores, np.ndarray):
        scores = to_numpy(scores)
    n_below = rows_below(len(scores), contamination)
    return float(np.partition(scores, n_below)[n_below])


def weighted_threshold(scores: FloatArray, weights: FloatArray, contamination: float) -> float:
    """Return the smallest score with more than `contamination` of the weight at or below it.

    With integer weights this is the `score_threshold` of the rows repeated as often as their
    weights say.

    Parameters
    ----------
    scores : ndarray of shape (n_samples,)
        Scores of in-distribution rows.
    weights : ndarray of shape (n_samples,)
        Weights of the rows, some of them above zero.
    contamination : float in (0, 0.5]
        Share of the weight below the threshold.

    Examples
    --------
    >>> import numpy as np
    >>> weighted_threshold(np.array([1.0, 2.0, 3.0]), np.array([1.0, 0.0, 3.0]), 0.25)
    3.0
    """
    order = np.argsort(scores, kind="stable")
    order = order[weights[order] > 0]
    at_or_below = np.cumsum(weights[order])
    # The margin makes a share that is reached exactly count as reached although the sum is rounded.
    limit = contamination * at_or_below[-1] * (1 + 1e-12)
    place = int(np.searchsorted(at_or_below, limit, side="right"))
    return float(scores[order[min(place, len(order) - 1)]])


def rows_below(n: int, contamination: float) -> int:
    """Return how many of n rows fall below the threshold."""
    n_below = floor(contamination * n)
    # Rounding of the product must not cost a row: 0.29 * 100 is 28.999...
    return n_below + 1 if (n_below + 1) / n <= contamination else n_below


def conformal_rank(n: int, contamination: float, confidence: float | None = None) -> int:
    """Return the rank k of the calibration score that is the conformal threshold.

    If n + 1 scores are exchangeable, the last score is below the k-th smallest of the first n with
    probability k / (n + 1) at most. Without `confidence` the rank is the largest k with
    ``k / (n + 1) <= contamination``.

    If the scores are independent, the probability of a score below the k-th smallest is itself
    random: it follows the Beta(k, n + 1 - k) law, or a smaller one if there are ties. With
    `confidence` the rank is the largest k for which it is at most `contamination` with that
    probability.

    Parameters
    ----------
    n : int
        Number of in-distribution scores.
    contamination : float in (0, 0.5]
        The probability.
    confidence : float in (0, 1), default=None
        The confidence in it; None bounds its mean.

    References
    ----------
    Vovk, "Conditional validity of inductive conformal predictors", ACML 2012, arXiv:1209.2673.

    Examples
    --------
    >>> conformal_rank(100, 0.05), conformal_rank(100, 0.05, confidence=0.95)
    (5, 2)
    """
    if confidence is not None:
        # The law moves up with k, so that the ranks that keep the promise come first.
        k = bisect_left(
            range(1, n + 1),
            True,
            key=lambda k: bool(betainc(k, n + 1 - k, contamination) < confidence),
        )
        if k == 0:
            raise ValueError(
                f"{n} rows are too few to guarantee a contamination of {contamination:g} with "
                f"confidence {confidence:g}: give at least "
                f"{fewest_rows(contamination, confidence)}"
            )
        return k
    k = floor(contamination * (n + 1))
    # Rounding of the product must not cost a row.
    if (k + 1) / (n + 1) <= contamination:
        k += 1
    if k == 0:
        raise ValueError(
            f"{n} rows are too few to guarantee a contamination of {contamination:g}: give at "
            f"least {fewest_rows(contamination)}, or method='quantile'"
        )
    return k


def fewest_rows(contamination: float, confidence: float | None = None) -> int:
    """Return the smallest number of calibration rows for which `conformal_rank` has a rank.

    Parameters
    ----------
    contamination : float in (0, 0.5]
        The probability that is bounded.
    confidence : float in (0, 1), default=None
        The confidence in the bound; None bounds the mean of the probability.

    Examples
    --------
    >>> fewest_rows(0.05), fewest_rows(0.05, confidence=0.95)
    (19, 59)
    """
    if confidence is not None:
        # One row below: the probability that none of n rows lies there is (1 - contamination)^n.
        n = max(1, ceil(log1p(-confidence) / log1p(-contamination)))
        while betainc(1, n, contamination) < confidence:  # the quotient of logarithms is rounded
            n += 1
        while n > 1 and betainc(1, n - 1, contamination) >= confidence:
            n -= 1
        return n
    n = ceil(1 / contamination) - 1
    return n if 1 / (n + 1) <= contamination or floor(contamination * (n + 1)) else n + 1


def conformal_pvalues(calibration: FloatArray, scores: FloatArray) -> NDArray[np.float64]:
    """Return the share of calibration scores, and the score itself, at or below each score.

    Parameters
    ----------
    calibration : ndarray of shape (n_calibration,)
        Calibration scores in ascending order.
    scores : ndarray of shape (n_samples,)
        Scores of other rows.

    Examples
    --------
    >>> import numpy as np
    >>> conformal_pvalues(np.arange(4.0), np.array([-1.0, 1.0, 9.0]))
    array([0.2, 0.6, 1. ])
    """
    at_or_below = np.searchsorted(calibration, scores, side="right")
    values: NDArray[np.float64] = (at_or_below + 1) / (len(calibration) + 1)
    return values


def digest_of_blocks(blocks: Iterable[FloatArray]) -> str:
    """Return the SHA-256 of numbers that come in blocks, which does not depend on the blocks."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(np.ascontiguousarray(block, block.dtype.newbyteorder("<")).data)
    return digest.hexdigest()
