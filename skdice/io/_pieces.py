"""Sources that give a slice of rows in pieces, and the loop that copies rows into an array."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from skdice._rows.sources import SlicedRows
from skdice.io._archive import clean_errors


class PiecewiseRows(SlicedRows):
    """Base of the sources whose storage is cut into pieces: chunks, strips, shards, batches."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        # A source keeps its current piece between slices, so one thread reads at a time.
        self._lock = threading.Lock()

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        pieces = [self._no_rows()]
        with self._lock:
            while start < stop:
                pieces.append(self._piece(start, stop))
                start += len(pieces[-1])
        if len(pieces) == 2:
            return pieces[1].astype(self.dtype, copy=False)
        return np.concatenate(pieces, dtype=self.dtype)

    def _no_rows(self) -> NDArray[Any]:
        return np.empty((0, *self.shape[1:]), self.dtype)

    def _piece(self, start: int, stop: int) -> NDArray[Any]:
        """Return at least one row: those from `start` on, at most to before `stop`."""
        raise NotImplementedError


class ChunkedRows(PiecewiseRows):
    """Base of the sources that keep the chunk of the last rows, so that each is read once.

    A source with 0 `chunk_rows` keeps none. A derived class implements `_load`.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], chunk_rows: int
    ) -> None:
        super().__init__(shape, dtype)
        self._path, self._chunk_rows = path, chunk_rows
        self._first, self._chunk = 0, self._no_rows()

    def _piece(self, start: int, stop: int) -> NDArray[Any]:
        with clean_errors(self._path):
            if not self._chunk_rows:
                return self._load(start, stop)
            if not self._first <= start < self._first + len(self._chunk):
                self._chunk = self._no_rows()  # frees the last chunk before the next is unpacked
                self._first = start - start % self._chunk_rows
                self._chunk = self._load(
                    self._first, min(self._first + self._chunk_rows, len(self))
                )
            return self._chunk[start - self._first : stop - self._first]

    def _load(self, start: int, stop: int) -> NDArray[Any]:
        """Read rows from the storage."""
        raise NotImplementedError


def copy_rows(
    rows: SlicedRows,
    target: Any,
    *,
    batch_size: int | None = None,
    dtype: DTypeLike | None = None,
) -> None:
    """Copy rows block by block into an array that takes the values of a slice."""
    start = 0
    for block in rows.raw_blocks(batch_size):
        target[start : start + len(block)] = np.asarray(block, dtype)
        start += len(block)


def chunk_rows(shape: tuple[int, ...], itemsize: int, chunk_bytes: int = 1 << 20) -> int:
    """Return how many rows make a chunk of about `chunk_bytes`."""
    row_bytes = itemsize * int(np.prod(shape[1:], dtype=np.int64))
    return max(1, chunk_bytes // max(1, row_bytes))
