"""Many files of rows as one matrix."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._rows.door import wrap
from skdice._rows.sources import Sliceable, SlicedRows

# Shards that are open at a time: far below any limit on open files.
_OPEN_SHARDS = 8


class ShardedRows(SlicedRows):
    """A source of rows over files that hold consecutive rows, in the order given.

    Parameters
    ----------
    paths : sequence of Path
        The shards.
    open_shard : callable
        Opens one of them.
    """

    def __init__(self, paths: Sequence[Path], open_shard: Callable[[Path], Sliceable]) -> None:
        self._paths, self._open_shard = list(paths), open_shard
        self._opened: OrderedDict[int, Sliceable] = OrderedDict()
        self._lock = threading.Lock()
        shards = [(rows.shape, rows.dtype) for rows in map(open_shard, self._paths)]
        first = shards[0][0]
        for path, (shape, _) in zip(self._paths, shards, strict=True):
            if shape[1:] != first[1:] or len(shape) != len(first):
                raise ValueError(
                    f"the shards do not fit together: {self._paths[0].name} has shape {first}, "
                    f"{path.name} has shape {shape}"
                )
        self._ends = list(accumulate(shape[0] for shape, _ in shards))
        self.shape = (self._ends[-1], *first[1:])
        self.dtype: np.dtype[Any] = np.result_type(*{dtype for _, dtype in shards})

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        pieces = [np.empty((0, *self.shape[1:]), self.dtype)]
        while start < stop:
            index = bisect_right(self._ends, start)
            first_row = self._ends[index - 1] if index else 0
            end = min(stop, self._ends[index])
            with self._lock:
                shard = self._shard(index)
            pieces.append(np.asarray(shard[start - first_row : end - first_row]))
            start = end
        if len(pieces) == 2:
            return pieces[1].astype(self.dtype, copy=False)
        return np.concatenate(pieces, dtype=self.dtype)

    def _shard(self, index: int) -> Sliceable:
        if index not in self._opened:
            while len(self._opened) >= _OPEN_SHARDS:
                self._opened.popitem(last=False)
            self._opened[index] = wrap(self._open_shard(self._paths[index]))
        self._opened.move_to_end(index)
        return self._opened[index]
