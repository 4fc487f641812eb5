"""The float64 mean of all rows, which never holds them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from joblib import effective_n_jobs
from numpy.typing import NDArray

from skdice._extras import has_numba
from skdice._rows import (
    ArrayRows,
    Rows,
    SelectedRows,
    array_source,
    block_slices,
    load_block,
    map_blocks,
    scoring_dtype,
)
from skdice._xp import is_accelerator, to_numpy

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


class RunningMean:
    """Column means of rows that come in blocks, by compensated float64 summation.

    The result does not depend on how the rows are split, beyond the last digits. (Blocks of
    more than 256 rows without a negative value are summed plainly, to n * 1e-16 of their
    own sum: that shows only where another block cancels it almost wholly.)

    Parameters
    ----------
    n_columns : int
        Columns of every block.

    Attributes
    ----------
    n_rows : int
        Rows so far.
    total, error : ndarray of shape (n_columns,), float64
        Sum of the rows, and what rounding took from it.
    """

    def __init__(self, n_columns: int) -> None:
        self.n_rows = 0
        self.total = np.zeros(n_columns)
        self.error = np.zeros(n_columns)

    def copy(self) -> RunningMean:
        """Return an independent copy, so that an update can be taken back."""
        twin = RunningMean(len(self.total))
        twin.n_rows = self.n_rows
        twin.total, twin.error = self.total.copy(), self.error.copy()
        return twin

    def add(self, n_rows: int, sums: Float64Array) -> None:
        """Add the `column_sums` (2, n_columns) of so many rows."""
        with np.errstate(over="ignore", invalid="ignore"):
            self.total, rounding = _two_sum(self.total, sums[0])
            self.error += sums[1] + rounding
        self.n_rows += n_rows

    def mean(self) -> Float64Array:
        """Return the column means (n_columns,)."""
        return (self.total + self.error) / self.n_rows


def add_rows(
    mean: RunningMean,
    X: Rows,
    *,
    batch_size: int | None = None,
    n_jobs: int | None = None,
    verbose: int | bool = 0,
) -> None:
    """Add all rows of a source to a mean, those of an array on a GPU where they lie.

    Parameters
    ----------
    mean : RunningMean
        Changed in place.
    X : source of rows, of shape (n_samples, n_features)
        What is added.
    batch_size : int or None
        Rows per block.
    n_jobs : int or None
        Threads; two at least.
    verbose : int
        Above 0, a progress bar.
    """
    row_bytes = X.shape[1] * scoring_dtype(X.dtype).itemsize
    slices = block_slices(X.shape[0], row_bytes, batch_size)
    source = array_source(X)
    if source is not None and is_accelerator(source.xp, source.device):
        assert isinstance(X, ArrayRows | SelectedRows)
        for rows in slices:
            sums = array_column_sums(source.xp, X.native(rows))
            if not np.isfinite(sums).all():
                load_block(X, rows)  # names the row
            mean.add(rows.stop - rows.start, sums)
        return
    blocks = map_blocks(
        _block_sums(X),
        X,
        slices,
        # The thread that would read ahead sums as well: one alone is slower than the memory.
        n_threads=max(2, effective_n_jobs(n_jobs)),
        description="mean activation",
        verbose=verbose,
    )
    for rows, each in blocks:
        mean.add(rows.stop - rows.start, each)


def _block_sums(X: Rows) -> Callable[[FloatArray], Float64Array]:
    """Return the function from blocks of a source to their column sums."""
    if X.shape[0] * X.shape[1] >= COMPILED_VALUES and has_numba():
        from skdice._sum_kernel import compiled, compiled_column_sums

        compiled(scoring_dtype(X.dtype))  # once, rather than by each thread
        return compiled_column_sums
    return partial(column_sums, half=X.dtype.itemsize <= 2)
