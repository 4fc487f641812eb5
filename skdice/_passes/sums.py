"""Float64 sums of the columns of a block, whose rounding does not add up."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._compat.arrays import namespace_of, to_numpy

FloatArray = NDArray[np.floating[Any]]
Float64Array = NDArray[np.float64]

# So few rows are summed at a time that they stay in cache and their sum is often exact.
SUMMED_ROWS = 256
# Blocks of more rows than this are summed without compensation if no value is negative.
COMPENSATED_ROWS = 256


def two_sum(a: Float64Array, b: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return a + b and its exact rounding error (Knuth's error-free transformation)."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def _inexact_columns(rows: FloatArray, largest: float, scratch: FloatArray) -> NDArray[np.intp]:
    """Return the columns of a few float32 rows whose float64 sum may round.

    The sum cannot round, in any order, if the last bit of the smallest magnitude and the first
    bit of the largest possible sum both fit into the 53 bits of one float64. (A zero counts as
    too small a magnitude, so a few columns are split without need.)
    """
    smallest = np.abs(rows, out=scratch[: len(rows)]).min(axis=0)
    return np.flatnonzero(smallest < math.ldexp(largest, 24 + len(rows).bit_length() + 1 - 53))


def _split_sums(rows: FloatArray) -> tuple[Float64Array, Float64Array]:
    """Return the float64 column sums of a few rows, and the corrections to add to them.

    Every value is cut into a high part, a multiple of one power of two for all of its
    column, and a low part. The high parts add up without rounding. The low parts are so small
    that the rounding of their sum does not matter (Rump, Ogita & Oishi, "Accurate floating-point
    summation", SIAM J. Sci. Comput. 2008).
    """
    values = rows.astype(np.float64)
    largest = np.abs(values).max(axis=0)
    n_bits = np.frexp(largest)[1] + len(rows).bit_length() + 1
    # Near the largest float64 there is no such power of two, so the sum is a plain one.
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
        True if the values were converted from 16 bits, because then plain sums are exact.

    Returns
    -------
    ndarray of shape (2, n_columns)
        The sums, and the corrections to add to them.
    """
    lowest = float(block.min())
    # Values after a ReLU do not cancel, so a plain sum is exact to n * 1e-16, and it is fast.
    plain = half or (len(block) > COMPENSATED_ROWS and lowest >= 0)
    single = block.dtype == np.float32 and not plain
    largest = max(float(block.max()), -lowest) if single else 0.0
    # The memory is allocated once because allocating it for every few rows would take longer than
    # their sum.
    scratch = np.empty((SUMMED_ROWS if single else 0, block.shape[1]), np.float32)
    total, error = np.zeros((2, block.shape[1]))
    with np.errstate(over="ignore", invalid="ignore"):  # the caller checks the mean
        for start in range(0, len(block), SUMMED_ROWS):
            rows = block[start : start + SUMMED_ROWS]
            part = np.add.reduce(rows, axis=0, dtype=np.float64)
            if not plain:
                columns = _inexact_columns(rows, largest, scratch) if single else slice(None)
                part[columns], missing = _split_sums(rows[:, columns])
                error[columns] += missing
            total, rounding = two_sum(total, part)
            error += rounding
    return np.stack([total, error])


def array_column_sums(block: Any) -> Float64Array:
    """Return the `column_sums` of rows of another library, summed on their device.

    The sums are in double precision, in the order of that library, which is pairwise on GPUs.
    """
    xp = namespace_of(block)
    sums = to_numpy(xp.sum(xp.astype(block, xp.float64), axis=0))
    return np.stack([sums, np.zeros_like(sums)])
