"""Rows of an HDF5 dataset or a Zarr array, read in whole chunks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice.io._archive import clean_errors
from skdice.io._pieces import PiecewiseRows

# Chunks up to this size are kept while their rows are read, so that each is unpacked once.
KEPT_BYTES = 256 << 20


class LibraryRows(PiecewiseRows):
    """A source of rows over an HDF5 dataset or a Zarr array.

    Parameters
    ----------
    path : Path
        The file, for messages.
    array : h5py.Dataset or zarr.Array
        The array that is read.
    check : callable
        A function that is called with the first row and the end of what was just read. It
        raises if a part of the storage is missing: both libraries return zeros for it.
    """

    def __init__(self, path: Path, array: Any, check: Callable[[int, int], None]) -> None:
        super().__init__(tuple(array.shape), np.dtype(array.dtype))
        self._path, self._array, self._check = path, array, check
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        chunk = array.chunks[0] if getattr(array, "chunks", None) else 0
        self._chunk_rows = chunk if chunk > 1 and chunk * row_bytes <= KEPT_BYTES else 0
        self._kept_first = 0
        self._kept: NDArray[Any] = np.empty((0, *self.shape[1:]), self.dtype)

    def _piece(self, start: int, stop: int) -> NDArray[Any]:
        with clean_errors(self._path):
            if not self._chunk_rows:
                return self._load(start, stop)
            if not self._kept_first <= start < self._kept_first + len(self._kept):
                first = start - start % self._chunk_rows
                self._kept = self._kept[:0]  # frees the last chunk before the next is unpacked
                self._kept = self._load(first, min(first + self._chunk_rows, len(self)))
                self._kept_first = first
            return self._kept[start - self._kept_first : stop - self._kept_first]

    def _load(self, start: int, stop: int) -> NDArray[Any]:
        rows = np.asarray(self._array[start:stop])
        # After the read: a chunk that is there now was there while it was read.
        self._check(start, stop)
        return rows
