"""Numbers of each row of a block from which scores are made, each in one reading; for CPUs.

NumPy makes them by several operations, each of which reads and writes a whole block of logits or
features. Only the kernels (`skdice._engines.kernels.summaries`) import numba.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skdice._compat.extras import import_extra
from skdice._engines.kernels.layout import VECTOR_BYTES

FloatArray = NDArray[np.floating[Any]]


class LogitSummary(NamedTuple):
    """Numbers of the logits of each row, arrays of shape (n_samples,).

    `totals` are the sums of the exponentials of the logits minus `maxima`. `margins` are the sums
    of the margins between the largest logit and the others, times their factors.
    """

    maxima: FloatArray
    totals: FloatArray
    margins: FloatArray


class RowSummaries:
    """Summaries of rows of one dtype, in any number of threads at a time.

    A row with a value that is not finite has a summary that is not finite. The exception is a logit
    of minus infinity beside finite ones, which adds nothing to `totals`.

    Parameters
    ----------
    dtype : dtype
        float32 or float64.

    Raises
    ------
    ImportError
        numba is not installed.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        import_extra("numba", "fast")
        from skdice._engines.kernels import summaries as kernels

        self.dtype = dtype
        self._none = np.empty((0, 0), dtype)
        # Compile here, in one thread, because later several threads compute blocks.
        self._summarize_logits, self._measure_distances, self._clip_rows = kernels.compiled(dtype)

    def of_logits(
        self,
        products: FloatArray,
        bias: FloatArray,
        *,
        subtracted: FloatArray | None = None,
        factors: FloatArray | None = None,
    ) -> LogitSummary:
        """Return the summary of the logits ``products[:, :n_classes] + bias - subtracted``.

        Parameters
        ----------
        products : ndarray of shape (n_samples, n_columns)
            Products of the features with the weight, which may have further columns.
        bias : ndarray of shape (n_classes,)
            Bias.
        subtracted : ndarray of shape (n_samples, n_classes), default=None
            Logits that are subtracted.
        factors : ndarray of shape (n_classes, n_classes), default=None
            Factors of the margins of each predicted class. Without them `margins` is not computed.
        """
        lanes = VECTOR_BYTES // self.dtype.itemsize
        row = np.full(-(-len(bias) // lanes) * lanes, -np.inf, self.dtype)
        summary = LogitSummary(*np.empty((3, len(products)), self.dtype))
        subtracted = self._none if subtracted is None else self._contiguous(subtracted)
        factors = self._none if factors is None else factors
        products = self._contiguous(products)
        self._summarize_logits(products, bias, subtracted, factors, row, *summary)
        return summary

    def distances(self, rows: FloatArray, point: FloatArray, first: int = 0) -> FloatArray:
        """Return the distance of each row to a point, in the columns from `first` on.

        Parameters
        ----------
        rows : ndarray of shape (n_samples, n_columns)
            The rows.
        point : ndarray of shape (n,)
            Point in n columns of the rows.
        first : int
            First of these columns.
        """
        squares = np.empty(len(rows), self.dtype)
        self._measure_distances(self._contiguous(rows), first, point, squares)
        return np.sqrt(squares, out=squares)

    def clipped(
        self, rows: FloatArray, high: float, weight: FloatArray, products: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return rows clipped at `high`, and the products of the clipped rows with a weight.

        Few features are cut off, so the products of the whole rows less the products of these
        parts take a fraction of the time. A row of which much is cut off is multiplied anew,
        because the rounding errors of such parts would be larger than those of what is left.

        Parameters
        ----------
        rows : ndarray of shape (n_samples, n_features)
            The rows.
        high : float
            Largest value that stays.
        weight : ndarray of shape (n_features, n_classes)
            Transposed weight.
        products : ndarray of shape (n_samples, n_columns)
            Products of the rows with the weight, which may have further columns.
        """
        rows, products = self._contiguous(rows), self._contiguous(products)
        clipped = np.empty_like(rows)
        clipped_products = np.empty((len(rows), weight.shape[1]), self.dtype)
        is_left = np.empty(len(rows), np.bool_)
        places = np.empty(rows.shape[1] + 1, np.int64)
        high = self.dtype.type(high)
        self._clip_rows(rows, high, weight, products, places, clipped, clipped_products, is_left)
        left = np.flatnonzero(is_left)
        if len(left):
            clipped_products[left] = clipped[left] @ weight
        return clipped, clipped_products

    def _contiguous(self, rows: FloatArray) -> FloatArray:
        return np.require(np.asarray(rows), self.dtype, ["C", "A"])
