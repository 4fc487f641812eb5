"""The dense engine: one matrix product per block, by the BLAS that NumPy uses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]


def dense_logits(
    features: FloatArray,
    coef: FloatArray,
    intercept: FloatArray,
    out: FloatArray | None = None,
) -> FloatArray:
    """Return ``features @ coef.T + intercept``, of shape (n_samples, n_classes).

    Parameters
    ----------
    features : ndarray of shape (n_samples, n_features)
        One block of rows.
    coef : ndarray of shape (n_classes, n_features)
        Masked weight, in the dtype of the features.
    intercept : ndarray of shape (n_classes,)
        Bias, in the dtype of the features.
    out : ndarray of shape (n_samples, n_classes) or None
        Where the logits are written; None for new memory.
    """
    logits: FloatArray = np.matmul(features, coef.T, out=out)
    logits += intercept
    return logits
