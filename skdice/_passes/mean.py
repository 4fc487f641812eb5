"""Mergeable float64 sums of all rows, which never hold them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from skdice._compat.arrays import is_accelerator, to_numpy
from skdice._compat.extras import has_numba
from skdice._rows.dask import DaskRows
from skdice._rows.sources import (
    ArrayRows,
    ChunkRows,
    Rows,
    SelectedRows,
    array_source,
    block_slices,
    check_rows,
    load_block,
    map_blocks,
    scoring_dtype,
)

FloatArray = NDArray[np.floating[Any]]
Float64Array = NDArray[np.float64]


# Rows that are summed at a time: few, so that they stay in cache and their sum is often exact.
SUMMED_ROWS = 256
# With as many values, 1 GiB in float32, compiled sums save more time than numba takes to load.
COMPILED_VALUES = 1 << 28
# Blocks of more rows are summed plainly where no value is negative.
COMPENSATED_ROWS = 256


def _two_sum(a: Float64Array, b: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return a + b and its exact rounding error (Knuth's error-free transformation)."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def _inexact_columns(rows: FloatArray, largest: float, scratch: FloatArray) -> NDArray[np.intp]:
    """Return the columns of a few float32 rows whose float64 sum may round.

    It cannot round, in whatever order, where the last bit of the smallest magnitude and
    the first bit of the largest possible sum both fit into the 53 bits of one float64.
    (A zero is taken for too small a magnitude: a few columns more are split in vain.)
    """
    smallest = np.abs(rows, out=scratch[: len(rows)]).min(axis=0)
    return np.flatnonzero(smallest < math.ldexp(largest, 24 + len(rows).bit_length() + 1 - 53))


def _split_sums(rows: FloatArray) -> tuple[Float64Array, Float64Array]:
    """Return the float64 column sums of a few rows, and what is missing from them.

    Every value is cut into a high part, a multiple of one power of two for all of its
    column, and the rest. The high parts add up without any rounding; the rests are so
    small that theirs is of no account (Rump, Ogita & Oishi, "Accurate floating-point
    summation", SIAM J. Sci. Comput. 2008).
    """
    values = rows.astype(np.float64)
    largest = np.abs(values).max(axis=0)
    n_bits = np.frexp(largest)[1] + len(rows).bit_length() + 1
    # Next to the end of float64 no power of two is left: there the sum is a plain one.
    unit = np.where(n_bits > 1022, 0.0, np.ldexp(1.0, np.minimum(n_bits, 1022)))
    high = values + unit
    high -= unit
    values -= high
    return np.add.reduce(high, axis=0), np.add.reduce(values, axis=0)


def column_sums(block: FloatArray, *, half: bool = False) -> Float64Array:
    """Return the float64 column sums of a block, and what rounding took from them.

    Parameters
    ----------
    block : ndarray of shape (n, n_columns), float32 or float64
        The rows.
    half : bool
        The values had 16 bits once: then the sums of a few rows are exact.

    Returns
    -------
    ndarray of shape (2, n_columns)
        The sums, and what is to be added to them.
    """
    lowest = float(block.min())
    # As after a ReLU: nothing cancels, so the plain sum is good to n * 1e-16, and fast.
    plain = half or (len(block) > COMPENSATED_ROWS and lowest >= 0)
    single = block.dtype == np.float32 and not plain
    largest = max(float(block.max()), -lowest) if single else 0.0
    # New memory for every few rows would cost more than their sum.
    scratch = np.empty((SUMMED_ROWS if single else 0, block.shape[1]), np.float32)
    total, error = np.zeros((2, block.shape[1]))
    with np.errstate(over="ignore", invalid="ignore"):  # the caller sees it in the mean
        for start in range(0, len(block), SUMMED_ROWS):
            rows = block[start : start + SUMMED_ROWS]
            part = np.add.reduce(rows, axis=0, dtype=np.float64)
            if not plain:
                columns = _inexact_columns(rows, largest, scratch) if single else slice(None)
                part[columns], missing = _split_sums(rows[:, columns])
                error[columns] += missing
            total, rounding = _two_sum(total, part)
            error += rounding
    return np.stack([total, error])


def array_column_sums(xp: Any, block: Any) -> Float64Array:
    """Return the `column_sums` of rows of another library, summed on their device.

    In double precision, as that library sums: pairwise on GPUs.
    """
    sums = to_numpy(xp.sum(xp.astype(block, xp.float64), axis=0))
    return np.stack([sums, np.zeros_like(sums)])


class FeatureStatistics:
    """Mean activation of features that come in blocks, on any number of machines.

    Each worker of Ray, Spark, MPI or any other engine adds its blocks of rows to an object of
    its own, which is small to send; merged in any order, and given to
    `DICEDetector.partial_fit`, they are as good as the rows. The sums are float64 and
    compensated, so that the mean does not depend on blocks, workers or the order of merging
    beyond the last digits. (Blocks of more than 256 rows without a negative value are summed
    plainly, to n * 1e-16 of their own sum: that shows only where another block cancels it
    almost wholly.)

    Parameters
    ----------
    n_features : int, default=None
        Number of features; None takes that of the first block, or of what is merged first.

    Attributes
    ----------
    n_features : int or None
        Number of features, None as long as there is nothing to tell it.
    n_samples : int
        Rows so far.
    total, error : ndarray of shape (n_features,), float64
        Sum of the rows, and what rounding took from it.

    See Also
    --------
    DICEDetector.partial_fit : Takes the statistics in place of rows.

    Examples
    --------
    >>> import numpy as np
    >>> from skdice import DICEDetector, FeatureStatistics
    >>> X = np.random.default_rng(0).random((1000, 4))
    >>> of_workers = [FeatureStatistics().add(block) for block in np.split(X, [100, 700])]
    >>> statistics = FeatureStatistics()
    >>> for each in of_workers:
    ...     statistics = statistics.merge(each)
    >>> statistics
    FeatureStatistics(n_samples=1000, n_features=4)
    >>> bool(np.allclose(statistics.mean(), X.mean(axis=0), rtol=1e-14))
    True
    >>> DICEDetector(head="identity", sparsity=0).partial_fit(statistics).n_samples_seen_
    1000
    """

    def __init__(self, n_features: int | None = None) -> None:
        self.n_samples = 0
        self.n_features = n_features
        self.total = np.zeros(n_features or 0)
        self.error = np.zeros(n_features or 0)

    def add(self, X: Any) -> Self:
        """Add rows, by one thread.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Features; no rows at all add nothing.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            A value is not finite (the message names the first such row of X), or the number
            of features is another than before. The statistics are left as they were.
        """
        # The number of rows of a Dask data frame is not known, and cannot be compared.
        shape: tuple[int, ...] = () if hasattr(X, "to_dask_array") else np.shape(X)
        if len(shape) == 2 and shape[0] == 0 and shape[1] > 0:
            self._set_width(shape[1])
            return self
        rows = check_rows(X)
        if isinstance(rows, np.ndarray):
            rows = ChunkRows(rows)
        added = FeatureStatistics(rows.shape[1])
        add_rows(added, rows, n_threads=1)
        return self.merge(added)

    def merge(self, other: FeatureStatistics) -> Self:
        """Add the rows of other statistics, which do not change.

        Parameters
        ----------
        other : FeatureStatistics
            Of other rows of the same features.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            The numbers of features differ.
        """
        if other.n_features is not None:
            self._set_width(other.n_features)
            self.add_sums(other.n_samples, np.stack([other.total, other.error]))
        return self

    def mean(self) -> Float64Array:
        """Return the mean activation.

        Returns
        -------
        ndarray of shape (n_features,), float64

        Raises
        ------
        ValueError
            There are no rows yet.
        """
        if self.n_samples == 0:
            raise ValueError("the statistics have no rows yet: there is no mean")
        return (self.total + self.error) / self.n_samples

    def copy(self) -> FeatureStatistics:
        """Return an independent copy."""
        return FeatureStatistics(self.n_features).merge(self)

    def add_sums(self, n_samples: int, sums: Float64Array) -> None:
        """Add the `column_sums` (2, n_features) of so many rows."""
        with np.errstate(over="ignore", invalid="ignore"):
            self.total, rounding = _two_sum(self.total, sums[0])
            self.error = self.error + (sums[1] + rounding)
        self.n_samples += n_samples

    def _set_width(self, n_features: int) -> None:
        if self.n_features is None:
            self.n_features = n_features
            self.total, self.error = np.zeros((2, n_features))
        elif self.n_features != n_features:
            raise ValueError(
                f"these rows have {n_features} features, but those before have {self.n_features}"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_samples={self.n_samples}, n_features={self.n_features})"


def add_rows(
    statistics: FeatureStatistics,
    X: Rows,
    *,
    batch_size: int | None = None,
    n_threads: int | None = None,
    verbose: int | bool = 0,
) -> None:
    """Add all rows of a source to statistics, those of an array on a GPU where they lie.

    Parameters
    ----------
    statistics : FeatureStatistics
        Changed in place.
    X : source of rows, of shape (n_samples, n_features)
        What is added.
    batch_size : int or None
        Rows per block.
    n_threads : int or None
        Threads that sum; None is two: the thread that would read ahead sums as well, as one
        alone is slower than the memory.
    verbose : int
        Above 0, a progress bar.
    """
    if isinstance(X, DaskRows):
        statistics.merge(X.reduce(partial(_chunk_statistics, batch_size=batch_size), _merged))
        return
    row_bytes = X.shape[1] * scoring_dtype(X.dtype).itemsize
    slices = block_slices(X.shape[0], row_bytes, batch_size)
    source = array_source(X)
    if source is not None and is_accelerator(source.xp, source.device):
        assert isinstance(X, ArrayRows | SelectedRows)
        for rows in slices:
            sums = array_column_sums(source.xp, X.native(rows))
            if not np.isfinite(sums).all():
                load_block(X, rows)  # names the row
            statistics.add_sums(rows.stop - rows.start, sums)
        return
    blocks = map_blocks(
        _block_sums(X),
        X,
        slices,
        n_threads=2 if n_threads is None else n_threads,
        description="mean activation",
        verbose=verbose,
    )
    for rows, each in blocks:
        statistics.add_sums(rows.stop - rows.start, each)


def _chunk_statistics(rows: Rows, batch_size: int | None) -> FeatureStatistics:
    statistics = FeatureStatistics(rows.shape[1])
    add_rows(statistics, rows, batch_size=batch_size, n_threads=1)
    return statistics


def _merged(statistics: list[FeatureStatistics]) -> FeatureStatistics:
    whole = FeatureStatistics()
    for each in statistics:
        whole.merge(each)
    return whole


def _block_sums(X: Rows) -> Callable[[FloatArray], Float64Array]:
    """Return the function from blocks of a source to their column sums."""
    if X.shape[0] * X.shape[1] >= COMPILED_VALUES and has_numba():
        from skdice._passes.sum_kernel import compiled, compiled_column_sums

        compiled(scoring_dtype(X.dtype))  # once, rather than by each thread
        return compiled_column_sums
    return partial(column_sums, half=X.dtype.itemsize <= 2)
