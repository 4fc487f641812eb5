"""Reference distributions: the scores of in-distribution rows, in a bounded sketch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
Combination = Literal["fisher", "min"]

# Scores that a sketch keeps at most.
MOST_SCORES = 10_000
# Below this quantile of the reference scores, p-values follow an exponential tail.
TAIL_QUANTILE = 0.02


@dataclass(frozen=True, eq=False)
class ReferenceDistribution:
    """The scores of reference rows, of which at most about `MOST_SCORES` are kept.

    Parameters
    ----------
    scores : ndarray of shape (n_kept,), float64
        Kept scores in ascending order, without repetition.
    counts : ndarray of shape (n_kept,), int64
        Number of reference scores at or below each kept one.
    tail_start : float
        The `TAIL_QUANTILE` of the reference scores, below which the tail takes over.
    tail_mean : float
        Mean distance of the scores below `tail_start` from it; 0 if no score lies there.
    """

    scores: Float64Array
    counts: NDArray[np.int64]
    tail_start: float
    tail_mean: float

    @classmethod
    def from_scores(cls, scores: Float64Array) -> ReferenceDistribution:
        """Return the distribution of the scores of reference rows, at least one."""
        ordered = np.sort(scores)
        start = float(np.quantile(ordered, TAIL_QUANTILE))
        below = ordered[ordered < start]
        places = np.linspace(0, len(ordered) - 1, min(len(ordered), MOST_SCORES)).round()
        # The last score of the tail is kept, so that the tail joins the rest without a step.
        kept = np.union1d(ordered[places.astype(np.intp)], ordered[ordered <= start][-1:])
        counts = np.searchsorted(ordered, kept, side="right").astype(np.int64)
        return cls(kept, counts, start, float(np.mean(start - below)) if len(below) else 0.0)

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}  # without the table

    @property
    def n_samples(self) -> int:
        """Number of reference rows."""
        return int(self.counts[-1])

    def log_pvalues(self, scores: Float64Array) -> Float64Array:
        """Return the logarithm of the p-value of each score: very negative = atypical.

        The p-value is ``(1 + #{reference scores at or below}) / (n + 1)``. Below the 2 % quantile
        t of the reference it goes on as ``log p(t) - (t - score) / tail_mean``: without this tail
        all far outliers would tie.
        """
        log_p = self.empirical_log_pvalues(scores)
        is_below = scores < self.tail_start
        if self.tail_mean and is_below.any():
            log_p[is_below] = (
                self._log_p_at_tail - (self.tail_start - scores[is_below]) / self.tail_mean
            )
        return log_p

    def empirical_log_pvalues(self, scores: Float64Array) -> Float64Array:
        """Return the logarithm of the p-values that follow from the counts alone."""
        # Scores in ascending order are found in half the time, sorting included.
        order = np.argsort(scores)
        log_p = np.empty(len(scores))
        places = np.searchsorted(self.scores, scores[order], side="right")
        log_p[order] = self._log_table[places]
        return log_p

    @cached_property
    def _log_p_at_tail(self) -> float:
        """Logarithm of the p-value at `tail_start`."""
        return float(self.empirical_log_pvalues(np.array([self.tail_start]))[0])

    @cached_property
    def _log_table(self) -> Float64Array:
        """Logarithm of the p-value of a score with no, one, two ... kept scores at or below it."""
        return np.log((1 + np.concatenate([[0], self.counts])) / (self.n_samples + 1))


def combine_log_pvalues(log_pvalues: Float64Array, combination: Combination) -> Float64Array:
    """Return one score for each row: higher = more in-distribution.

    Parameters
    ----------
    log_pvalues : ndarray of shape (n_samples, n_members)
        Logarithms of the p-values.
    combination : {"fisher", "min"}
        Their mean, which is Fisher's statistic up to a factor, or their minimum.

    Examples
    --------
    >>> import numpy as np
    >>> combine_log_pvalues(np.array([[-1.0, -3.0]]), "fisher")
    array([-2.])
    >>> combine_log_pvalues(np.array([[-1.0, -3.0]]), "min")
    array([-3.])
    """
    combined: Float64Array = (
        log_pvalues.mean(axis=1) if combination == "fisher" else log_pvalues.min(axis=1)
    )
    return combined
