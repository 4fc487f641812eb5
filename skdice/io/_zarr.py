"""Zarr arrays and groups, by zarr-python."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from skdice._compat.extras import import_extra
from skdice._rows.sources import Sliceable, SlicedRows
from skdice.io._archive import FEATURES, Archive
from skdice.io._library import LibraryRows

# What may unpack a chunk. One of Zarr's codecs unpickles: it would run code from the file.
_CODECS = {
    "adler32", "astype", "bitround", "blosc", "bytes", "bz2", "crc32", "crc32c", "delta",
    "fixedscaleoffset", "fletcher32", "gzip", "jenkins_lookup3", "lz4", "lzma", "packbits",
    "quantize", "sharding_indexed", "shuffle", "transpose", "vlen-utf8", "zlib", "zstd",
}  # fmt: skip


def read(path: Path) -> Archive:
    """Return the arrays of numbers or text in a Zarr store: by their path, or the one it is."""
    zarr = import_extra("zarr", "zarr")
    if not path.is_dir():
        raise ValueError("it is no Zarr store, which is a folder")
    for name in (".zarray", ".zmetadata", "zarr.json"):
        for file in path.rglob(name):
            _check_codecs(json.loads(file.read_text()))
    store = zarr.open(path, mode="r")
    if isinstance(store, zarr.Array):
        return Archive(path, {FEATURES: partial(LibraryRows, path, store)})
    members: dict[str, Any] = {}
    for name, item in store.members(max_depth=None):
        if isinstance(item, zarr.Array) and item.shape:
            if item.dtype.kind in "fiub":
                members[name] = partial(LibraryRows, path, item)
            elif item.dtype.kind in "UTO":
                members[name] = partial(_text, item)
    return Archive(path, members)


def _text(array: Any) -> Sliceable:
    return np.asarray(array[:], dtype=str)


def _check_codecs(metadata: Any) -> None:
    """Refuse metadata that names a codec not known to be harmless."""
    if isinstance(metadata, list):
        for each in metadata:
            _check_codecs(each)
    if not isinstance(metadata, dict):
        return
    codecs = [*(metadata.get("filters") or []), metadata.get("compressor")]
    codecs += [*(metadata.get("codecs") or []), *(metadata.get("index_codecs") or [])]
    for codec in codecs:
        if codec is not None:
            name = codec.get("id", codec.get("name")) if isinstance(codec, dict) else codec
            if str(name).removeprefix("numcodecs.") not in _CODECS:
                raise ValueError(f"its codec {name!r} is refused: it could run code")
    for each in metadata.values():
        _check_codecs(each)


def write(path: Path, arrays: dict[str, SlicedRows]) -> None:
    """Write the arrays as a group, a chunk of rows at a time."""
    zarr = import_extra("zarr", "zarr")
    group = zarr.open_group(path, mode="w")
    for name, rows in arrays.items():
        blocks = rows.raw_blocks()
        first = next(blocks, None)
        n_rows = 1 if first is None else len(first)
        chunks = (n_rows, *(max(1, n) for n in rows.shape[1:]))
        array = group.create_array(name, shape=rows.shape, dtype=rows.dtype, chunks=chunks)
        start = 0
        while first is not None:
            array[start : start + len(first)] = first
            start += len(first)
            first = next(blocks, None)
