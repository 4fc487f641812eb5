"""HDF5 files, by h5py."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from skdice._extras import import_extra
from skdice._rows import Rows, iterate_rows
from skdice.features._archive import Archive


def read(path: Path) -> Archive:
    """Return the numeric datasets of an HDF5 file; those in groups by their path."""
    h5py = import_extra("h5py", "hdf5")
    file = h5py.File(path, "r")
    names: list[str] = []

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiub" and item.shape:
            names.append(name)

    file.visititems(note)
    return Archive(path, {name: partial(file.__getitem__, name) for name in names})


def write(path: Path, arrays: dict[str, Rows]) -> None:
    """Write the arrays as datasets, block by block."""
    h5py = import_extra("h5py", "hdf5")
    with h5py.File(path, "w") as file:
        for name, rows in arrays.items():
            dataset = file.create_dataset(name, shape=rows.shape, dtype=rows.dtype)
            start = 0
            for block in iterate_rows(rows):
                dataset[start : start + len(block)] = block
                start += len(block)
