"""Sources that give a slice of rows in pieces, and the loop that copies rows into an array."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from skdice._rows.sources import SlicedRows


class PiecewiseRows(SlicedRows):
    """Base of the sources whose storage is cut into pieces: chunks, strips, shards, batches.

    Parameters
    ----------
    shape : tuple of int
        Shape of the whole.
    dtype : dtype
        Type of the values.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        # A source keeps its current piece between slices, so one thread reads at a time.
        self._lock = threading.Lock()

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        pieces = [np.empty((0, *self.shape[1:]), self.dtype)]
        with self._lock:
            while start < stop:
                pieces.append(self._piece(start, stop))
                start += len(pieces[-1])
        if len(pieces) == 2:
            return pieces[1].astype(self.dtype, copy=False)
        return np.concatenate(pieces, dtype=self.dtype)

    def _piece(self, start: int, stop: int) -> NDArray[Any]:
        """Return at least one row: those from `start` on, at most to before `stop`."""
        raise NotImplementedError


def copy_rows(
    rows: SlicedRows,
    target: Any,
    *,
    batch_size: int | None = None,
    dtype: DTypeLike | None = None,
) -> None:
    """Copy rows block by block into an array that takes the values of a slice.

    Parameters
    ----------
    rows : source of rows
        The rows to copy.
    target : ndarray, HDF5 dataset or Zarr array
        An array of the same shape.
    batch_size : int, default=None
        Rows of a block; None chooses it by the size of a row.
    dtype : dtype, default=None
        Type to which each block is converted before it is stored; None keeps its own.
    """
    start = 0
    for block in rows.raw_blocks(batch_size):
        target[start : start + len(block)] = np.asarray(block, dtype)
        start += len(block)


def chunk_rows(shape: tuple[int, ...], itemsize: int, chunk_bytes: int = 1 << 20) -> int:
    """Return how many rows make a chunk of about `chunk_bytes`."""
    row_bytes = itemsize * int(np.prod(shape[1:], dtype=np.int64))
    return max(1, chunk_bytes // max(1, row_bytes))
