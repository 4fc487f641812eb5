"""Compensated column sums at the speed of the memory; importing this module imports numba."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit, types
from numba.np.numpy_support import from_dtype
from numpy.typing import NDArray

# This many rows are added at a time, while the sums stay in registers.
UNROLLED_ROWS = 4


def _add_rows(rows: Any, total: Any, error: Any) -> None:
    """Add rows, as many as a multiple of four, to sums that are each held in two float64.

    Each addition is Knuth's error-free transformation, as in `skdice._passes.mean`.
    """
    # Four named rows, rather than a loop over them, let the compiler vectorize over the columns.
    for i in range(0, rows.shape[0], UNROLLED_ROWS):
        row0, row1, row2, row3 = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        for j in range(len(total)):
            s, e = total[j], error[j]
            for x in (row0[j], row1[j], row2[j], row3[j]):
                t = s + np.float64(x)
                x_part = t - s
                e += (s - (t - x_part)) + (np.float64(x) - x_part)
                s = t
            total[j], error[j] = s, e


@cache
def compiled(dtype: np.dtype[Any]) -> Callable[..., None]:
    """Return `_add_rows` for rows of a dtype, compiled, or read from numba's cache on disk."""
    # The rows are declared read-only because those of a mapped file are; numba then accepts
    # writable rows as well.
    rows = types.Array(from_dtype(dtype), 2, "C", readonly=True)
    signature = types.void(rows, types.float64[::1], types.float64[::1])
    try:
        function: Callable[..., None] = njit(signature, nogil=True, cache=True)(_add_rows)
    except Exception:  # The cache has no writable folder or disk space, or is damaged.
        function = njit(signature, nogil=True)(_add_rows)
    return function


def compiled_column_sums(block: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return what `skdice._passes.sums.column_sums` does, for values of any sign at one speed.

    Parameters
    ----------
    block : ndarray of shape (n, n_columns), float32 or float64
        The rows.
    """
    block = np.require(np.asarray(block), requirements=["C", "A"])
    total, error = np.zeros((2, block.shape[1]))
    n_even = len(block) - len(block) % UNROLLED_ROWS
    rest = np.zeros((UNROLLED_ROWS, block.shape[1]), block.dtype)
    rest[: len(block) - n_even] = block[n_even:]
    for rows in (block[:n_even], rest):
        compiled(block.dtype)(rows, total, error)
    return np.stack([total, error])
