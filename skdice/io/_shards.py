"""Many files of rows as one matrix."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._rows.sources import Sliceable
from skdice.io._pieces import PiecewiseRows

# Shards that are open at a time. It is far below any limit on open files.
_OPEN_SHARDS = 8


class ShardedRows(PiecewiseRows):
    """A source of rows over files that hold consecutive rows, in the order given."""

    def __init__(self, paths: Sequence[Path], open_shard: Callable[[Path], Sliceable]) -> None:
        self._paths, self._open_shard = list(paths), open_shard
        self._opened: OrderedDict[int, Sliceable] = OrderedDict()
        first = open_shard(self._paths[0])
        self.names_frame = getattr(first, "names_frame", None)
        lengths, dtypes = [first.shape[0]], {first.dtype}
        for path in self._paths[1:]:
            rows = open_shard(path)
            if rows.shape[1:] != first.shape[1:] or len(rows.shape) != len(first.shape):
                raise ValueError(
                    f"the shards do not fit together: {self._paths[0].name} has shape "
                    f"{first.shape}, {path.name} has shape {rows.shape}"
                )
            if _column_names(rows) != _column_names(first):
                raise ValueError(
                    f"the shards do not fit together: {self._paths[0].name} and {path.name} name "
                    "other features, or name them in another order"
                )
            lengths.append(rows.shape[0])
            dtypes.add(rows.dtype)
        self._ends = list(accumulate(lengths))
        super().__init__((self._ends[-1], *first.shape[1:]), np.result_type(*dtypes))

    def _piece(self, start: int, stop: int) -> NDArray[Any]:
        index = bisect_right(self._ends, start)
        first = self._ends[index - 1] if index else 0
        return np.asarray(self._shard(index)[start - first : min(stop, self._ends[index]) - first])

    def _shard(self, index: int) -> Sliceable:
        if index not in self._opened:
            while len(self._opened) >= _OPEN_SHARDS:
                self._opened.popitem(last=False)
            self._opened[index] = self._open_shard(self._paths[index])
        self._opened.move_to_end(index)
        return self._opened[index]


def _column_names(rows: Sliceable) -> list[str] | None:
    frame = getattr(rows, "names_frame", None)
    return None if frame is None else list(frame.column_names)
