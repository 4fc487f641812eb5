"""NumPy's .npy format, memory-mapped."""

import io
import math
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from skdice._rows.sources import Sliceable, SlicedRows
from skdice._rows.wrapped import MappedRows
from skdice.io._archive import Archive, check_shape, check_size, clean_errors
from skdice.io._column_major import ColumnMajorRows

# A header for numbers fits easily. Only structured dtypes, which are not features, need more.
MAX_HEADER_BYTES = 1 << 16


class MappedFileRows(MappedRows):
    """A source of rows over a mapped file, which looks at the size of the file first.

    The system kills a process with SIGBUS if it touches a mapped page beyond the end of
    the file, so a file that another process cut short must not be touched. Reading with
    `pread` would not need the check, but it copies: it reached 0.3 to 0.7 of the throughput
    for a file in the page cache.
    """

    # Several threads may read blocks at a time.
    reads_in_threads = True

    def __init__(self, path: Path, array: np.memmap[Any, Any]) -> None:
        super().__init__(array)
        self._path, self._end = path, array.offset + array.nbytes
        # NumPy's types do not have this attribute. It is the size of the open file that counts:
        # the name may have been removed, or given to another file.
        self._map: mmap.mmap = array._mmap  # type: ignore[attr-defined]

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        with clean_errors(self._path):
            check_size(self._map.size(), self._end)
        return super()._read(start, stop)


def read(path: Path) -> Archive:
    """Return the one array of a .npy file; it has no name."""

    def open_array() -> Sliceable:
        with path.open("rb") as file:
            shape, fortran, dtype = read_header(file)
            return map_array(path, file.tell(), shape, fortran, dtype)

    return Archive(path, {}, open_array)


def read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read a .npy header; refuse arrays of Python objects, whose content would be pickles."""
    version = npy_format.read_magic(file)
    try:
        if version == (1, 0):
            shape, fortran, dtype = npy_format.read_array_header_1_0(file)
        elif version == (2, 0):
            # NumPy reads as much as the file asks for, up to 4 GB, before it looks at it.
            length = file.read(4)
            n_bytes = int.from_bytes(length, "little")
            if n_bytes > MAX_HEADER_BYTES:
                raise ValueError(f"its header has {n_bytes} bytes")
            header = io.BytesIO(length + file.read(n_bytes))
            shape, fortran, dtype = npy_format.read_array_header_2_0(header)
        else:
            raise ValueError(f"version {version} of the .npy format is not known")
    except MemoryError as error:
        # Python's parser raises it for deeply nested text, whatever the memory.
        raise ValueError("its header is too complex to be parsed") from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are refused: they could run code")
    return shape, fortran, dtype


def map_array(
    path: Path, offset: int, shape: tuple[int, ...], fortran: bool, dtype: np.dtype[Any]
) -> Sliceable:
    """Return an array that lies uncompressed in a file: mapped, or read if it is column-major."""
    n_values = math.prod(shape)
    if min(shape, default=0) < 0 or dtype.itemsize == 0:
        raise ValueError(f"its header has shape {shape} and dtype {dtype}")
    missing = offset + n_values * dtype.itemsize - path.stat().st_size
    if missing > 0:
        raise ValueError(f"it is truncated: {missing} bytes are missing")
    if n_values == 0:  # an empty region of a file cannot be mapped
        check_shape("it", shape, dtype)
        return np.empty(shape, dtype)
    if fortran and len(shape) == 2 and min(shape) > 1:
        return ColumnMajorRows(path, path.open("rb"), offset, shape, dtype)
    array = np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
    # Windows has no madvise, and does not cut a file that is mapped.
    return MappedFileRows(path, array) if hasattr(mmap, "MADV_DONTNEED") else array


def write(path: Path, arrays: dict[str, SlicedRows]) -> None:
    """Write the features, block by block."""
    if len(arrays) > 1:
        raise ValueError(f".npy holds one array, got {', '.join(arrays)}")
    (rows,) = arrays.values()
    with path.open("wb") as file:
        write_array(file, rows.shape, rows.dtype, rows.raw_blocks())


def write_array(
    file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterable[NDArray[Any]]
) -> int:
    """Write a header and blocks of rows to an open file; return the number of rows written."""
    write_header(file, shape, dtype)
    n_rows = 0
    for block in blocks:
        file.write(np.ascontiguousarray(block, dtype).data)
        n_rows += len(block)
    return n_rows


def write_header(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Write a .npy header. Its length does not depend on the number of rows."""
    header = {
        "descr": npy_format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": tuple(map(int, shape)),
    }
    npy_format.write_array_header_1_0(file, header)
