"""What the compiled kernels share: scores that need no logits of a whole block."""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from skdice._engines.kernels.layout import VECTOR_BYTES

FloatArray = NDArray[np.floating[Any]]
FusedScore = Literal["energy", "max_logit", "msp"]

FUSED_SCORES: tuple[str, ...] = get_args(FusedScore)

# What a kernel computes: logits, their maxima, or these and the sums of exponentials below them.
LOGITS, MAXIMA, TOTALS = 0, 1, 2


def wanted(score: FusedScore) -> int:
    """Return what a kernel has to compute for a score."""
    return MAXIMA if score == "max_logit" else TOTALS


def fused_scores(score: FusedScore, maxima: FloatArray, totals: FloatArray) -> FloatArray:
    """Return the scores from what the kernel computed, in the memory of these.

    A row whose logits are NaN or infinite has a score that is not finite, unless the
    logits that are infinite are all negative and others are not.
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
    """Return an empty array of which no vector lies across two cache lines."""
    n_bytes = shape[0] * shape[1] * dtype.itemsize
    memory = np.empty(n_bytes + VECTOR_BYTES, np.uint8)
    start = -memory.ctypes.data % VECTOR_BYTES
    view: FloatArray = memory[start : start + n_bytes].view(dtype).reshape(shape)
    return view
