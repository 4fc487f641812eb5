"""CSV files with a header, by pyarrow."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._compat.extras import import_extra
from skdice._rows.sources import Sliceable, SlicedRows
from skdice.io._archive import FEATURES, Archive, listed
from skdice.io._parquet import is_number
from skdice.io._pieces import chunk_rows
from skdice.io._sequential import SequentialRows

# pyarrow refuses a row that is longer than a block. A row of 100,000 numbers takes 2 MB.
BLOCK_BYTES = 8 << 20


def read(path: Path) -> Archive:
    """Return the columns of a CSV file; its features are all columns of numbers, in their order.

    The first rows tell which columns hold numbers. The file is read once to count its rows.
    """
    pa = import_extra("pyarrow", "parquet")
    with _open(path) as reader:
        schema = reader.schema
    _check_header(schema.names)
    n_rows = _count_rows(path, schema.names[:1])
    if n_rows == 0:
        raise ValueError("it has a header and no rows")
    numeric = [field.name for field in schema if is_number(pa, field.type)]
    text = [field.name for field in schema if pa.types.is_string(field.type)]
    empty = [field.name for field in schema if pa.types.is_null(field.type)]
    if empty:
        raise ValueError(
            f"column {empty[0]!r} has no values in the first rows, so that nothing tells whether "
            "it holds numbers"
        )

    def default() -> Sliceable:
        if not numeric:
            raise ValueError(f"it has no column of numbers; its columns are {listed(schema.names)}")
        return _rows(path, numeric, (n_rows, len(numeric)), np.dtype(np.float64))

    members = {
        name: partial(
            _rows, path, [name], (n_rows,), np.dtype(schema.field(name).type.to_pandas_dtype())
        )
        for name in numeric
    }
    return Archive(path, members, default, {name: partial(_text, path, name) for name in text})


def write(path: Path, arrays: dict[str, SlicedRows]) -> None:
    """Write the features with the names feature_0, feature_1, ... in the header."""
    if len(arrays) > 1:
        raise ValueError(
            f".csv holds the features alone, because another column of numbers would be read as a "
            f"feature; got {', '.join(arrays)}"
        )
    rows = arrays[FEATURES]
    if len(rows.shape) != 2:
        raise ValueError(f"features has shape {rows.shape}, expected (n_samples, n_features)")
    pa, pc = import_extra("pyarrow", "parquet"), import_extra("pyarrow.csv", "parquet")
    # pyarrow writes no half precision. Single precision holds its values exactly.
    dtype = np.result_type(rows.dtype, np.float32 if rows.dtype == np.float16 else rows.dtype)
    names = [f"feature_{n}" for n in range(rows.shape[1])]
    schema = pa.schema([(name, pa.from_numpy_dtype(dtype.newbyteorder("="))) for name in names])
    with pc.CSVWriter(path, schema) as writer:
        for block in rows.raw_blocks(chunk_rows(rows.shape, dtype.itemsize)):
            columns = np.asarray(block, dtype.newbyteorder("=")).T
            batch = [pa.array(np.ascontiguousarray(column)) for column in columns]
            writer.write_batch(pa.record_batch(batch, schema=schema))


def _open(path: Path, types: dict[str, Any] | None = None, columns: list[str] | None = None) -> Any:
    """Return a reader of batches; `types` are those of columns whose first rows do not decide."""
    pc = import_extra("pyarrow.csv", "parquet")
    return pc.open_csv(
        path,
        pc.ReadOptions(block_size=BLOCK_BYTES),
        pc.ParseOptions(newlines_in_values=True),
        pc.ConvertOptions(column_types=types, include_columns=columns),
    )


def _check_header(names: list[str]) -> None:
    """Raise if the first line does not name the columns, or two columns have one name."""
    if all(map(_reads_as_number, names)):
        raise ValueError("its first line holds numbers, expected a header with names of columns")
    if len(names) == 1 and any(sign in names[0] for sign in ";\t"):
        raise ValueError(f"its first line is {names[0]!r}, expected names with commas between them")
    if "" in names:
        raise ValueError(
            f"column {names.index('')} has no name, as pandas writes the index of a table; write "
            "the file with index=False"
        )
    if len(set(names)) < len(names):
        (name, _), *_ = Counter(names).most_common(1)
        raise ValueError(f"two columns are named {name!r}, expected different names")


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _count_rows(path: Path, columns: list[str]) -> int:
    """Return the number of rows. Line breaks may be quoted, so that the lines do not tell."""
    pa = import_extra("pyarrow", "parquet")
    with _open(path, {name: pa.string() for name in columns}, columns) as reader:
        return sum(len(batch) for batch in reader)


def _rows(path: Path, names: list[str], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Sliceable:
    rows = SequentialRows(path, shape, dtype, partial(_stream, path, names, shape, dtype))
    if len(shape) == 2:
        pa = import_extra("pyarrow", "parquet")
        rows.names_frame = pa.table({name: pa.array([], pa.float64()) for name in names})
    return rows


def _stream(
    path: Path, names: list[str], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Iterator[NDArray[Any]]:
    """Yield the rows of some columns of numbers, batch by batch."""
    pa = import_extra("pyarrow", "parquet")
    # pyarrow would take the type of the first rows: a column that begins with 0 and goes on with
    # 0.5 would be an error.
    types = {name: pa.from_numpy_dtype(dtype) for name in names}
    first = 0
    with _open(path, types, names) as reader:
        for batch in reader:
            block = np.empty((len(batch), len(names)), dtype)
            for position, name in enumerate(names):
                column = batch.column(position)
                # An empty field of a number becomes NaN, which is refused where a row is scored.
                if column.null_count and dtype.kind != "f":
                    row = first + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
                    raise ValueError(f"column {name!r} is empty in row {row}")
                block[:, position] = column.to_numpy(zero_copy_only=False)
            first += len(batch)
            yield block.reshape(len(batch), *shape[1:])


def _text(path: Path, name: str) -> Sliceable:
    """Return a column of text, such as ids, in memory."""
    pa = import_extra("pyarrow", "parquet")
    with _open(path, {name: pa.string()}, [name]) as reader:
        return np.asarray([text for batch in reader for text in batch.column(0).to_pylist()], str)
