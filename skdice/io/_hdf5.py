"""HDF5 files, by h5py."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from skdice._compat.extras import import_extra
from skdice._rows.sources import Sliceable, SlicedRows
from skdice.io._archive import Archive
from skdice.io._library import LibraryRows


def read(path: Path) -> Archive:
    """Return the datasets of numbers or text in an HDF5 file; those in groups by their path."""
    h5py = import_extra("h5py", "hdf5")
    file = h5py.File(path, "r")
    members: dict[str, Any] = {}

    def note(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or not item.shape:
            return
        if item.dtype.kind in "fiub":
            members[name] = partial(LibraryRows, path, item)
        elif h5py.check_string_dtype(item.dtype):
            # Ids, which are few enough to hold.
            members[name] = partial(_text, item)

    file.visititems(note)
    return Archive(path, members)


def _text(dataset: Any) -> Sliceable:
    return np.asarray(dataset.asstr()[:], dtype=str)


def write(path: Path, arrays: dict[str, SlicedRows]) -> None:
    """Write the arrays as datasets, block by block."""
    h5py = import_extra("h5py", "hdf5")
    with h5py.File(path, "w") as file:
        for name, rows in arrays.items():
            is_text = rows.dtype.kind == "U"
            dtype = h5py.string_dtype() if is_text else rows.dtype
            dataset = file.create_dataset(name, shape=rows.shape, dtype=dtype)
            start = 0
            for block in rows.raw_blocks():
                dataset[start : start + len(block)] = block.astype(object) if is_text else block
                start += len(block)
