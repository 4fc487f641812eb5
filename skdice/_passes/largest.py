"""The largest entries of rows that are read for something else, which give their high quantiles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._compat.arrays import namespace_of, to_numpy
from skdice._passes.quantiles import interpolated, neighbours_of
from skdice._rows.sources import RowSource, SlicedRows, scoring_dtype

FloatArray = NDArray[np.floating[Any]]

# Lower quantiles need so many entries that counting passes are cheaper.
LEAST_LEVEL = 0.9
# The entries that are kept take this much memory at most: those of 26 GB of features at the level
# 0.99, and of 5 GB at 0.95.
MOST_BYTES = 256 << 20
# The parts of a cluster keep this many times their share of the entries, because the largest
# entries need not be spread evenly over them.
MARGIN = 2
# The memory has room for so many further entries at least, before the smallest are dropped.
LEAST_SPARE = 1 << 16


@dataclass(frozen=True, eq=False)
class LargestEntries:
    """The largest of all entries.

    Parameters
    ----------
    entries : ndarray of shape (n_kept,), float32 or float64
        The entries, in any order.
    bound : float
        No entry that was left out is above it.
    n_values : int
        The number of all entries.
    """

    entries: FloatArray
    bound: float
    n_values: int

    def quantiles(self, levels: Sequence[float]) -> list[float] | None:
        """Return quantiles of all entries, exactly; None if too few entries were kept."""
        self.entries.sort()  # in place, because a copy would take the memory a second time
        ordered, n_left_out = self.entries, self.n_values - len(self.entries)
        found = []
        for level in levels:
            position, *ranks = neighbours_of(level, self.n_values)
            if ranks[0] < n_left_out or ordered[ranks[0] - n_left_out] < self.bound:
                return None
            neighbours = ordered[[rank - n_left_out for rank in ranks]]
            found.append(interpolated(neighbours, position))
        return found


class Keeper:
    """Keeps the largest entries of blocks; the memory is a little more than that of these."""

    def __init__(self, n_kept: int, dtype: np.dtype[Any]) -> None:
        self._n_kept, self._n_values, self._bound = n_kept, 0, -np.inf
        self._memory = np.empty(n_kept + max(n_kept // 8, LEAST_SPARE), dtype)
        # The entries fill the memory from its end, where `partition` leaves the largest.
        self._start = len(self._memory)

    def add(self, block: Any) -> None:
        """Look at the entries of a block of NumPy or another library, in the scoring dtype."""
        xp = namespace_of(block)
        is_first = self._n_values == 0
        self._n_values += math.prod(block.shape)
        candidates = to_numpy(xp.reshape(block, -1) if is_first else block[block > self._bound])
        while len(candidates):
            start = max(self._start - len(candidates), 0)
            n_added, self._start = self._start - start, start
            self._memory[start : start + n_added] = candidates[:n_added]
            candidates = candidates[n_added:]
            if start == 0:
                self._start = len(self._memory) - self._n_kept
                self._memory.partition(self._start)
                self._bound = float(self._memory[self._start])
                candidates = candidates[candidates > self._bound]

    def largest(self) -> LargestEntries:
        """Return what was kept."""
        return LargestEntries(self._memory[self._start :], self._bound, self._n_values)


def keeper(rows: SlicedRows, level: float, margin: float) -> Keeper | None:
    """Return what keeps the entries of rows from a quantile on; None where that is not worth it."""
    if rows.weights is not None:
        return None
    n_values = math.prod(rows.shape)
    dtype = scoring_dtype(rows.dtype)
    n_kept = math.ceil(margin * (n_values - neighbours_of(level, n_values)[1]))
    return None if n_kept * dtype.itemsize > MOST_BYTES else Keeper(min(n_kept, n_values), dtype)


def margin_of(rows: RowSource, level: float) -> float | None:
    """Return how many times its share of the entries each part of the rows keeps; None for none."""
    if level < LEAST_LEVEL:
        return None
    if isinstance(rows, SlicedRows):
        return 1
    size = rows.shape[0] * rows.shape[1] * scoring_dtype(rows.dtype).itemsize
    # All that the parts keep is sent to one place. NaN, a number that is not known, is too much.
    return MARGIN if MARGIN * (1 - level) * size <= MOST_BYTES else None


def merged_largest(parts: Sequence[LargestEntries | None]) -> LargestEntries | None:
    """Return the largest entries of all parts of the rows; None if a part has kept none."""
    kept = [part for part in parts if part is not None]
    if len(kept) < len(parts):
        return None
    return LargestEntries(
        np.concatenate([part.entries for part in kept]),
        max(part.bound for part in kept),
        sum(part.n_values for part in kept),
    )
