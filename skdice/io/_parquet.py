"""Parquet files, by pyarrow."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._compat.extras import import_extra
from skdice._rows.sources import Sliceable, SlicedRows
from skdice.io._archive import Archive, listed
from skdice.io._pieces import chunk_rows
from skdice.io._sequential import SequentialRows


def read(path: Path) -> Archive:
    """Return the columns of a Parquet file.

    The features are its one column of lists of numbers, or else all its numeric columns, in
    their order.
    """
    pa, pq = import_extra("pyarrow", "parquet"), import_extra("pyarrow.parquet", "parquet")
    with pq.ParquetFile(path) as file:
        schema, n_rows = file.schema_arrow, file.metadata.num_rows
    if n_rows < 0:
        raise ValueError(f"its number of rows is {n_rows}")
    lists, plain, text = [], [], []
    for column in schema:
        if _is_list(pa, column.type):
            lists += [column.name] if is_number(pa, column.type.value_type) else []
        elif is_number(pa, column.type):
            plain.append(column.name)
        elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            text.append(column.name)

    def default() -> Sliceable:
        if len(lists) > 1 or not (lists or plain):
            raise ValueError(
                "it has no numeric column and not one column of lists of numbers; name a column "
                f"with key=: {listed(schema.names)}"
            )
        if lists:
            return _open_lists(path, lists[0], schema.field(lists[0]).type, n_rows)
        return _rows(path, plain, (n_rows, len(plain)), np.result_type(*dtypes.values()))

    dtypes = {name: np.dtype(schema.field(name).type.to_pandas_dtype()) for name in plain}
    members = {
        name: partial(_rows, path, [name], (n_rows,), dtype) for name, dtype in dtypes.items()
    } | {name: partial(_open_lists, path, name, schema.field(name).type, n_rows) for name in lists}
    return Archive(path, members, default, {name: partial(_text, path, name) for name in text})


def is_number(pa: Any, kind: Any) -> bool:
    """Tell whether a type of pyarrow is one of numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_list(pa: Any, kind: Any) -> bool:
    types = pa.types
    return bool(types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind))


def _open_lists(path: Path, name: str, kind: Any, n_rows: int) -> Sliceable:
    """Return a column of lists as a matrix. The first row tells the length of the lists."""
    dtype = np.dtype(kind.value_type.to_pandas_dtype())
    width = getattr(kind, "list_size", 0)
    if not width and n_rows:
        pq = import_extra("pyarrow.parquet", "parquet")
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
            batch = next(file.iter_batches(1, columns=[name]))
        width = len(_values(batch.column(0), name, 0))
    return _rows(path, [name], (n_rows, width), dtype)


def _rows(path: Path, names: list[str], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Sliceable:
    return SequentialRows(path, shape, dtype, partial(_stream, path, names, shape, dtype))


def _text(path: Path, name: str) -> Sliceable:
    """Return a column of text, such as ids, in memory."""
    pq = import_extra("pyarrow.parquet", "parquet")
    return np.asarray(pq.read_table(path, columns=[name])[name].to_pylist(), dtype=str)


def _stream(
    path: Path, names: list[str], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Iterator[NDArray[Any]]:
    """Yield the rows of some plain columns, or of one column of lists, batch by batch."""
    pq = import_extra("pyarrow.parquet", "parquet")
    # Without pre-buffering, pyarrow does not hold a row group as a whole.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
        first = 0
        for batch in file.iter_batches(chunk_rows(shape, dtype.itemsize), columns=names):
            block = np.empty((len(batch), *shape[1:]), dtype)
            for position, name in enumerate(names):
                values = _values(batch.column(name), name, first, *shape[1:])
                if len(names) == 1:
                    block[:] = values.reshape(block.shape)
                else:
                    block[:, position] = values
            first += len(batch)
            yield block


def _values(column: Any, name: str, first: int, width: int | None = None) -> NDArray[Any]:
    """Return the values of a column, those of its lists one after the other.

    `first` is the number of its first row, and `width` the length that all lists must have.
    """
    pa, pc = import_extra("pyarrow", "parquet"), import_extra("pyarrow.compute", "parquet")
    is_list = _is_list(pa, column.type)
    values, lengths = column, np.ones(len(column), np.int64)
    if is_list:
        values = column.flatten()
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    row = None
    if is_list and column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
    # A null among floats becomes NaN. NumPy has nothing to stand for one among integers.
    elif values.null_count and not pa.types.is_floating(values.type):
        value = pc.index(pc.is_null(values), True).as_py()
        row = int(np.searchsorted(np.cumsum(lengths), value, side="right"))
    if row is not None:
        raise ValueError(f"column {name!r} has a null in row {first + row}")
    if is_list and width is not None and (lengths != width).any():
        row = int(np.argmax(lengths != width))
        raise ValueError(
            f"column {name!r} has a list of {lengths[row]} values in row {first + row}, expected "
            f"{width} as in row 0"
        )
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array


def write(path: Path, arrays: dict[str, SlicedRows]) -> None:
    """Write each matrix as a fixed-size-list column and each vector as a plain one."""
    widest = max(arrays.values(), key=lambda rows: int(np.prod(rows.shape[1:])))
    n_rows = chunk_rows(widest.shape, widest.dtype.itemsize, 8 << 20)
    columns = {name: (rows.dtype, rows.shape[1:]) for name, rows in arrays.items()}
    write_batches(
        path, columns, zip_longest(*(rows.raw_blocks(n_rows) for rows in arrays.values()))
    )


def write_batches(
    path: Path,
    columns: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    batches: Iterable[tuple[NDArray[Any], ...]],
) -> int:
    """Write batches of rows to a file; return the number of rows written.

    The columns are given by the dtype and the shape of one row, () or (width,).
    """
    pa, pq = import_extra("pyarrow", "parquet"), import_extra("pyarrow.parquet", "parquet")
    fields = []
    for name, (dtype, shape) in columns.items():
        kind = pa.string() if dtype.kind == "U" else pa.from_numpy_dtype(dtype.newbyteorder("="))
        fields.append((name, pa.list_(kind, *shape) if shape else kind))
    schema = pa.schema(fields)
    n_rows = 0
    with pq.ParquetWriter(path, schema) as writer:
        for parts in batches:
            arrays = []
            for part, field in zip(parts, schema, strict=True):
                flat = pa.array(np.ascontiguousarray(part, part.dtype.newbyteorder("=")).ravel())
                is_matrix = part.ndim > 1
                arrays.append(
                    pa.FixedSizeListArray.from_arrays(flat, type=field.type) if is_matrix else flat
                )
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            n_rows += len(parts[0])
    return n_rows
