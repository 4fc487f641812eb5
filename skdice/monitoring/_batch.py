"""The exact test of whether one batch of rows is odder than the calibration promises."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.signal import fftconvolve
from scipy.special import betaln, logsumexp
from scipy.stats import betabinom

from skdice.monitoring._flags import (
    calibration_of,
    check_count,
    flagged_rows,
    flagged_rows_and_classes,
    ranks_of_classes,
)


@dataclass(frozen=True)
class BatchTest:
    """Result of `batch_test`.

    Parameters
    ----------
    n_rows : int
        Number of rows of the batch.
    n_flagged : int
        Number of these rows that the detector flags.
    expected : float
        Number of flagged rows that good rows give on average.
    pvalue : float
        Probability that good rows give as many flagged rows, or more.
    rank : int
        The threshold is the calibration score of this rank, counted from 1 at the smallest.
    n_calibration : int
        Number of calibration rows.
    n_untested : int
        Number of rows that are left out, and not counted in `n_rows`, because their predicted
        class has no threshold of its own. 0 unless the calibration is by prediction.

    See Also
    --------
    batch_test : Makes it from a detector and rows.

    Examples
    --------
    >>> from skdice.monitoring import BatchTest
    >>> print(BatchTest(200, 31, 9.98, 1.4e-07, 25, 500))
    31 of 200 rows are flagged, where good rows give 10.0 on average; good rows give as many or
    more with probability 1.4e-07, so the batch is odder than promised.
    """

    n_rows: int
    n_flagged: int
    expected: float
    pvalue: float
    rank: int
    n_calibration: int
    n_untested: int = 0

    @property
    def reading(self) -> str:
        """The result as one sentence; a p-value below 0.01 is called odder than promised."""
        if self.pvalue < 0.01:
            verdict = "so the batch is odder than promised"
        else:
            verdict = "a weak sign of a change" if self.pvalue < 0.05 else "no sign of a change"
        return (
            f"{self.n_flagged} of {self.n_rows} rows are flagged, where good rows give "
            f"{self.expected:.1f} on average; good rows give as many or more with probability "
            f"{self.pvalue:.2g}, {verdict}."
        ) + (
            f" {self.n_untested} more rows are not tested, because their predicted classes have no "
            "threshold of their own."
            if self.n_untested
            else ""
        )

    def __str__(self) -> str:
        return self.reading


def batch_test(detector: Any, X: Any) -> BatchTest:
    """Test whether a batch of rows has more flagged rows than good rows explain.

    Parameters
    ----------
    detector : outlier detector of skdice
        A calibrated detector, or a Pipeline that ends in one.
    X : array-like or source of rows, of shape (n_samples, n_features)
        Features of the batch, which neither the network nor the calibration has seen. A row is
        flagged where its decision function is negative or not finite.

    Returns
    -------
    BatchTest
        Numbers of rows and flagged rows, the expected number, the p-value, and a reading.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        The detector is not calibrated.

    See Also
    --------
    batch_pvalue : The same for a detector of any library, from four numbers.
    FlagMonitor : Watches a stream, and allows a look after every row.

    Notes
    -----
    **Guarantee.** If the rows of the calibration and of the batch are independent and alike
    (exchangeable is enough), the p-value is at most p with probability at most p, for every p,
    every number of calibration rows and every score. Ties among the scores make it smaller
    still. The probability is over the calibration and the batch together, so that tests of
    several batches against one calibration are not independent of one another: a calibration
    that was unlucky shows in all of them. Test the rows of several batches as one batch.

    After ``calibrate(..., by="prediction")`` the law is the one given the predicted classes of
    the calibration and of the batch: the number of flagged rows is a sum of independent
    beta-binomial numbers, one for each class, so the test does not take a change of the mix of
    classes for odd rows. It needs rows that are independent and alike within each class. Rows
    of `fallback_classes_` are left out and counted in `n_untested`, because the rate of one class
    under the threshold of all rows is not known.

    Examples
    --------
    >>> from skdice import DICEDetector
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> from skdice.monitoring import batch_test
    >>> data = load_fashion_mnist_ood()
    >>> detector = DICEDetector(data.head, sparsity=0.1).fit(data.id_train)
    >>> detector = detector.calibrate(data.id_test[:1500], method="conformal")
    >>> batch_test(detector, data.id_test[1500:2000]).pvalue > 0.05
    True
    >>> batch_test(detector, data.ood["textures"][:100]).pvalue < 1e-9
    True
    """
    calibration = calibration_of(detector)
    rank, n_calibration = calibration.rank, calibration.n_samples
    if getattr(calibration, "by", None) is not None:
        return batch_test_by_class(detector, *flagged_rows_and_classes(detector, X))
    flags = flagged_rows(detector, X)
    n_rows, n_flagged = len(flags), int(np.count_nonzero(flags))
    return BatchTest(
        n_rows=n_rows,
        n_flagged=n_flagged,
        expected=n_rows * rank / (n_calibration + 1),
        pvalue=batch_pvalue(n_flagged, n_rows, rank, n_calibration),
        rank=rank,
        n_calibration=n_calibration,
    )


def batch_test_by_class(
    detector: Any, flags: NDArray[np.bool_], classes: NDArray[np.intp]
) -> BatchTest:
    """Return the test of a batch under the threshold of each predicted class.

    Parameters
    ----------
    detector : detector
        Calibrated with ``by="prediction"``.
    flags : ndarray of shape (n_samples,), bool
        Which rows it flags.
    classes : ndarray of shape (n_samples,), int
        The class that its head predicts for each row.
    """
    ranks = ranks_of_classes(detector)
    is_tested = np.isin(classes, list(ranks))
    counts = np.bincount(classes[is_tested])
    laws = [(int(counts[k]), *ranks[int(k)]) for k in np.flatnonzero(counts)]
    n_flagged = int(np.count_nonzero(flags & is_tested))
    calibration = calibration_of(detector)
    return BatchTest(
        n_rows=int(np.count_nonzero(is_tested)),
        n_flagged=n_flagged,
        expected=float(sum(m * rank / (n + 1) for m, rank, n in laws)),
        pvalue=_sum_pvalue(n_flagged, laws),
        rank=calibration.rank,
        n_calibration=calibration.n_samples,
        n_untested=int(np.count_nonzero(~is_tested)),
    )


def _sum_pvalue(n_flagged: int, laws: list[tuple[int, int, int]]) -> float:
    """Return the probability that a sum of beta-binomial numbers is `n_flagged` or more.

    Parameters
    ----------
    n_flagged : int
        The number.
    laws : list of (n_rows, rank, n_calibration)
        The laws of the numbers.
    """
    if n_flagged == 0:
        return 1.0
    n_rows = sum(n for n, _, _ in laws)
    log_laws = [
        betabinom.logpmf(np.arange(n + 1), n, rank, n_calibration + 1 - rank)
        for n, rank, n_calibration in laws
    ]

    def tilted(tilt: float) -> tuple[list[NDArray[np.float64]], float]:
        """Return each law times ``exp(tilt * number)``, over its sum, and the log of these sums."""
        weighted = [each + tilt * np.arange(len(each)) for each in log_laws]
        log_sums = [logsumexp(each) for each in weighted]
        return [np.exp(w - s) for w, s in zip(weighted, log_sums, strict=True)], sum(log_sums)

    def excess(tilt: float) -> float:
        means = [each @ np.arange(len(each)) for each in tilted(tilt)[0]]
        return float(sum(means) - min(n_flagged, n_rows - 0.5))

    # The rounding of Fourier transforms would swamp a small probability. So the laws are tilted
    # until `n_flagged` is their mean, where the probability is large, and the tilt is taken back.
    tilt = 0.0
    if excess(0) < 0:
        high = 1.0
        while excess(high) < 0:
            high *= 2
        tilt = brentq(excess, 0, high, xtol=1e-6)
    parts, log_sum = tilted(tilt)
    while len(parts) > 1:  # in pairs, so that short laws are not convolved with long ones
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [*(fftconvolve(*pair) for pair in pairs), *parts[len(parts) // 2 * 2 :]]
    law = np.maximum(parts[0][n_flagged:], 0)
    tail = law @ np.exp(-tilt * np.arange(len(law)))
    return float(min(1.0, tail * np.exp(log_sum - tilt * n_flagged)))


def batch_pvalue(n_flagged: int, n_rows: int, rank: int, n_calibration: int) -> float:
    """Return the probability that good rows give so many flagged rows, or more.

    Parameters
    ----------
    n_flagged : int
        Number of rows of the batch whose score lies below the threshold.
    n_rows : int
        Number of rows of the batch.
    rank : int
        The threshold is the calibration score of this rank, counted from 1 at the smallest.
    n_calibration : int
        Number of calibration rows.

    Returns
    -------
    float
        The p-value, in (0, 1] or 0 where it is below the smallest positive number.

    Raises
    ------
    ValueError
        A number is not a whole number, or is out of its range.

    Notes
    -----
    Given the calibration, the share of future good rows below the threshold follows a
    Beta(rank, n_calibration + 1 - rank) law, and the number of flagged rows the beta-binomial
    law that belongs to it. The p-value is its upper tail.

    References
    ----------
    Bates, Candes, Lei, Romano & Sesia, "Testing for outliers with conformal p-values",
    Annals of Statistics 2023, arXiv:2104.08279.

    Examples
    --------
    Twenty flagged rows of 200, of a detector of any library whose threshold is the 25th
    smallest of 500 scores of good rows:

    >>> from skdice.monitoring import batch_pvalue
    >>> round(batch_pvalue(20, 200, rank=25, n_calibration=500), 4)
    0.0103
    """
    n_rows = check_count(n_rows, "n_rows", least=0)
    n_flagged = check_count(n_flagged, "n_flagged", least=0, most=n_rows)
    n_calibration = check_count(n_calibration, "n_calibration", least=1)
    rank = check_count(rank, "rank", least=1, most=n_calibration)
    # At least n_flagged rows lie below the threshold exactly if, of the rank + n_flagged - 1
    # smallest scores of the calibration and the batch together, fewer than `rank` belong to the
    # calibration. That number is hypergeometric. The sum has at most `rank` terms, for a batch of
    # any size, and keeps its digits where the p-value is tiny; scipy.stats.betabinom.sf computes
    # 1 - cdf and does not.
    n_smallest = rank + n_flagged - 1
    drawn = np.arange(max(0, n_smallest - n_rows), rank)
    log_terms = (
        _log_binomial(n_calibration, drawn)
        + _log_binomial(n_rows, n_smallest - drawn)
        - _log_binomial(n_calibration + n_rows, n_smallest)
    )
    return min(1.0, float(np.exp(logsumexp(log_terms))))


def flag_limit(level: float, n_rows: int, rank: int, n_calibration: int) -> int:
    """Return the smallest number of flagged rows whose p-value is at most `level`.

    Where no number has such a p-value, ``n_rows + 1`` is returned.
    """
    low, high = 0, n_rows + 1
    while low < high:  # the p-value falls with the number of flagged rows
        middle = (low + high) // 2
        if batch_pvalue(middle, n_rows, rank, n_calibration) <= level:
            high = middle
        else:
            low = middle + 1
    return low


def _log_binomial(n: Any, k: Any) -> Any:
    """Return the logarithm of binomial coefficients."""
    return -np.log1p(n) - betaln(n - k + 1.0, k + 1.0)
