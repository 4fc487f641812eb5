"""From blocks of features to logits and scores: what an estimator's fitted arrays compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._scores import SCORES
from skdice.engines import dense_logits

FloatArray = NDArray[np.floating[Any]]
BlockFunction = Callable[[FloatArray], FloatArray]


def masked_layer(
    coef: FloatArray, intercept: FloatArray, shaping: Any, dtype: np.dtype[Any]
) -> BlockFunction:
    """Return the function from a block of features to the logits of the masked layer.

    Parameters
    ----------
    coef : ndarray of shape (n_classes, n_features)
        Masked weight.
    intercept : ndarray of shape (n_classes,)
        Bias.
    shaping : fitted transformer or None
        Applied to the features first.
    dtype : dtype
        In which the blocks come and the logits are computed.
    """
    coef, intercept = coef.astype(dtype, copy=False), intercept.astype(dtype, copy=False)
    if shaping is None:
        return lambda block: dense_logits(block, coef, intercept)

    def layer(block: FloatArray) -> FloatArray:
        shaped = np.asarray(shaping.transform(block), dtype=dtype)
        if shaped.shape != block.shape:
            raise ValueError(
                f"{shaping!r} turned features of shape {block.shape} into {shaped.shape}; a "
                "shaping keeps the shape"
            )
        return dense_logits(shaped, coef, intercept)

    return layer


def block_scorer(
    layer: BlockFunction, score_func: str | Callable[[FloatArray], FloatArray]
) -> BlockFunction:
    """Return the function from a block of features to its scores.

    Parameters
    ----------
    layer : callable
        From a block of features to logits.
    score_func : str or callable
        Name of a score, or a function of logits (n, n_classes) to scores (n,).
    """
    if isinstance(score_func, str):
        score = SCORES[score_func]

        def named(block: FloatArray) -> FloatArray:
            # An overflow is reported with its row, by `check_scores`.
            with np.errstate(over="ignore", invalid="ignore"):
                return score(layer(block), overwrite=True)

        return named

    def custom(block: FloatArray) -> FloatArray:
        logits = layer(block)
        scores = np.asarray(score_func(logits))
        if scores.shape != (len(block),):
            raise ValueError(
                f"score_func returned shape {scores.shape} for logits of shape {logits.shape}, "
                f"expected ({len(block)},)"
            )
        return scores

    return custom


def check_scores(scores: FloatArray, first_row: int) -> FloatArray:
    """Return the scores if they are all finite; else name the first row whose score is not."""
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise ValueError(
            f"the score of row {first_row + bad[0]} is {scores[bad[0]]}: its features are too "
            f"large for {scores.dtype}, or score_func is not finite there"
        )
    return scores
