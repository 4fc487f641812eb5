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

from skdice._extras import import_extra
from skdice._rows import Rows, iterate_rows
from skdice._tensors import TensorRows
from skdice.features._archive import FEATURES, Archive


def read(path: Path) -> Archive:
    """Return the tensors of a torch file; those in nested dictionaries by dotted names."""
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
    members = {
        name or FEATURES: partial(TensorRows, value)
        for name, value in _flatten(content)
        if isinstance(value, torch.Tensor) and value.ndim
    }
    return Archive(path, members)


def _flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of each leaf of nested dictionaries."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, content


def write(path: Path, arrays: dict[str, Rows]) -> None:
    """Write a dictionary of tensors, through files that are mapped rather than held."""
    torch = import_extra("torch", "torch")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".skdice-") as folder:
        tensors = {}
        for position, (name, rows) in enumerate(arrays.items()):
            dtype = rows.dtype.newbyteorder("=")
            size = int(np.prod(rows.shape, dtype=np.int64))
            kind = getattr(torch, str(dtype))
            mapped = torch.empty(rows.shape, dtype=kind)
            if size:
                file = str(Path(folder) / str(position))
                mapped = torch.from_file(file, shared=True, size=size, dtype=kind)
                mapped = mapped.reshape(rows.shape)
                start = 0
                for block in iterate_rows(rows):
                    native = np.array(block, dtype)
                    mapped[start : start + len(block)] = torch.from_numpy(native)
                    start += len(block)
            tensors[name] = mapped
        torch.save(tensors, path)
        del tensors, mapped
