"""bfloat16 rows, which NumPy lacks, as float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._rows.door import wrap
from skdice._rows.sources import Sliceable, SlicedRows


class BFloat16Rows(SlicedRows):
    """A source of float32 rows over the bits of bfloat16 ones, converted slice by slice.

    Parameters
    ----------
    bits : source of rows, uint16
        The upper halves of the float32 numbers.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, bits: Sliceable) -> None:
        self.shape = bits.shape
        self._bits = wrap(bits)

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        return (np.asarray(self._bits[start:stop]).astype(np.uint32) << 16).view(np.float32)
