"""Parquet files, by pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._compat.extras import import_extra
from skdice._rows.sources import Sliceable, SlicedRows
from skdice.io._archive import Archive
from skdice.io._sequential import SequentialRows, chunk_rows


def read(path: Path) -> Archive:
    """Return the columns of a Parquet file.

    The features are its one fixed-size-list column, or else all its numeric columns, in
    their order.
    """
    pa, pq = import_extra("pyarrow", "parquet"), import_extra("pyarrow.parquet", "parquet")
    with pq.ParquetFile(path) as file:
        schema, n_rows = file.schema_arrow, file.metadata.num_rows
    lists = [f.name for f in schema if pa.types.is_fixed_size_list(f.type)]
    plain = [f.name for f in schema if _is_number(pa, f.type)]
    text = [
        f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)
    ]
    members = {name: partial(_open, path, schema, [name], n_rows) for name in lists + plain + text}

    def default() -> Sliceable:
        if len(lists) > 1 or not (lists or plain):
            raise ValueError(
                "it has no numeric column and not one fixed-size-list column; name a column "
                f"with key=: {', '.join(schema.names)}"
            )
        return _open(path, schema, lists or plain, n_rows, matrix=True)

    return Archive(path, members, default)


def _is_number(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _open(
    path: Path, schema: Any, names: list[str], n_rows: int, matrix: bool = False
) -> Sliceable:
    """Return the rows of some columns: (n,) for one plain column that is asked for by name."""
    types = [schema.field(name).type for name in names]
    is_list = hasattr(types[0], "list_size")
    width = types[0].list_size if is_list else len(names)
    if not is_list and not matrix and types[0].to_pandas_dtype() is np.object_:
        return _text(path, names[0])
    dtype = np.result_type(
        *(t.value_type.to_pandas_dtype() if is_list else t.to_pandas_dtype() for t in types)
    )
    shape = (n_rows, width) if is_list or matrix else (n_rows,)
    return SequentialRows(path, shape, dtype, partial(_stream, path, names, shape, dtype, is_list))


def _text(path: Path, name: str) -> Sliceable:
    """Return a column of text, such as ids, which are few enough to hold."""
    pq = import_extra("pyarrow.parquet", "parquet")
    return np.asarray(pq.read_table(path, columns=[name])[name].to_pylist(), dtype=str)


def _stream(
    path: Path, names: list[str], shape: tuple[int, ...], dtype: np.dtype[Any], is_list: bool
) -> Iterator[NDArray[Any]]:
    """Yield the rows of columns batch by batch."""
    pq = import_extra("pyarrow.parquet", "parquet")
    # Without pre-buffering a row group is decoded as it is read, not held as a whole.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
        first = 0
        for batch in file.iter_batches(chunk_rows(shape, dtype.itemsize), columns=names):
            columns = [_values(batch.column(name), name, first, is_list) for name in names]
            first += len(batch)
            if is_list:
                yield columns[0].reshape(-1, shape[1])
            elif len(shape) == 1:
                yield columns[0].astype(dtype, copy=False)
            else:
                block = np.empty((len(batch), shape[1]), dtype)
                for position, column in enumerate(columns):
                    block[:, position] = column
                yield block


def _values(column: Any, name: str, first: int, is_list: bool) -> NDArray[Any]:
    """Return the values of a column; a null is NaN in it if NumPy has one, and else refused."""
    pc = import_extra("pyarrow.compute", "parquet")
    values = column.flatten() if is_list else column
    kind = values.type.to_pandas_dtype()
    for part in (column, values):
        has_nan = part is values and np.issubdtype(kind, np.floating)
        if part.null_count and not has_nan:
            row = pc.index(pc.is_null(part), True).as_py()
            row = row // column.type.list_size if is_list and part is values else row
            raise ValueError(f"column {name!r} has a null in row {first + row}")
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array


def write(path: Path, arrays: dict[str, SlicedRows]) -> None:
    """Write each matrix as a fixed-size-list column and each vector as a plain one."""
    pa, pq = import_extra("pyarrow", "parquet"), import_extra("pyarrow.parquet", "parquet")
    fields = []
    for name, rows in arrays.items():
        is_text = rows.dtype.kind == "U"
        kind = pa.string() if is_text else pa.from_numpy_dtype(rows.dtype.newbyteorder("="))
        fields.append((name, pa.list_(kind, rows.shape[1]) if len(rows.shape) == 2 else kind))
    schema = pa.schema(fields)
    widest = max(arrays.values(), key=lambda rows: int(np.prod(rows.shape[1:])))
    n_rows = chunk_rows(widest.shape, widest.dtype.itemsize, 8 << 20)
    with pq.ParquetWriter(path, schema) as writer:
        blocks = [rows.raw_blocks(n_rows) for rows in arrays.values()]
        for parts in zip_longest(*blocks):
            columns = []
            for part, field in zip(parts, schema, strict=True):
                flat = pa.array(np.ascontiguousarray(part, part.dtype.newbyteorder("=")).ravel())
                columns.append(
                    pa.FixedSizeListArray.from_arrays(flat, type=field.type)
                    if part.ndim == 2
                    else flat
                )
            writer.write_batch(pa.record_batch(columns, schema=schema))
