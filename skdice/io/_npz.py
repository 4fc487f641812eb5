"""NumPy's .npz archives: stored members are mapped, compressed ones are streamed."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from skdice._rows.sources import Sliceable, SlicedRows
from skdice.io._archive import Archive
from skdice.io._column_major import ColumnMajorRows
from skdice.io._npy import map_array, read_header, write_array
from skdice.io._sequential import SequentialRows, chunk_rows

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
        size = header_size + dtype.itemsize * int(np.prod([int(n) for n in shape], dtype=object))
        if size != info.file_size:
            raise ValueError(
                f"{info.filename} has {info.file_size} bytes, its header asks for {size}"
            )
        if fortran and info.compress_type != zipfile.ZIP_STORED and len(shape) == 2:
            return _spooled(path, file, shape, dtype)
    if info.compress_type == zipfile.ZIP_STORED:
        with path.open("rb") as raw:
            raw.seek(info.header_offset)
            local = raw.read(_LOCAL_HEADER)
        start = info.header_offset + _LOCAL_HEADER
        start += int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        return map_array(path, start + header_size, shape, fortran, dtype)
    return SequentialRows(path, shape, dtype, partial(_stream, path, info, shape, dtype))


def _stream(
    path: Path, info: zipfile.ZipInfo, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Iterator[NDArray[Any]]:
    """Yield the rows of a compressed member, chunk by chunk."""
    row_bytes = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
    step = chunk_rows(shape, dtype.itemsize)
    with zipfile.ZipFile(path) as archive, archive.open(info) as file:
        read_header(file)
        for start in range(0, shape[0], step):
            n_rows = min(step, shape[0] - start)
            content = file.read(n_rows * row_bytes)
            yield np.frombuffer(content, dtype).reshape(n_rows, *shape[1:])


def _spooled(
    path: Path, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> ColumnMajorRows:
    """Unpack column-major data, whose rows no stream can give, into an unnamed file."""
    spool = tempfile.TemporaryFile()  # noqa: SIM115 - closed, and gone, with the source
    while content := file.read(1 << 20):
        spool.write(content)
    return ColumnMajorRows(path, spool, 0, shape, dtype)


def write(path: Path, arrays: dict[str, SlicedRows]) -> None:
    """Write the arrays, uncompressed so that they can be mapped, block by block."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, rows in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                # It writes like any binary file, though it is typed as less than one.
                write_array(file, rows)  # type: ignore[arg-type]
