"""Sliceable of an array that another library reads: in whole chunks, with clean errors."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._rows.sources import SlicedRows
from skdice.io._archive import clean_errors

# Chunks up to this size are kept while their rows are read, so that each is unpacked once.
KEPT_BYTES = 256 << 20


class LibraryRows(SlicedRows):
    """A source of rows over an HDF5 dataset or a Zarr array.

    Parameters
    ----------
    path : Path
        The file, for messages.
    array : h5py.Dataset or zarr.Array
        What is read.
    """

    def __init__(self, path: Path, array: Any) -> None:
        self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype)
        self._path, self._array = path, array
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        chunk = array.chunks[0] if getattr(array, "chunks", None) else 0
        self._chunk_rows = chunk if chunk > 1 and chunk * row_bytes <= KEPT_BYTES else 0
        self._kept: tuple[int, NDArray[Any]] | None = None
        self._lock = threading.Lock()

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        with self._lock, clean_errors(self._path):
            if not self._chunk_rows:
                return np.asarray(self._array[start:stop])
            pieces = [np.empty((0, *self.shape[1:]), self.dtype)]
            while start < stop:
                chunk, offset = divmod(start, self._chunk_rows)
                piece = self._chunk(chunk)[offset : offset + stop - start]
                pieces.append(piece)
                start += len(piece)
        return pieces[1] if len(pieces) == 2 else np.concatenate(pieces)

    def _chunk(self, number: int) -> NDArray[Any]:
        if self._kept is None or self._kept[0] != number:
            self._kept = None  # before the next is unpacked
            first = number * self._chunk_rows
            self._kept = number, np.asarray(self._array[first : first + self._chunk_rows])
        return self._kept[1]
