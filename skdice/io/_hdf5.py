"""HDF5 files, by h5py."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from skdice._compat.extras import import_extra
from skdice._rows.sources import Sliceable, SlicedRows
from skdice.io._archive import Archive, check_size
from skdice.io._library import LibraryRows
from skdice.io._pieces import copy_rows


def read(path: Path) -> Archive:
    """Return the datasets of numbers or text in an HDF5 file; those in groups by their path."""
    h5py = import_extra("h5py", "hdf5")
    file = h5py.File(path, "r")
    members: dict[str, Any] = {}
    text: dict[str, Any] = {}

    def note(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or not item.shape:
            return
        if item.dtype.kind in "fiub":
            members[name] = partial(_open, path, item)
        elif h5py.check_string_dtype(item.dtype):
            text[name] = partial(_text, item)

    file.visititems(note)
    return Archive(path, members, text=text)


def _open(path: Path, dataset: Any) -> Sliceable:
    """Return the rows of a dataset, after a look at all the files that hold them."""
    if dataset.external:
        raise ValueError(
            f"its dataset {dataset.name} lies in other files, whose end HDF5 does not check; open "
            "the file with h5py, and pass the dataset itself"
        )
    sources = _virtual_sources(path, dataset) if dataset.is_virtual else []
    files = [(source, source.stat().st_size) for source in sources]
    # The open file counts, not the name: another file may have taken that.
    descriptor = dataset.file.id.get_vfd_handle()
    size = os.fstat(descriptor).st_size

    def check(start: int, stop: int) -> None:
        """Raise if a file was cut short or is missing, where HDF5 would read zeros."""
        check_size(os.fstat(descriptor).st_size, size)
        for source, expected in files:
            if not source.exists():
                raise ValueError(f"the file {source} of its virtual dataset is missing")
            check_size(source.stat().st_size, expected)

    return LibraryRows(path, dataset, check)


def _virtual_sources(path: Path, dataset: Any) -> list[Path]:
    """Return the other files that a virtual dataset shows; raise if a part of one is missing."""
    h5py = import_extra("h5py", "hdf5")
    files = []
    for source in dataset.virtual_sources():
        # HDF5 looks for a relative name beside the virtual dataset, then in the working folder.
        file = path if source.file_name == "." else path.resolve().parent / source.file_name
        if not file.is_file():
            file = Path(source.file_name)
        if not file.is_file():
            raise ValueError(f"the file {file} of its virtual dataset is missing")
        with h5py.File(file, "r") as opened:
            name = source.dset_name
            if name not in opened:
                raise ValueError(f"the array {name!r} of its virtual dataset is not in {file}")
            if opened[name].is_virtual or opened[name].external:
                raise ValueError(f"the array {name!r} in {file} lies in further files")
        files.append(file)
    return files


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
            # h5py takes text as Python objects only.
            copy_rows(rows, dataset, dtype=object if is_text else None)
