"""Zarr arrays and groups, by zarr-python."""

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from skdice._compat.extras import import_extra
from skdice._rows.sources import BLOCK_BYTES, Sliceable, SlicedRows
from skdice.io._archive import FEATURES, Archive
from skdice.io._library import LibraryRows
from skdice.io._pieces import chunk_rows, copy_rows

# The codecs that may unpack a chunk. Pickle is not among them because it runs code from the
# file, and blosc is not because its decoder crashes the process on a damaged chunk.
_CODECS = {
    "adler32", "astype", "bitround", "bytes", "bz2", "crc32", "crc32c", "delta",
    "fixedscaleoffset", "fletcher32", "gzip", "jenkins_lookup3", "lz4", "lzma", "packbits",
    "quantize", "sharding_indexed", "shuffle", "transpose", "vlen-utf8", "zlib", "zstd",
}  # fmt: skip
_METADATA = {".zarray", ".zmetadata", "zarr.json"}


def read(path: Path) -> Archive:
    """Return the arrays of numbers or text in a Zarr store: by their path, or the only array."""
    zarr = import_extra("zarr", "zarr")
    if not path.is_dir():
        raise ValueError("it is not a Zarr store, which is a folder")
    files = set()
    for file in path.rglob("*"):
        if file.is_file():
            files.add(file.relative_to(path).as_posix())
            if file.name in _METADATA:
                _check_codecs(json.loads(file.read_text()))
        elif not file.is_dir():
            raise ValueError(f"{file.relative_to(path)} in it is not a file")
    store = zarr.open(path, mode="r")
    if isinstance(store, zarr.Array):
        return Archive(path, {FEATURES: partial(_open, path, files, store)})
    members: dict[str, Any] = {}
    text: dict[str, Any] = {}
    for name, item in store.members(max_depth=None):
        if isinstance(item, zarr.Array) and item.shape:
            if item.dtype.kind in "fiub":
                members[name] = partial(_open, path, files, item)
            elif item.dtype.kind in "UTO":
                text[name] = partial(_text, item)
    return Archive(path, members, text=text)


def _open(path: Path, files: set[str], array: Any) -> Sliceable:
    """Return the rows of an array whose chunks are among `files`."""
    grid = array.shards or array.chunks
    columns = [range(-(-n // size)) for n, size in zip(array.shape[1:], grid[1:], strict=True)]

    def check(start: int, stop: int) -> None:
        """Raise if a chunk is missing that was there when the store was opened.

        Zarr reads the fill value for it, as it does for chunks that were never written.
        """
        rows = range(start // grid[0], -(-stop // grid[0]))
        for place in itertools.product(rows, *columns):
            chunk = "/".join(filter(None, (array.path, array.metadata.encode_chunk_key(place))))
            if chunk in files and not (path / chunk).exists():
                raise ValueError(f"its chunk {chunk} was removed after it was opened")

    return LibraryRows(path, array, check)


def _text(array: Any) -> Sliceable:
    return np.asarray(array[:], dtype=str)


def _check_codecs(metadata: Any) -> None:
    """Refuse metadata that names a codec which is not known to be harmless."""
    if isinstance(metadata, list):
        for part in metadata:
            _check_codecs(part)
    if not isinstance(metadata, dict):
        return
    codecs = [*(metadata.get("filters") or []), metadata.get("compressor")]
    codecs += [*(metadata.get("codecs") or []), *(metadata.get("index_codecs") or [])]
    for codec in filter(None, codecs):
        name = codec.get("id", codec.get("name")) if isinstance(codec, dict) else codec
        if str(name).removeprefix("numcodecs.") not in _CODECS:
            raise ValueError(
                f"its codec {name!r} is refused because it could run code or crash; if you trust "
                "the store, open it with zarr.open, and pass the array itself"
            )
    for part in metadata.values():
        _check_codecs(part)


def write(path: Path, arrays: dict[str, SlicedRows]) -> None:
    """Write the arrays as a group, a chunk of rows at a time."""
    zarr = import_extra("zarr", "zarr")
    group = zarr.open_group(path, mode="w")
    for name, rows in arrays.items():
        n_rows = min(
            chunk_rows(rows.shape, rows.dtype.itemsize, BLOCK_BYTES), max(1, rows.shape[0])
        )
        chunks = (n_rows, *(max(1, n) for n in rows.shape[1:]))
        array = group.create_array(name, shape=rows.shape, dtype=rows.dtype, chunks=chunks)
        copy_rows(rows, array, batch_size=n_rows)
