"""torch's .pt and .pth files of tensors, memory-mapped."""

import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._compat.extras import import_extra
from skdice._rows.sources import SlicedRows
from skdice._rows.wrapped import MAPPED_BYTES, ArrayRows
from skdice.io._archive import FEATURES, Archive, check_size, clean_errors
from skdice.io._pieces import copy_rows


class TorchFileRows(SlicedRows):
    """A source of rows over a tensor in a file that torch maps into memory.

    The pages of a mapping count as memory of the process until it ends, and torch has no
    call that hands them back. So the file is mapped anew after every `MAPPED_BYTES`.
    """

    def __init__(self, path: Path, name: str, tensor: Any, size: int) -> None:
        self._rows = ArrayRows(tensor)
        self.shape, self.dtype = self._rows.shape, self._rows.dtype
        self._path, self._name, self._size, self._touched = path, name, size, 0

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        with clean_errors(self._path):
            # Touching a mapped page beyond the end of the file would kill the process.
            check_size(self._path.stat().st_size, self._size)
            rows = self._rows
            block = np.array(rows[start:stop])
            self._touched += block.nbytes
            if self._touched > MAPPED_BYTES:
                self._touched = 0
                self._rows = ArrayRows(_load(self._path)[self._name])
        return block


def read(path: Path) -> Archive:
    """Return the tensors of a torch file; those in nested dictionaries have dotted names."""
    size = path.stat().st_size
    tensors = _load(path).items()
    return Archive(
        path, {name: partial(TorchFileRows, path, name, tensor, size) for name, tensor in tensors}
    )


def _load(path: Path) -> dict[str, Any]:
    """Return the tensors of a file by name, mapped."""
    torch = import_extra("torch", "torch")
    try:
        # weights_only builds tensors and containers of tensors, and no other object.
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise ValueError(
            "it is damaged, or holds more than tensors, which is refused because it could run "
            "code; of a model, write torch.save(model.state_dict(), path)"
        ) from error
    return {
        name or FEATURES: value
        for name, value in _flatten(content)
        if isinstance(value, torch.Tensor) and value.ndim
    }


def _flatten(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of each leaf of nested dictionaries."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flatten(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, content


def write(path: Path, arrays: dict[str, SlicedRows]) -> None:
    """Write a dictionary of tensors, through files that are mapped rather than held in memory.

    The files lie beside `path`, in the hidden folder that `replacing` removes in any case.
    """
    torch = import_extra("torch", "torch")
    tensors = {}
    for name, rows in arrays.items():
        kind = getattr(torch, str(rows.dtype.newbyteorder("=")), None)
        if kind is None:
            raise ValueError(f"{name!r} has dtype {rows.dtype}, which torch does not have")
        tensors[name] = torch.empty(rows.shape, dtype=kind)
        if size := tensors[name].numel():
            file = path.with_name(f"{len(tensors)}.raw")
            _reserve(file, tensors[name].nbytes)
            flat = torch.from_file(str(file), shared=True, size=size, dtype=kind)
            tensors[name] = flat.reshape(rows.shape)
            copy_rows(rows, tensors[name].numpy())
    # torch's own writer hides the number of an error such as a full disk. A Python file keeps it.
    with path.open("wb") as output:
        torch.save(tensors, output)


def _reserve(file: Path, n_bytes: int) -> None:
    """Make a file of a size, so that a full disk is an OSError before the file is mapped.

    A write to a mapped page for which the disk has no room kills the process with SIGBUS.
    """
    with file.open("wb") as reserved:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(reserved.fileno(), 0, n_bytes)
        else:
            reserved.truncate(n_bytes)
