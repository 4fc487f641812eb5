"""Rows of an HDF5 dataset or a Zarr array, read in whole chunks."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice.io._pieces import ChunkedRows

# Chunks up to this size are kept while their rows are read, so that each is unpacked once.
KEPT_BYTES = 256 << 20


class LibraryRows(ChunkedRows):
    """A source of rows over an HDF5 dataset or a Zarr array.

    `check` is called with the first row and the end of what was just read. It raises if a part of
    the storage is missing, because both libraries return zeros for it.
    """

    def __init__(self, path: Path, array: Any, check: Callable[[int, int], None]) -> None:
        shape, dtype = tuple(array.shape), np.dtype(array.dtype)
        chunk = array.chunks[0] if getattr(array, "chunks", None) else 0
        is_kept = chunk > 1 and chunk * dtype.itemsize * math.prod(shape[1:]) <= KEPT_BYTES
        super().__init__(path, shape, dtype, chunk if is_kept else 0)
        self._array, self._check = array, check

    def _load(self, start: int, stop: int) -> NDArray[Any]:
        rows = np.asarray(self._array[start:stop])
        # After the read: a chunk that is there now was there while it was read.
        self._check(start, stop)
        return rows
