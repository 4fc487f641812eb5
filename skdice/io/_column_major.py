"""Sliceable of a file that holds one column after the other, as Fortran order does."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from skdice._rows.sources import SlicedRows
from skdice.io._archive import clean_errors

# What is read at a time: so many rows that the piece of each column is worth a read.
STRIP_BYTES = 64 << 20


class ColumnMajorRows(SlicedRows):
    """A source of rows over a column-major matrix, read in strips of many rows.

    Mapping such a file would bring a piece of every column, and all around it, into the
    memory of the process for every block of rows.

    Parameters
    ----------
    path : Path
        The file, for messages.
    file : binary file
        Open for reading; closed with this object.
    offset : int
        Where the data begins.
    shape : tuple of int
        (n_rows, n_columns).
    dtype : dtype
        Of the values.
    """

    def __init__(
        self,
        path: Path,
        file: BinaryIO,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._path, self._file, self._offset = path, file, offset
        weakref.finalize(self, file.close)
        self._strip_rows = max(1, STRIP_BYTES // (dtype.itemsize * shape[1]))
        self._first = 0
        self._strip: NDArray[Any] = np.empty((0, shape[1]), dtype)
        self._lock = threading.Lock()

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        pieces = [np.empty((0, self.shape[1]), self.dtype)]
        with self._lock, clean_errors(self._path):
            while start < stop:
                if not self._first <= start < self._first + len(self._strip):
                    self._load(start)
                piece = self._strip[start - self._first : stop - self._first]
                pieces.append(piece)
                start += len(piece)
        return pieces[1] if len(pieces) == 2 else np.concatenate(pieces)

    def _load(self, first: int) -> None:
        n_rows = min(self._strip_rows, self.shape[0] - first)
        strip = np.empty((n_rows, self.shape[1]), self.dtype, order="F")
        for column in range(self.shape[1]):
            position = column * self.shape[0] + first
            self._file.seek(self._offset + position * self.dtype.itemsize)
            content = self._file.read(n_rows * self.dtype.itemsize)
            strip[:, column] = np.frombuffer(content, self.dtype)
        self._first, self._strip = first, strip
