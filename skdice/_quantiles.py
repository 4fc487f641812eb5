"""Exact quantiles of all entries of a source of rows, which never hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._rows import Rows, block_slices, iterate_blocks, scoring_dtype

FloatArray = NDArray[np.floating[Any]]


def _sort_keys(values: FloatArray) -> NDArray[Any]:
    """Return unsigned integers in the order of the floating-point values."""
    n_bits = 8 * values.dtype.itemsize
    bits = values.view(np.dtype(f"u{values.dtype.itemsize}"))
    sign = bits.dtype.type(1 << (n_bits - 1))
    return np.where(bits & sign, ~bits, bits | sign)


def _from_sort_key(key: int, dtype: np.dtype[Any]) -> Any:
    """Return the floating-point value of a sort key."""
    n_bits = 8 * dtype.itemsize
    sign = 1 << (n_bits - 1)
    bits = key ^ sign if key & sign else key ^ ((1 << n_bits) - 1)
    return np.array(bits, dtype=f"u{dtype.itemsize}").view(dtype)[()]


def quantiles(
    X: Rows,
    q: Sequence[float],
    *,
    batch_size: int | None = None,
    verbose: int | bool = 0,
) -> list[float]:
    """Return quantiles of all entries of X, exactly, in passes over blocks of its rows.

    Each pass histograms the next bits of the entries that share their leading bits with
    an order statistic that is sought: two passes for float32, three for float64, and
    memory that does not depend on the number of rows.

    Parameters
    ----------
    X : source of rows, of shape (n_samples, n_features)
        Half and single precision are taken as float32, everything else as float64.
    q : sequence of float in [0, 1]
        Quantiles sought.
    batch_size : int or None
        Rows per block.
    verbose : int
        Above 0, a progress bar per pass.

    Returns
    -------
    list of float
        ``np.quantile(X.ravel(), q)``, with NumPy's linear interpolation.

    Examples
    --------
    >>> import numpy as np
    >>> quantiles(np.arange(12.0).reshape(4, 3), [0.5, 1.0])
    [5.5, 11.0]
    """
    dtype = scoring_dtype(X.dtype)
    if len(block_slices(X.shape[0], X.shape[1] * dtype.itemsize, batch_size)) == 1:
        # One block: NumPy selects in it at once.
        ((_, block),) = iterate_blocks(
            X, batch_size=batch_size, description="quantile", verbose=verbose
        )
        return [float(np.quantile(block.ravel(), float(each))) for each in q]
    last = X.shape[0] * X.shape[1] - 1
    positions = [last * float(each) for each in q]
    ranks = sorted({min(int(p) + step, last) for p in positions for step in (0, 1)})
    # Leading bits of each sought order statistic, and its rank among entries that share them.
    found = {rank: (0, rank) for rank in ranks}
    bits_left = 8 * dtype.itemsize
    n_passes = 2 if dtype == np.float32 else 3
    for n in range(n_passes):
        n_bits = -(-bits_left // (n_passes - n))
        bits_left -= n_bits
        histograms = {prefix: np.zeros(1 << n_bits, np.int64) for prefix, _ in found.values()}
        blocks = iterate_blocks(
            X,
            batch_size=batch_size,
            description=f"quantile, pass {n + 1} of {n_passes}",
            verbose=verbose,
        )
        for _, block in blocks:
            leading = _sort_keys(np.ascontiguousarray(block).ravel()) >> bits_left
            for prefix, histogram in histograms.items():
                # In the first pass every entry shares the empty prefix.
                shared = leading[leading >> n_bits == prefix] if n else leading
                np.add.at(histogram, (shared & ((1 << n_bits) - 1)).astype(np.intp), 1)
        cumulative = {prefix: counts.cumsum() for prefix, counts in histograms.items()}
        for rank, (prefix, rank_within) in found.items():
            counts = cumulative[prefix]
            bin_ = int(np.searchsorted(counts, rank_within, side="right"))
            below = int(counts[bin_ - 1]) if bin_ else 0
            found[rank] = ((prefix << n_bits) | bin_, rank_within - below)
    values = {rank: _from_sort_key(prefix, dtype) for rank, (prefix, _) in found.items()}
    results = []
    for position in positions:
        rank = int(position)
        neighbours = np.array([values[rank], values[min(rank + 1, last)]])
        # NumPy's own interpolation, so that the result equals np.quantile to the last bit.
        results.append(float(np.quantile(neighbours, position - rank)))
    return results
