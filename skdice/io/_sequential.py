"""Rows of a stream that can only be read from its beginning."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice.io._archive import clean_errors
from skdice.io._pieces import PiecewiseRows


class SequentialRows(PiecewiseRows):
    """A source of rows over a stream.

    A slice after the last one continues the stream; any other calls `start` for a new stream.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        start: Callable[[], Iterator[NDArray[Any]]],
    ) -> None:
        super().__init__(shape, dtype)
        self._path, self._start = path, start
        # The unread rest of the current chunk, the number of its first row, and the chunks
        # that follow.
        self._held = self._no_rows()
        self._position, self._chunks = 0, start()

    def _piece(self, start: int, stop: int) -> NDArray[Any]:
        with clean_errors(self._path):
            if start < self._position:
                self._held, self._position, self._chunks = self._held[:0], 0, self._start()
            while start >= self._position + len(self._held):
                self._position += len(self._held)
                self._held = next(self._chunks, self._held[:0])
                if not len(self._held):
                    raise ValueError(f"it ends after {self._position} of its {len(self)} rows")
            first = start - self._position
            piece = self._held[first : stop - self._position]
            self._held = self._held[first + len(piece) :]
            self._position = start + len(piece)
            if self._position == len(self):
                # Run the stream to its end, where it checks its sum and closes its file.
                next(self._chunks, None)
        return piece
