"""bfloat16 rows as float32, because NumPy does not have bfloat16."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._rows.sources import Sliceable, SlicedRows


class BFloat16Rows(SlicedRows):
    """A source of float32 rows over bfloat16 rows; each slice is converted when it is read.

    Parameters
    ----------
    bits : source of rows, uint16
        The bfloat16 values, which are the upper halves of float32 values.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, bits: Sliceable) -> None:
        self.shape = bits.shape
        self._bits = bits
        self.reads_in_threads = getattr(bits, "reads_in_threads", False)

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        return (np.asarray(self._bits[start:stop]).astype(np.uint32) << 16).view(np.float32)
