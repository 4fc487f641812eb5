"""Rows of a file that holds one column after the other, as Fortran order does."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from skdice.io._archive import clean_errors
from skdice.io._pieces import PiecewiseRows

# Bytes of a strip. A strip has many rows, so that its part of each column is worth a read.
STRIP_BYTES = 64 << 20


class ColumnMajorRows(PiecewiseRows):
    """A source of rows over a column-major matrix, read in strips of many rows.

    The file is not mapped because every block of rows would bring a page of each column,
    and the pages around it, into the memory of the process.

    Parameters
    ----------
    path : Path
        The file, for messages.
    file : binary file
        Open for reading; it is closed with this object.
    offset : int
        Position of the first value in the file.
    shape : tuple of int
        (n_rows, n_columns).
    dtype : dtype
        Type of the values.
    """

    def __init__(
        self,
        path: Path,
        file: BinaryIO,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        super().__init__(shape, dtype)
        self._path, self._file, self._offset = path, file, offset
        weakref.finalize(self, file.close)
        self._strip_rows = max(1, STRIP_BYTES // (dtype.itemsize * shape[1]))
        self._first = 0
        self._strip: NDArray[Any] = np.empty((0, shape[1]), dtype)

    def _piece(self, start: int, stop: int) -> NDArray[Any]:
        if not self._first <= start < self._first + len(self._strip):
            with clean_errors(self._path):
                self._load(start)
        return self._strip[start - self._first : stop - self._first]

    def _load(self, first: int) -> None:
        n_rows = min(self._strip_rows, self.shape[0] - first)
        strip = np.empty((n_rows, self.shape[1]), self.dtype, order="F")
        for column in range(self.shape[1]):
            position = column * self.shape[0] + first
            self._file.seek(self._offset + position * self.dtype.itemsize)
            content = self._file.read(n_rows * self.dtype.itemsize)
            if len(content) < n_rows * self.dtype.itemsize:
                raise ValueError(f"it was truncated: rows are missing in column {column}")
            strip[:, column] = np.frombuffer(content, self.dtype)
        self._first, self._strip = first, strip
