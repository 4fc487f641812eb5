"""The engine for heads of few classes: a matrix product that reads each row once; for CPUs.

A matrix library copies the rows into a layout of its own first, which takes longer than the
product where there are few classes. Here the weight is laid out once, and the rows are read as
they lie. Every weight is multiplied, so that a feature that is not finite always shows.

Only the kernel (`skdice._engines.kernels.few`) imports numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._compat.extras import import_extra
from skdice._engines.kernels.fused import LOGITS, FusedScore, aligned, fused_scores, wanted
from skdice._engines.kernels.layout import CLASSES, COLUMN_BYTES, VECTOR_BYTES

FloatArray = NDArray[np.floating[Any]]

# A weight that takes more does not stay in the second-level cache beside the rows.
MOST_WEIGHT_BYTES = 512 << 10


def pack_few_classes(coef: FloatArray) -> FloatArray:
    """Lay a weight out for the kernel.

    Parameters
    ----------
    coef : ndarray of shape (n_classes, n_features), float32 or float64
        Of a vector of features at least.

    Returns
    -------
    ndarray of shape (n_chunks, n_steps, CLASSES * n), of the same dtype
        n is the number of features in a vector. Chunks of `CLASSES` classes, and steps of one
        vector of features each. The last step ends where the features end: of these, those
        that the one before has already have weight zero.
    """
    n = VECTOR_BYTES // coef.itemsize
    n_classes, n_features = coef.shape
    starts = np.arange(0, n_features, n)
    columns = np.minimum(starts, n_features - n)[:, np.newaxis] + np.arange(n)
    steps = np.where(columns >= starts[:, np.newaxis], coef[:, columns], coef.dtype.type(0))
    steps = np.pad(steps, ((0, -n_classes % CLASSES), (0, 0), (0, 0)))
    chunks = steps.reshape(-1, CLASSES, len(starts), n).swapaxes(1, 2)
    return np.ascontiguousarray(chunks).reshape(len(chunks), len(starts), CLASSES * n)


class FewClassesLayer:
    """A layer of few classes.

    Built once, it computes any number of blocks, in any number of threads at a time. A row's
    results are the same bits whatever block it comes in. They are not finite where one of
    its features is not.

    Parameters
    ----------
    coef : ndarray of shape (n_classes, n_features), float32 or float64
        Masked weight.
    intercept : ndarray of shape (n_classes,)
        Bias.

    Raises
    ------
    ImportError
        numba is not installed.
    """

    def __init__(self, coef: FloatArray, intercept: FloatArray) -> None:
        import_extra("numba", "fast")
        from skdice._engines.kernels import few as kernels

        self.dtype = coef.dtype
        # Compiled here, in one thread, rather than by all that compute blocks.
        self._compute = kernels.compiled(self.dtype)
        self._weight = pack_few_classes(self._widened(coef))
        self._intercept = np.ascontiguousarray(intercept, self.dtype)

    def logits(self, features: FloatArray) -> FloatArray:
        """Return the logits (n_samples, n_classes) of a block of features."""
        logits = np.empty((len(features), len(self._intercept)), self.dtype)
        nothing = np.empty(0, self.dtype)
        self._run(LOGITS, features, logits, nothing, nothing)
        return logits

    def scores(self, features: FloatArray, score: FusedScore) -> FloatArray:
        """Return one of `FUSED_SCORES` (n_samples,) of a block of features."""
        maxima = np.full(len(features), -np.inf, self.dtype)
        totals = np.zeros(len(features), self.dtype)
        self._run(wanted(score), features, np.empty((0, 0), self.dtype), maxima, totals)
        return fused_scores(score, maxima, totals)

    def _widened(self, rows: FloatArray) -> FloatArray:
        """Return rows of at least one vector of columns, contiguous and aligned."""
        missing = VECTOR_BYTES // self.dtype.itemsize - rows.shape[1]
        if missing > 0:
            rows = np.pad(rows, ((0, 0), (0, missing)))
        return np.require(np.asarray(rows), self.dtype, ["C", "A"])

    def _run(
        self,
        what: int,
        features: FloatArray,
        logits: FloatArray,
        maxima: FloatArray,
        totals: FloatArray,
    ) -> None:
        shape = len(self._weight) * CLASSES, COLUMN_BYTES // self.dtype.itemsize
        # Lanes of rows that there are not are computed, too, and not looked at.
        tile = aligned(shape, self.dtype)
        tile[:] = 0
        rows = self._widened(features)
        self._compute(what, rows, self._weight, self._intercept, tile, logits, maxima, totals)
