"""torch's .pt and .pth files: tensors alone, memory-mapped."""

from __future__ import annotations

import pickle
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._compat.extras import import_extra
from skdice._rows.sources import MAPPED_BYTES, ArrayRows, SlicedRows
from skdice.io._archive import FEATURES, Archive, clean_errors


class TorchFileRows(SlicedRows):
    """A source of rows over a tensor in a file that is mapped into memory.

    The file is mapped anew after every so many bytes: only that hands back its pages.

    Parameters
    ----------
    path : Path
        The file.
    name : str
        Of the tensor.
    tensor : torch.Tensor
        As it was loaded.
    """

    def __init__(self, path: Path, name: str, tensor: Any) -> None:
        self._rows = ArrayRows(tensor)
        self.shape, self.dtype = self._rows.shape, self._rows.dtype
        self._path, self._name, self._touched = path, name, 0

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        with clean_errors(self._path):
            rows = self._rows
            block = np.array(rows[start:stop])
            self._touched += block.nbytes
            if self._touched > MAPPED_BYTES:
                self._touched = 0
                self._rows = ArrayRows(_load(self._path)[self._name])
        return block


def read(path: Path) -> Archive:
    """Return the tensors of a torch file; those in nested dictionaries by dotted names."""
    tensors = _load(path)
    return Archive(
        path, {name: partial(TorchFileRows, path, name, each) for name, each in tensors.items()}
    )


def _load(path: Path) -> dict[str, Any]:
    """Return the tensors of a file by name, mapped."""
    torch = import_extra("torch", "torch")
    try:
        # weights_only: tensors and containers of them, no other object is ever built.
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise ValueError(
            "it is damaged, or holds more than tensors, which is refused as it could run code; of "
            "a model, write torch.save(model.state_dict(), path)"
        ) from error
    return {
        name or FEATURES: value
        for name, value in _flatten(content)
        if isinstance(value, torch.Tensor) and value.ndim
    }


def _flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of each leaf of nested dictionaries."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, content


def write(path: Path, arrays: dict[str, SlicedRows]) -> None:
    """Write a dictionary of tensors, through files that are mapped rather than held."""
    torch = import_extra("torch", "torch")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".skdice-") as folder:
        tensors = {}
        for position, (name, rows) in enumerate(arrays.items()):
            dtype = rows.dtype.newbyteorder("=")
            size = int(np.prod(rows.shape, dtype=np.int64))
            kind = getattr(torch, str(dtype), None)
            if kind is None:
                raise ValueError(f"{name!r} has dtype {rows.dtype}, which torch does not have")
            mapped = torch.empty(rows.shape, dtype=kind)
            if size:
                file = str(Path(folder) / str(position))
                mapped = torch.from_file(file, shared=True, size=size, dtype=kind)
                mapped = mapped.reshape(rows.shape)
                start = 0
                for block in rows.raw_blocks():
                    native = np.array(block, dtype)
                    mapped[start : start + len(block)] = torch.from_numpy(native)
                    start += len(block)
            tensors[name] = mapped
        torch.save(tensors, path)
        del tensors, mapped
