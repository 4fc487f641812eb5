"""Sources that keep a chunk of rows."""

import weakref
from pathlib import Path

import numpy as np

from skdice.io._library import LibraryRows


class Chunked:
    """An array in chunks of 4 rows, which counts the chunks that are alive when one is read."""

    shape, chunks, dtype = (12, 3), (4, 3), np.dtype(np.float64)

    def __init__(self):
        self.read, self.most_alive = [], 0

    def __getitem__(self, rows):
        self.most_alive = max(self.most_alive, sum(ref() is not None for ref in self.read))
        chunk = np.full((rows.stop - rows.start, 3), float(rows.start))
        self.read.append(weakref.ref(chunk))
        return chunk


def test_a_chunk_is_read_once_and_freed_before_the_next_is_unpacked():
    array = Chunked()
    rows = LibraryRows(Path("x.h5"), array, lambda start, stop: None)
    firsts = [float(rows[n : n + 1][0, 0]) for n in range(12)]
    assert firsts == [0.0] * 4 + [4.0] * 4 + [8.0] * 4
    assert len(array.read) == 3
    assert array.most_alive == 0
