"""Scores that the compiled kernels compute without the memory for the logits of a block."""

from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from skdice._engines.kernels.layout import VECTOR_BYTES

FloatArray = NDArray[np.floating[Any]]
FusedScore = Literal["energy", "max_logit", "msp"]

FUSED_SCORES: tuple[str, ...] = get_args(FusedScore)

# The outputs of a kernel: the logits; the maxima of the logits; or these maxima, and the sums of
# the exponentials of the logits minus their maximum.
LOGITS, MAXIMA, TOTALS = 0, 1, 2


def output_of(score: FusedScore) -> int:
    """Return the output of a kernel from which `fused_scores` makes a score."""
    return MAXIMA if score == "max_logit" else TOTALS


def fused_scores(score: FusedScore, maxima: FloatArray, totals: FloatArray) -> FloatArray:
    """Return the scores from the output of a kernel, in the memory of that output.

    A row with a logit that is not finite has a score that is not finite. The exception is a
    logit of minus infinity beside finite ones, which adds nothing to a score.
    """
    if score == "max_logit":
        return maxima
    # A row that overflowed is reported by the caller.
    with np.errstate(divide="ignore", invalid="ignore"):
        if score == "msp":
            return cast(FloatArray, np.divide(1, totals, out=totals))
        np.log(totals, out=totals)
        totals += maxima
    return totals


def aligned(shape: tuple[int, int], dtype: np.dtype[Any]) -> FloatArray:
    """Return an empty array, aligned so that none of its vectors lies across two cache lines."""
    n_bytes = shape[0] * shape[1] * dtype.itemsize
    memory = np.empty(n_bytes + VECTOR_BYTES, np.uint8)
    start = -memory.ctypes.data % VECTOR_BYTES
    view: FloatArray = memory[start : start + n_bytes].view(dtype).reshape(shape)
    return view
