"""Rows in blocks: dtype of the computation, validation, and mapping a function over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs
from numpy.typing import DTypeLike, NDArray
from tqdm import tqdm

FloatArray = NDArray[np.floating[Any]]

# What one block occupies while it is processed: small enough to stay in cache, large
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


def block_slices(n_rows: int, row_bytes: int, batch_size: int | None = None) -> list[slice]:
    """Return the slices that cut `n_rows` rows into blocks.

    `batch_size` is the number of rows per block; None chooses it from `row_bytes`,
    what one row occupies while it is processed.
    """
    size = batch_size or max(MIN_BLOCK_ROWS, BLOCK_BYTES // row_bytes)
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def load_block(X: NDArray[Any], rows: slice) -> FloatArray:
    """Return the rows in their scoring dtype, after checking that every value is finite.

    Raises
    ------
    ValueError
        A value is NaN or infinite; the message names the first such row.
    """
    block: FloatArray = np.asarray(X[rows], dtype=scoring_dtype(X.dtype))
    # NaN and infinity survive a sum, so one pass without a temporary clears most blocks;
    # a finite block whose sum overflows only takes the slower look.
    with np.errstate(over="ignore", invalid="ignore"):
        total = block.sum()
    if not np.isfinite(total):
        bad = np.argwhere(~np.isfinite(block))
        if len(bad):
            row, column = bad[0]
            value = block[row, column]
            kind = "NaN" if np.isnan(value) else f"infinity ({value})"
            raise ValueError(
                f"Input X contains {kind} in row {rows.start + row}, column {column}; "
                "every feature must be finite."
            )
    return block


def iterate_blocks(
    X: NDArray[Any],
    *,
    batch_size: int | None = None,
    description: str = "rows",
    verbose: int | bool = 0,
) -> Iterator[tuple[slice, FloatArray]]:
    """Yield the row slice and the validated block of each block of rows, in order."""
    row_bytes = X.shape[1] * scoring_dtype(X.dtype).itemsize
    with tqdm(total=len(X), desc=description, unit=" rows", disable=not verbose) as bar:
        for rows in block_slices(len(X), row_bytes, batch_size):
            yield rows, load_block(X, rows)
            bar.update(rows.stop - rows.start)


def map_blocks(
    function: Callable[[FloatArray], FloatArray],
    X: NDArray[Any],
    out: FloatArray,
    slices: list[slice],
    *,
    n_jobs: int | None = None,
    description: str = "rows",
    verbose: int | bool = 0,
) -> FloatArray:
    """Write ``function(block)`` for every block of rows of X to the same rows of `out`.

    Threads take blocks where `n_jobs` asks for them. The first error, in the order of
    the rows, is raised whatever the number of threads.
    """

    def run(rows: slice) -> tuple[slice, Exception | None]:
        # Carried to the caller's thread, where errors are raised in the order of the rows.
        try:
            out[rows] = function(load_block(X, rows))
        except Exception as error:
            return rows, error
        return rows, None

    parallel = len(slices) > 1 and effective_n_jobs(n_jobs) > 1
    results = (
        Parallel(n_jobs, require="sharedmem", return_as="generator")(
            delayed(run)(rows) for rows in slices
        )
        if parallel
        else map(run, slices)
    )
    with tqdm(total=len(X), desc=description, unit=" rows", disable=not verbose) as bar:
        for rows, error in results:
            if error is not None:
                raise error
            bar.update(rows.stop - rows.start)
    return out
