"""NumPy's .npy format, memory-mapped."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from skdice._rows.sources import Sliceable, SlicedRows
from skdice.io._archive import Archive
from skdice.io._column_major import ColumnMajorRows

# Of plain numbers; those of many named fields, which may be longer, are no features.
MAX_HEADER_BYTES = 1 << 16


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
    if version == (1, 0):
        shape, fortran, dtype = npy_format.read_array_header_1_0(file)
    elif version == (2, 0):
        # NumPy reads as much as the file asks for, up to 4 GB, before it looks at it.
        length = file.read(4)
        if int.from_bytes(length, "little") > MAX_HEADER_BYTES:
            raise ValueError(f"its header has {int.from_bytes(length, 'little')} bytes")
        header = io.BytesIO(length + file.read(int.from_bytes(length, "little")))
        shape, fortran, dtype = npy_format.read_array_header_2_0(header)
    else:
        raise ValueError(f"version {version} of the .npy format is not known")
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are refused: they could run code")
    return shape, fortran, dtype


def map_array(
    path: Path, offset: int, shape: tuple[int, ...], fortran: bool, dtype: np.dtype[Any]
) -> NDArray[Any] | ColumnMajorRows:
    """Map an array that lies uncompressed in a file, read-only; column-major ones are read."""
    n_values = 1
    for length in shape:  # in Python's integers, which do not overflow
        n_values *= length
    if min(shape, default=0) < 0 or dtype.itemsize == 0:
        raise ValueError(f"its header has shape {shape} and dtype {dtype}")
    missing = offset + n_values * dtype.itemsize - path.stat().st_size
    if missing > 0:
        raise ValueError(f"it is truncated: {missing} bytes are missing")
    if n_values == 0:
        return np.empty(shape, dtype)
    if fortran and len(shape) == 2 and min(shape) > 1:
        return ColumnMajorRows(path, path.open("rb"), offset, shape, dtype)
    mapped: NDArray[Any] = np.memmap(path, dtype, "r", offset, shape)
    return mapped


def write(path: Path, arrays: dict[str, SlicedRows]) -> None:
    """Write the features, block by block."""
    if len(arrays) > 1:
        raise ValueError(f".npy holds one array, got {', '.join(arrays)}")
    with path.open("wb") as file:
        write_array(file, next(iter(arrays.values())))


def write_array(file: BinaryIO, rows: SlicedRows) -> None:
    """Write header and rows to an open file, block by block."""
    header = {
        "descr": npy_format.dtype_to_descr(rows.dtype),
        "fortran_order": False,
        "shape": tuple(map(int, rows.shape)),
    }
    npy_format.write_array_header_1_0(file, header)
    for block in rows.raw_blocks():
        file.write(np.ascontiguousarray(block, rows.dtype).data)
