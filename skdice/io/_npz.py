"""NumPy's .npz archives: stored members are mapped, compressed members are streamed."""

import math
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._rows.sources import Sliceable, SlicedRows
from skdice.io._archive import Archive
from skdice.io._column_major import ColumnMajorRows
from skdice.io._npy import map_array, read_header, write_array
from skdice.io._pieces import chunk_rows
from skdice.io._sequential import SequentialRows

# Length of a local file header in a zip archive, before the name and the extra field.
_LOCAL_HEADER = 30


def read(path: Path) -> Archive:
    """Return the arrays of a .npz file."""
    with zipfile.ZipFile(path) as archive:
        members = {
            info.filename.removesuffix(".npy"): partial(_open_member, path, info)
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        }
    return Archive(path, members)


def _open_member(path: Path, info: zipfile.ZipInfo) -> Sliceable:
    with zipfile.ZipFile(path) as archive, archive.open(info) as file:
        shape, fortran, dtype = read_header(file)
        header_size = file.tell()
        size = header_size + dtype.itemsize * math.prod(shape)
        if size != info.file_size:
            raise ValueError(
                f"{info.filename} has {info.file_size} bytes, its header asks for {size}"
            )
        if info.compress_type != zipfile.ZIP_STORED:
            if not fortran or len(shape) < 2:
                return SequentialRows(path, shape, dtype, partial(_stream, path, info))
            if len(shape) == 2 and min(shape) > 0:
                # A stream cannot give the rows of column-major data, but an unnamed file can.
                spool = tempfile.TemporaryFile()  # noqa: SIM115 - the source closes it
                shutil.copyfileobj(file, spool)
                return ColumnMajorRows(path, spool, 0, shape, dtype)
            # A kernel of a convolution is small, so it is read whole.
            return np.frombuffer(file.read(), dtype).reshape(shape, order="F")
    with path.open("rb") as raw:
        raw.seek(info.header_offset)
        local = raw.read(_LOCAL_HEADER)
    start = info.header_offset + _LOCAL_HEADER
    start += int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    return map_array(path, start + header_size, shape, fortran, dtype)


def _stream(path: Path, info: zipfile.ZipInfo) -> Iterator[NDArray[Any]]:
    """Yield the rows of a compressed member, chunk by chunk."""
    with zipfile.ZipFile(path) as archive, archive.open(info) as file:
        shape, _, dtype = read_header(file)
        row_bytes = dtype.itemsize * math.prod(shape[1:])
        step = chunk_rows(shape, dtype.itemsize)
        for start in range(0, shape[0], step):
            n_rows = min(step, shape[0] - start)
            content = file.read(n_rows * row_bytes)
            yield np.frombuffer(content, dtype).reshape(n_rows, *shape[1:])


def write(path: Path, arrays: dict[str, SlicedRows]) -> None:
    """Write the arrays block by block, uncompressed so that they can be mapped."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, rows in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                # The member can be written to like any binary file, but its type says less.
                write_array(file, rows.shape, rows.dtype, rows.raw_blocks())  # type: ignore[arg-type]
