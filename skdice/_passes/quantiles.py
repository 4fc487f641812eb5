"""Exact quantiles of all entries of a source of rows, which never hold them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._rows.sources import RowSource, SlicedRows, scoring_dtype

FloatArray = NDArray[np.floating[Any]]
# If there are fewer entries than bins by this many powers of two, the entries are sorted, because
# that is faster than a count in all bins.
SORTED_BITS = 3
# The keys are leading bits. The values are the counts of all bins; in sparse histograms they are
# the bins that are not empty, and the counts of these bins.
Histograms = dict[int, NDArray[Any]]
SparseHistograms = dict[int, tuple[NDArray[np.intp], NDArray[Any]]]


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
    X: RowSource,
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
        The rows. Half and single precision are read as float32, everything else as float64.
    q : sequence of float in [0, 1]
        Quantiles sought.
    batch_size : int or None
        Rows per block.
    verbose : int
        Above 0, a progress bar per pass.

    Returns
    -------
    list of float
        ``np.quantile(X.ravel(), q)``, with NumPy's linear interpolation. Rows with weights
        count as if they were repeated as often, which need not be a whole number of times.

    Examples
    --------
    >>> import numpy as np
    >>> from skdice._rows.sources import NumpyRows
    >>> quantiles(NumpyRows(np.arange(12.0).reshape(4, 3)), [0.5, 1.0])
    [5.5, 11.0]
    """
    if X.weights is None:
        block = X.whole_block(batch_size=batch_size, description="quantile", verbose=verbose)
        if block is not None:  # NumPy selects in one block at once
            return [float(np.quantile(block.ravel(), float(level))) for level in q]

    def ranks(n_values: float) -> list[float]:
        return sorted({rank for level in q for rank in neighbours_of(level, n_values)[1:]})

    values, n_values = order_statistics(X, ranks, batch_size=batch_size, verbose=verbose)
    results = []
    for level in q:
        position, *neighbours = neighbours_of(level, n_values)
        results.append(interpolated(np.array([values[rank] for rank in neighbours]), position))
    return results


def neighbours_of(level: float, n_values: float) -> tuple[float, Any, Any]:
    """Return where a quantile lies between two ranks, as a fraction, and these ranks."""
    position = max(0.0, (n_values - 1) * float(level))
    rank, last = int(position), max(0, n_values - 1)
    return position - rank, min(rank, last), min(rank + 1, last)


def interpolated(neighbours: FloatArray, position: float) -> float:
    """Return a quantile by NumPy's own interpolation: `np.quantile` of all to the last bit."""
    return float(np.quantile(neighbours, position))


def order_statistics(
    X: RowSource,
    ranks: Callable[[float], Sequence[float]],
    *,
    batch_size: int | None = None,
    verbose: int | bool = 0,
) -> tuple[dict[float, Any], float]:
    """Return the values that have given ranks among all entries of X, and their number.

    Entries of rows with weights count as often as their weight says.

    Parameters
    ----------
    X : source of rows, of shape (n_samples, n_features)
        At least one entry.
    ranks : callable
        Function from the number of entries, which is known after the first pass, to the ranks,
        which count from 0.
    batch_size, verbose
        The same as for `quantiles`.
    """
    dtype = scoring_dtype(X.dtype)
    sought: dict[float, tuple[int, float]] = {0: (0, 0)}
    n_values = 0.0
    bits_left = 8 * dtype.itemsize
    n_passes = 2 if dtype == np.float32 else 3
    for n in range(n_passes):
        n_bits = -(-bits_left // (n_passes - n))
        bits_left -= n_bits
        count = _Count(tuple({prefix for prefix, _ in sought.values()}), n_bits, bits_left)
        description = f"quantile, pass {n + 1} of {n_passes}"
        histograms = X.reduce(partial(count, description, batch_size, verbose), _merged)
        cumulative = _dense(histograms, n_bits)
        for counts in cumulative.values():
            np.cumsum(counts, out=counts)
        if n == 0:
            n_values = cumulative[0][-1].item()
            if n_values == 0:  # chunks of unknown sizes may all be empty
                raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
            # Leading bits of each sought value, and its rank among entries that share them.
            sought = {rank: (0, rank) for rank in ranks(n_values)}
        for rank, (prefix, rank_within) in sought.items():
            counts = cumulative[prefix]
            bin_ = int(np.searchsorted(counts, rank_within, side="right"))
            below = counts[bin_ - 1].item() if bin_ else 0
            sought[rank] = ((prefix << n_bits) | bin_, rank_within - below)
    return {rank: _from_sort_key(prefix, dtype) for rank, (prefix, _) in sought.items()}, n_values


@dataclass(frozen=True)
class _Count:
    """One pass: counts of the next bits of the entries that share given leading bits.

    Parameters
    ----------
    prefixes : tuple of int
        Leading bits. The first pass has the one prefix 0, which all entries share.
    n_bits : int
        Number of bits that are counted.
    bits_left : int
        Number of bits after the counted ones.
    """

    prefixes: tuple[int, ...]
    n_bits: int
    bits_left: int

    def __call__(
        self, description: str, batch_size: int | None, verbose: int | bool, rows: SlicedRows
    ) -> SparseHistograms:
        """Return the histogram of each prefix over all entries of the rows: the filled bins."""
        if rows.shape[0] * rows.shape[1] < 1 << (self.n_bits - SORTED_BITS):
            block = rows.read_block(slice(0, len(rows)))
            parts = self._bins(block, rows.weights)
            return {prefix: _sum_by_bin(bins, counts) for prefix, bins, counts in parts}
        dtype = np.int64 if rows.weights is None else np.float64
        histograms = {prefix: np.zeros(1 << self.n_bits, dtype) for prefix in self.prefixes}
        for row_slice, block in rows.iterate_blocks(
            batch_size=batch_size, description=description, verbose=verbose
        ):
            weights = None if rows.weights is None else rows.weights[row_slice]
            for prefix, bins, counts in self._bins(block, weights):
                np.add.at(histograms[prefix], bins, counts)
        filled = {prefix: np.flatnonzero(counts) for prefix, counts in histograms.items()}
        return {prefix: (bins, histograms[prefix][bins]) for prefix, bins in filled.items()}

    def _bins(
        self, block: FloatArray, weights: NDArray[np.float64] | None
    ) -> Iterator[tuple[int, NDArray[np.intp], Any]]:
        """Yield each prefix, and the bins and the counts of the entries that share it."""
        entry_weights = None if weights is None else np.repeat(weights, block.shape[1])
        leading = _sort_keys(np.ascontiguousarray(block).ravel()) >> self.bits_left
        is_first = self.n_bits + self.bits_left == 8 * block.dtype.itemsize
        for prefix in self.prefixes:
            is_shared = slice(None) if is_first else leading >> self.n_bits == prefix
            bins = (leading[is_shared] & ((1 << self.n_bits) - 1)).astype(np.intp)
            yield prefix, bins, 1 if entry_weights is None else entry_weights[is_shared]


def _merged(parts: list[SparseHistograms]) -> SparseHistograms:
    whole: SparseHistograms = {}
    for prefix in parts[0]:
        bins = np.concatenate([part[prefix][0] for part in parts])
        counts = np.concatenate([part[prefix][1] for part in parts])
        whole[prefix] = _sum_by_bin(bins, counts)
    return whole


def _sum_by_bin(bins: NDArray[np.intp], counts: Any) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Return the bins without repetition, and the sum of the counts of each."""
    filled, places = np.unique(bins, return_inverse=True)
    total = np.zeros(len(filled), np.asarray(counts).dtype)
    np.add.at(total, places, counts)
    return filled, total


def _dense(histograms: SparseHistograms, n_bits: int) -> Histograms:
    dense = {}
    for prefix, (bins, counts) in histograms.items():
        dense[prefix] = np.zeros(1 << n_bits, counts.dtype)
        dense[prefix][bins] = counts
    return dense
