"""Zarr arrays and groups, by zarr-python."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from skdice._extras import import_extra
from skdice._rows import Rows, iterate_rows
from skdice.features._archive import FEATURES, Archive


def read(path: Path) -> Archive:
    """Return the numeric arrays of a Zarr store: of a group by their path, or the one it is."""
    zarr = import_extra("zarr", "zarr")
    store = zarr.open(path, mode="r")
    if isinstance(store, zarr.Array):
        return Archive(path, {FEATURES: lambda: store})
    members = {
        name: partial(store.__getitem__, name)
        for name, item in store.members(max_depth=None)
        if isinstance(item, zarr.Array) and item.dtype.kind in "fiub" and item.shape
    }
    return Archive(path, members)


def write(path: Path, arrays: dict[str, Rows]) -> None:
    """Write the arrays as a group, a chunk of rows at a time."""
    zarr = import_extra("zarr", "zarr")
    group = zarr.open_group(path, mode="w")
    for name, rows in arrays.items():
        blocks = iterate_rows(rows)
        first = next(blocks, None)
        n_rows = 1 if first is None else len(first)
        chunks = (n_rows, *(max(1, n) for n in rows.shape[1:]))
        array = group.create_array(name, shape=rows.shape, dtype=rows.dtype, chunks=chunks)
        start = 0
        while first is not None:
            array[start : start + len(first)] = first
            start += len(first)
            first = next(blocks, None)
