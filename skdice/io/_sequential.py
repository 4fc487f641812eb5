"""Sliceable of a stream that can only be read from its beginning."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._rows.sources import SlicedRows
from skdice.io._archive import clean_errors


class SequentialRows(SlicedRows):
    """A source of rows over a stream: forward slices are read on, others from the beginning.

    Parameters
    ----------
    path : Path
        The file, for messages.
    shape : tuple of int
        Of the whole.
    dtype : dtype
        Of the rows.
    start : callable
        Returns an iterator of arrays, one after the other, from the first row on.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        start: Callable[[], Iterator[NDArray[Any]]],
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._path, self._start = path, start
        self._lock = threading.Lock()
        self._none: NDArray[Any] = np.empty((0, *shape[1:]), dtype)
        # The next row of the stream, what was read and not yet asked for, and what follows.
        self._position, self._held, self._chunks = 0, self._none, start()

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        with self._lock, clean_errors(self._path):
            if start < self._position:
                self._position, self._held, self._chunks = 0, self._none, self._start()
            pieces: list[NDArray[Any]] = []
            while self._position < stop:
                if not len(self._held):
                    self._held = next(self._chunks, self._held)
                    if not len(self._held):
                        raise ValueError(f"it ends after {self._position} of its {len(self)} rows")
                skip = max(0, start - self._position)
                taken = min(len(self._held), stop - self._position)
                if skip < taken:
                    pieces.append(self._held[skip:taken])
                self._held = self._held[taken:]
                self._position += taken
            if self._position == len(self) and not len(self._held):
                # Ends the stream, which checks its sum and closes its file.
                next(self._chunks, None)
        whole: NDArray[Any] = (
            pieces[0] if len(pieces) == 1 else np.concatenate([self._none, *pieces])
        )
        return whole


def chunk_rows(shape: tuple[int, ...], itemsize: int, chunk_bytes: int = 1 << 20) -> int:
    """Return how many rows make a chunk of about `chunk_bytes`."""
    row_bytes = itemsize * int(np.prod(shape[1:], dtype=np.int64))
    return max(1, chunk_bytes // max(1, row_bytes))
