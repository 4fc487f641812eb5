"""Sources over arrays of other libraries, mapped files, and anything else that can be sliced."""

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._compat.arrays import Namespace, device_of, namespace_of, to_numpy
from skdice._rows.sources import SlicedRows

# A mapped file may keep this much of the process's memory before its pages are given back.
MAPPED_BYTES = 128 << 20


class MappedRows(SlicedRows):
    """Rows of a read-only memmap, whose pages are given back before they fill the memory.

    The pages of a mapped file that were read count as memory of the process. After every
    `MAPPED_BYTES` this source gives them back to the system, which keeps them in its cache, so
    that a later read is still fast.

    Parameters
    ----------
    array : numpy.memmap
        The rows, mapped in mode "r".
    """

    reads_in_threads = True

    def __init__(self, array: np.memmap[Any, Any]) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self._array = np.asarray(array)
        # NumPy's memmap has this attribute, though its types do not.
        self._pages: mmap.mmap = array._mmap  # type: ignore[attr-defined]
        self._touched = 0

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        block = self._array[start:stop]
        self._touched += block.nbytes
        if self._touched > MAPPED_BYTES:
            self._touched = 0
            self._pages.madvise(mmap.MADV_DONTNEED)
        return block


class ForeignRows(SlicedRows):
    """Rows of an object of another library that has a shape, a NumPy dtype and slicing.

    Parameters
    ----------
    source : object
        An h5py dataset or a Zarr array, for example.
    """

    def __init__(self, source: Any) -> None:
        self.source, self.shape, self.dtype = source, tuple(source.shape), source.dtype

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        return np.asarray(self.source[start:stop])


class NarrowRows(SlicedRows):
    """Rows in a small floating-point type of ml_dtypes, read as float32.

    Parameters
    ----------
    source : SlicedRows
        Rows of a dtype such as bfloat16.
    """

    def __init__(self, source: SlicedRows) -> None:
        self.source, self.shape = source, source.shape
        self.dtype = np.dtype(np.float32)
        self.reads_in_threads = source.reads_in_threads

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        return np.asarray(self.source[start:stop]).astype(np.float32)


class ArrayRows(SlicedRows):
    """Rows of an array of another library than NumPy, read as NumPy arrays.

    Parameters
    ----------
    array : array
        The rows, in any real dtype and on any device. Dtypes that NumPy lacks are read as float32.
    """

    def __init__(self, array: Any) -> None:
        self.namespace = Namespace(namespace_of(array), device_of(array))
        self.array = array.detach() if hasattr(array, "detach") else array
        self.shape = tuple(array.shape)
        # Reading one row here, in the thread that made the array, waits until a GPU has computed
        # the array. Other threads may read it only after that.
        self.dtype = to_numpy(self.array[:1, ...] if self.shape else self.array).dtype

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        return to_numpy(self.array[start:stop, ...])

    def native_block(self, row_slice: slice) -> Any:
        """Return rows as an array of their library."""
        return self.array[row_slice, ...]

    def take(self, indices: NDArray[np.intp]) -> Any:
        """Return some rows as an array of their library."""
        assert self.namespace is not None
        places = self.namespace.xp.asarray(indices, device=self.namespace.device)
        return self.namespace.xp.take(self.array, places, axis=0)
