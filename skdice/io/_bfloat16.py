"""bfloat16 rows, which NumPy lacks, as float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._rows.sources import LazyRows, Rows, as_rows


class BFloat16Rows(LazyRows):
    """A source of float32 rows over the bits of bfloat16 ones, converted slice by slice.

    Parameters
    ----------
    bits : source of rows, uint16
        The upper halves of the float32 numbers.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, bits: Rows) -> None:
        self.shape = bits.shape
        self._bits = as_rows(bits)

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        return (np.asarray(self._bits[start:stop]).astype(np.uint32) << 16).view(np.float32)
