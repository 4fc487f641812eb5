"""The engine for heads of few classes: a matrix product that reads each row once; for CPUs.

A matrix library first copies the rows into a layout of its own, which takes longer than the
product if there are few classes. This engine lays the weight out once, and reads the rows where
they lie. It multiplies every weight, so a feature that is not finite always shows in the results.

Only the kernel (`skdice._engines.kernels.few`) imports numba.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._compat.extras import import_extra
from skdice._engines.kernels.fused import LOGITS, FusedScore, aligned, fused_scores, output_of
from skdice._engines.kernels.layout import CLASSES, COLUMN_BYTES, VECTOR_BYTES

FloatArray = NDArray[np.floating[Any]]

# A larger weight would not stay in the second-level cache beside the rows.
MOST_WEIGHT_BYTES = 512 << 10


def pack_few_classes(coef: FloatArray) -> FloatArray:
    """Lay a weight out for the kernel.

    Parameters
    ----------
    coef : ndarray of shape (n_classes, n_features), float32 or float64
        The weight, with at least as many features as one vector holds.

    Returns
    -------
    ndarray of shape (n_chunks, n_steps, CLASSES * n), of the same dtype
        n is the number of features in a vector. Chunks of `CLASSES` classes, and steps of one
        vector of features each. The last step ends where the features end, so it may repeat
        features of the step before; their weight in the last step is zero.
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

    One layer computes any number of blocks, in any number of threads at a time. The results of a
    row are the same bits in every block. They are not finite if one of its features is not finite.

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
        # Compile here, in one thread, because later several threads compute blocks.
        self._compute = kernels.compiled(self.dtype)
        self._weight = pack_few_classes(self._widened(coef))
        self._intercept = np.ascontiguousarray(intercept, self.dtype)

    def logits(self, features: FloatArray) -> FloatArray:
        """Return the logits (n_samples, n_classes) of a block of features."""
        logits = np.empty((len(features), len(self._intercept)), self.dtype)
        unused = np.empty(0, self.dtype)
        self._run(LOGITS, features, logits, unused, unused)
        return logits

    def scores(self, features: FloatArray, score: FusedScore) -> FloatArray:
        """Return one of `FUSED_SCORES` (n_samples,) of a block of features."""
        maxima = np.full(len(features), -np.inf, self.dtype)
        totals = np.zeros(len(features), self.dtype)
        self._run(output_of(score), features, np.empty((0, 0), self.dtype), maxima, totals)
        return fused_scores(score, maxima, totals)

    def _widened(self, rows: FloatArray) -> FloatArray:
        """Return rows of at least one vector of columns, contiguous and aligned."""
        missing = VECTOR_BYTES // self.dtype.itemsize - rows.shape[1]
        if missing > 0:
            rows = np.pad(rows, ((0, 0), (0, missing)))
        return np.require(np.asarray(rows), self.dtype, ["C", "A"])

    def _run(
        self,
        output: int,
        features: FloatArray,
        logits: FloatArray,
        maxima: FloatArray,
        totals: FloatArray,
    ) -> None:
        shape = len(self._weight) * CLASSES, COLUMN_BYTES // self.dtype.itemsize
        # The last tile may have fewer rows than lanes; the surplus lanes are computed and ignored.
        tile = aligned(shape, self.dtype)
        tile[:] = 0
        rows = self._widened(features)
        self._compute(output, rows, self._weight, self._intercept, tile, logits, maxima, totals)
