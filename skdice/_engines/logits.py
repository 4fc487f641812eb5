"""The scores of a block from its logits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._engines.layer import Score
from skdice._scores import SCORES

FloatArray = NDArray[np.floating[Any]]


def score_logits(score: Score, logits: Any) -> Any:
    """Return the scores of logits, or the logits themselves where `score` is None.

    The named scores may overwrite the logits. A function of the user gets them to itself, because
    it may keep them.

    Parameters
    ----------
    score : {"energy", "max_logit", "msp", "gen"}, callable or None
        Score of a row from its logits.
    logits : array of shape (n_samples, n_classes)
        Logits of a block.
    """
    if score is None:
        return logits
    if isinstance(score, str):
        with np.errstate(all="ignore"):  # `check_values` reports such a row
            return SCORES[score](logits, overwrite=True)
    # The check comes first, because the function may hide an overflow or write over the logits.
    is_finite = np.isfinite(logits).all(axis=1)
    scores = np.asarray(score(logits))
    if scores.shape != (len(is_finite),):
        raise ValueError(
            f"score_func returned shape {scores.shape} for logits of shape {logits.shape}, "
            f"expected ({len(is_finite)},)"
        )
    if scores.dtype.kind not in "fiub":
        raise ValueError(
            f"score_func returned {scores.dtype} values such as {scores.flat[0]!r}, expected "
            "real numbers"
        )
    return scores if is_finite.all() else np.where(is_finite, scores, np.nan)
