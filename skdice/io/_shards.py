"""Many files of rows as one matrix."""

from __future__ import annotations

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
    """A source of rows over files that hold consecutive rows, in the order given.

    Parameters
    ----------
    paths : sequence of Path
        The shards.
    open_shard : callable
        A function that opens one shard.
    """

    def __init__(self, paths: Sequence[Path], open_shard: Callable[[Path], Sliceable]) -> None:
        self._paths, self._open_shard = list(paths), open_shard
        self._opened: OrderedDict[int, Sliceable] = OrderedDict()
        shapes, dtypes, frames = zip(
            *(
                (rows.shape, rows.dtype, _names_frame(rows))
                for rows in map(open_shard, self._paths)
            ),
            strict=True,
        )
        for path, shape in zip(self._paths, shapes, strict=True):
            if shape[1:] != shapes[0][1:] or len(shape) != len(shapes[0]):
                raise ValueError(
                    f"the shards do not fit together: {self._paths[0].name} has shape "
                    f"{shapes[0]}, {path.name} has shape {shape}"
                )
        columns = [None if frame is None else list(frame.column_names) for frame in frames]
        for path, names in zip(self._paths, columns, strict=True):
            if names != columns[0]:
                raise ValueError(
                    f"the shards do not fit together: {self._paths[0].name} and {path.name} name "
                    "other features, or name them in another order"
                )
        self.names_frame = frames[0]
        self._ends = list(accumulate(shape[0] for shape in shapes))
        super().__init__((self._ends[-1], *shapes[0][1:]), np.result_type(*set(dtypes)))

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


def _names_frame(rows: Sliceable) -> Any:
    return getattr(rows, "names_frame", None)
