"""Rows of a file that holds one column after the other, as Fortran order does."""

import weakref
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from skdice.io._pieces import ChunkedRows

# Bytes of a strip. A strip has many rows, so that its part of each column is worth a read.
STRIP_BYTES = 64 << 20


class ColumnMajorRows(ChunkedRows):
    """A source of rows over a column-major matrix, read in strips of many rows.

    The file is not mapped because every block of rows would bring a page of each column,
    and the pages around it, into the memory of the process. It is closed with this object.
    """

    def __init__(
        self,
        path: Path,
        file: BinaryIO,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        super().__init__(path, shape, dtype, max(1, STRIP_BYTES // (dtype.itemsize * shape[1])))
        self._file, self._offset = file, offset
        weakref.finalize(self, file.close)

    def _load(self, start: int, stop: int) -> NDArray[Any]:
        n_bytes = (stop - start) * self.dtype.itemsize
        strip = np.empty((stop - start, self.shape[1]), self.dtype, order="F")
        for column in range(self.shape[1]):
            position = column * self.shape[0] + start
            self._file.seek(self._offset + position * self.dtype.itemsize)
            content = self._file.read(n_bytes)
            if len(content) < n_bytes:
                raise ValueError(f"it was truncated: rows are missing in column {column}")
            strip[:, column] = np.frombuffer(content, self.dtype)
        return strip
