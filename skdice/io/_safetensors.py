"""The .safetensors format, memory-mapped."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from skdice._rows.sources import Sliceable, SlicedRows
from skdice.io._archive import Archive
from skdice.io._npy import map_array

DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # the bits, which BFloat16Rows converts
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
_NAMES = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"}


class BFloat16Rows(SlicedRows):
    """A source of float32 rows over the bits of bfloat16 rows, converted when they are read.

    The bits are the upper halves of float32 values.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, bits: Sliceable) -> None:
        self.shape = bits.shape
        self._bits = bits
        self.reads_in_threads = getattr(bits, "reads_in_threads", False)

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        return (np.asarray(self._bits[start:stop]).astype(np.uint32) << 16).view(np.float32)


def read(path: Path) -> Archive:
    """Return the arrays of a .safetensors file."""
    return Archive(path, {name: partial(_open, path, name) for name in read_header(path)[0]})


def read_header(path: Path) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Return the entries by name, the offset of the data, and the metadata.

    safetensors itself checks the sizes, the offsets, their order, and that the file is whole.
    """
    with safe_open(path, framework="numpy"):
        pass
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(size))
    return entries, 8 + size, entries.pop("__metadata__", {})


def _open(path: Path, name: str) -> Sliceable:
    entries, data, _ = read_header(path)
    entry = entries[name]
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name!r} has dtype {entry['dtype']}, which NumPy does not have")
    offset, dtype = data + entry["data_offsets"][0], np.dtype(DTYPES[entry["dtype"]])
    rows = map_array(path, offset, tuple(entry["shape"]), False, dtype)
    return BFloat16Rows(rows) if entry["dtype"] == "BF16" else rows


def write(
    path: Path, arrays: dict[str, SlicedRows], metadata: dict[str, str] | None = None
) -> None:
    """Write the arrays block by block; the format is a JSON header and the raw data."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    # The widest dtypes come first, as in the library, so that every tensor is aligned.
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    for name, rows in ordered:
        dtype = rows.dtype.newbyteorder("<")
        if dtype.str not in _NAMES:
            raise ValueError(f"{name!r} has dtype {rows.dtype}, which .safetensors does not have")
        begin, end = end, end + dtype.itemsize * math.prod(rows.shape)
        header[name] = {
            "dtype": _NAMES[dtype.str],
            "shape": list(map(int, rows.shape)),
            "data_offsets": [begin, end],
        }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for _, rows in ordered:
            dtype = rows.dtype.newbyteorder("<")
            for block in rows.raw_blocks():
                file.write(np.ascontiguousarray(block, dtype).data)
