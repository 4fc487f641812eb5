"""The threshold on the scores, from in-distribution scores and contamination."""

from __future__ import annotations

from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
    n = len(scores)
    n_below = floor(contamination * n)
    # A product a hair off a whole number must not cost a row: 0.29 * 100 is 28.999...
    if (n_below + 1) / n <= contamination:
        n_below += 1
    return float(np.partition(scores, n_below)[n_below])
