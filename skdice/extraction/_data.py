"""Batches from every usual kind of data, and what a batch holds."""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from skdice._compat.arrays import to_numpy

# Data that does not come in batches is cut into batches of this many rows.
BATCH_ROWS = 64
# The digest of a batch takes about this many values of each input.
DIGEST_VALUES = 4099
LABEL_NAMES = ("labels", "label")


class Slices:
    """Batches cut from anything that is sliced by rows; `cut` makes the batch of a slice."""

    def __init__(self, n_rows: int, batch_rows: int, cut: Callable[[slice], Any]) -> None:
        self._n_rows, self._batch_rows, self._cut = n_rows, batch_rows, cut

    def __len__(self) -> int:
        return -(-self._n_rows // self._batch_rows)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self._n_rows, self._batch_rows):
            yield self._cut(slice(start, start + self._batch_rows))


class Batch(NamedTuple):
    """Arguments of the model, and the labels."""

    inputs: list[Any]
    keywords: dict[str, Any]
    labels: NDArray[Any] | None


def batches_of(data: Any, model: nn.Module) -> Iterable[Any]:
    """Return data of any kind in batches, for `split`."""
    kind = type(data).__name__
    if isinstance(data, Tensor):
        return Slices(len(data), BATCH_ROWS, lambda rows: data[rows])
    if isinstance(data, str | bytes | Path):
        raise TypeError(
            f"data is the {kind} {str(data)!r}, expected the data itself: open the file first, "
            "with numpy.load or skdice.io.open_features"
        )
    if isinstance(data, Mapping):
        return _mapping(data)
    if hasattr(data, "column_names") and hasattr(data, "with_format"):
        return _table(data, model)
    if isinstance(data, Dataset):
        return _dataset(data)
    if hasattr(data, "iloc"):
        raise TypeError(f"data is a {kind}, expected an array: give data.to_numpy()")
    if hasattr(data, "shape") and hasattr(data, "dtype"):
        return Slices(data.shape[0], BATCH_ROWS, lambda rows: np.asarray(data[rows]))
    if not isinstance(data, Iterable):
        raise TypeError(
            f"data is a {kind}, expected a DataLoader, a data set, an array, a tensor, a mapping "
            "of arrays, or an iterable of batches"
        )
    return data


def _mapping(data: Mapping[str, Any]) -> Slices:
    """Cut a mapping of whole arrays, such as a tokenizer's output, into mappings."""
    tables = [key for key, value in data.items() if hasattr(value, "column_names")]
    if tables:
        raise TypeError(f"data is a mapping of data sets ({', '.join(tables)}): give one of them")
    columns: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, list | tuple):
            try:
                value = np.asarray(value)
            except ValueError as error:
                raise ValueError(
                    f"the rows of {key!r} have different lengths: pad them, as a tokenizer does "
                    'with padding=True, return_tensors="pt"'
                ) from error
        columns[key] = value
    lengths = {key: len(value) for key, value in columns.items() if getattr(value, "ndim", 0)}
    if not lengths or len(set(lengths.values())) > 1:
        raise ValueError(
            f"data is a mapping whose arrays have {lengths} rows, expected arrays of equally many"
        )

    def cut(rows: slice) -> dict[str, Any]:
        return {key: each[rows] if key in lengths else each for key, each in columns.items()}

    return Slices(next(iter(lengths.values())), BATCH_ROWS, cut)


def _table(data: Any, model: nn.Module) -> Slices:
    """Cut a data set of Hugging Face; the columns that the model does not take are left out."""
    if not hasattr(data, "__len__"):
        raise TypeError(
            f"data is a {type(data).__name__}, which is read as a stream: give a DataLoader of it"
        )
    parameters = inspect.signature(model.forward).parameters
    taken = [name for name in data.column_names if name in parameters]
    if not taken:
        raise TypeError(
            f"no column of the data set ({', '.join(data.column_names)}) is a parameter of the "
            f"model ({', '.join(parameters)}): rename the columns, or give a DataLoader"
        )
    taken += [name for name in data.column_names if name in LABEL_NAMES and name not in taken]
    table = data.with_format("torch", columns=taken)

    def cut(rows: slice) -> dict[str, Any]:
        batch = dict(table[rows])
        for name, column in batch.items():
            if not isinstance(column, Tensor):
                raise ValueError(
                    f"the rows of the column {name!r} do not make one tensor: pad them, or give a "
                    "DataLoader with a collate_fn that does"
                )
        return batch

    return Slices(len(data), BATCH_ROWS, cut)


def _dataset(data: Any) -> Iterable[Any]:
    """Return a loader of a torch data set, after a look at whether its samples make batches."""
    if not isinstance(data, IterableDataset) and len(data):
        sample = data[0]
        try:
            default_collate([sample])
        except TypeError as error:
            raise TypeError(
                f"a sample of the data set is a {type(sample).__name__}, which does not make a "
                "tensor: add a transform to the data set, or give a DataLoader with a collate_fn"
            ) from error
    return DataLoader(data, batch_size=BATCH_ROWS)


def split(batch: Any, model: nn.Module | None = None, device: Any = None) -> Batch:
    """Return the arguments of the model and the labels of a batch.

    A batch is inputs; or inputs and labels; or a mapping of keyword arguments, perhaps with labels.
    The floating arrays of NumPy are cast to the dtype of the model's parameters.
    """
    labels = None
    if isinstance(batch, list | tuple):
        if not 1 <= len(batch) <= 2:
            raise ValueError(
                f"a batch is a {type(batch).__name__} of {len(batch)}, expected inputs, or inputs "
                "and labels; say which are inputs and which are labels by a mapping of the model's "
                'keyword arguments and "labels", as in ({"ids": a, "mask": b, "labels": c} for '
                "a, b, c in loader), or by ((a, b), c)"
            )
        batch, labels = (*batch, None)[:2]
        if np.ndim(labels) > 1 and np.shape(labels) == getattr(batch, "shape", None):
            raise ValueError(
                f"the second item of a batch has the shape {tuple(labels.shape)} of the inputs, "
                "expected one label per row; for two inputs give a mapping of the model's keyword "
                "arguments, or ((a, b),)"
            )
    keywords: dict[str, Any] = {}
    if isinstance(batch, Mapping):
        keywords = {key: each for key, each in batch.items() if key not in LABEL_NAMES}
        if labels is None:
            labels = next((batch[key] for key in LABEL_NAMES if key in batch), None)
        batch = []
    inputs = list(batch) if isinstance(batch, list | tuple) else [batch]
    for each in inputs:
        if not isinstance(each, Tensor | np.ndarray):
            raise TypeError(
                f"a batch holds a {type(each).__name__}, expected tensors or arrays: a tensor of "
                "inputs, a pair of inputs and labels, or a mapping of keyword arguments"
            )
    parameters = () if model is None else model.parameters()
    dtype = next((each.dtype for each in parameters if each.is_floating_point()), None)
    return Batch(
        [_as_input(each, dtype, device) for each in inputs],
        {key: _as_input(each, dtype, device) for key, each in keywords.items()},
        None if labels is None else np.array(to_numpy(labels)),
    )


def _as_input(value: Any, dtype: torch.dtype | None, device: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        native = value.dtype.newbyteorder("=")
        if native.kind in "iu" and native != np.uint8:
            native = np.dtype(np.int64)  # An embedding takes no narrower token ids.
        value = torch.from_numpy(np.array(value, native))
        if dtype is not None and value.is_floating_point():
            value = value.to(dtype)
    return value.to(device) if isinstance(value, Tensor) else value


def digest_of(batch: Any, before: str) -> str:
    """Return a text that tells the batches so far from others, by a sample of their inputs."""
    inputs, keywords, _ = split(batch)
    told = hashlib.sha256(before.encode())
    for value in [*inputs, *keywords.values()]:
        if isinstance(value, Tensor):
            flat = value.detach().flatten()
            # The step is odd, so that it does not fall on one column of a width like 2,048.
            sample = to_numpy(flat[:: len(flat) // DIGEST_VALUES | 1])
            told.update(f"{tuple(value.shape)} {value.dtype}".encode())
            told.update(np.ascontiguousarray(sample).data)
    return told.hexdigest()
