"""Blocks of rows: their size, their dtype, and whether all their values are finite."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

FloatArray = NDArray[np.floating[Any]]

# A block takes this much memory while it is processed: little enough to stay in cache, and
# enough that the matrix product runs at its full rate.
BLOCK_BYTES = 8 << 20
MIN_BLOCK_ROWS = 512


def scoring_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return the dtype in which rows of `dtype` are computed.

    float32 for half and single precision, float64 for everything else.
    """
    dtype = np.dtype(dtype)
    single = dtype.kind == "f" and dtype.itemsize <= 4
    return np.dtype(np.float32 if single else np.float64)


def block_slices(
    n_rows: int,
    row_bytes: int,
    batch_size: int | None = None,
    *,
    block_bytes: int = BLOCK_BYTES,
    min_rows: int = MIN_BLOCK_ROWS,
) -> list[slice]:
    """Return the slices that cut `n_rows` rows into blocks.

    Parameters
    ----------
    n_rows : int
        Number of rows.
    row_bytes : int
        Memory that one row takes while it is processed.
    batch_size : int, default=None
        Rows of a block; None chooses them.
    block_bytes : int
        Memory that a block takes about.
    min_rows : int
        Rows that a block has at least.
    """
    size = batch_size or max(min_rows, block_bytes // max(1, row_bytes))
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def all_finite(block: FloatArray) -> bool:
    """Tell whether all values of a block are finite, in one pass where none is negative.

    As unsigned integers, the bits of all finite values without a sign come before those of
    infinity, and these before NaN; all values with a sign follow, in the same order.
    """
    n_bits = 8 * block.dtype.itemsize
    bits = block.view(f"u{block.dtype.itemsize}")
    infinity = int(np.array(np.inf, block.dtype).view(bits.dtype))
    largest = int(bits.max())
    if largest < infinity:
        return True
    # With the sign as that of the integer, the values without one come last.
    return largest < infinity + (1 << (n_bits - 1)) and (
        int(block.view(f"i{block.dtype.itemsize}").max()) < infinity
    )
