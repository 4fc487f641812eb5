"""One notion of a source of rows, and blocks of rows read from it ahead of their use."""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from os import PathLike
from typing import Any, Protocol, TypeGuard, TypeVar

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import DTypeLike, NDArray
from sklearn.utils import check_array
from tqdm import tqdm

from skdice._compat.arrays import is_dask, is_followed, to_numpy

FloatArray = NDArray[np.floating[Any]]

PLAIN_DTYPES = tuple(np.dtype(each) for each in (np.float16, np.float32, np.float64))
Result = TypeVar("Result")

# What one block occupies while it is processed: small enough to stay in cache, large
# enough that the matrix product runs at its full rate.
BLOCK_BYTES = 8 << 20
MIN_BLOCK_ROWS = 512
# Pages of a mapped file that may stay in this process before they are handed back.
MAPPED_BYTES = 128 << 20


class Rows(Protocol):
    """A source of rows: an array, a memmap, a feature file, an HDF5 or Zarr array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""

    @property
    def dtype(self) -> Any:
        """NumPy dtype of the rows."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Return consecutive rows as an array, or as what converts to one."""


class LazyRows:
    """Base of the sources of rows of this package: what follows from shape and slicing."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """Return consecutive rows."""
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise TypeError(
                f"rows are read by slices of consecutive ones, such as rows[0:100], got {rows!r}; "
                "np.asarray(rows) reads them all"
            )
        start, stop, _ = rows.indices(len(self))
        return self._read(start, max(start, stop))

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        """Return the rows from `start` to before `stop`, which are in bounds."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        # Only on demand, such as by a shaping of another library.
        return np.array(self[0 : len(self)], dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"


class MappedRows(LazyRows):
    """Rows of a read-only memmap that do not pile up in the memory of the process.

    Pages of a mapped file count as memory of the process for as long as they are mapped.
    They are handed back to the system now and then; it keeps them in its cache, from
    where a later look takes them again.

    Parameters
    ----------
    array : numpy.memmap
        Opened in mode "r".
    """

    def __init__(self, array: np.memmap[Any, Any]) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self._array = np.asarray(array)
        # Of NumPy's memmap, though its types do not have it.
        self._pages: mmap.mmap = array._mmap  # type: ignore[attr-defined]
        self._touched = 0

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        block = self._array[start:stop]
        self._touched += block.nbytes
        if self._touched > MAPPED_BYTES:
            self._touched = 0
            self._pages.madvise(mmap.MADV_DONTNEED)
        return block


class ArrayRows(LazyRows):
    """Rows of an array of another library than NumPy, read as NumPy arrays.

    Parameters
    ----------
    array : array
        Of any real dtype, on any device; dtypes that NumPy lacks are read as float32.

    Attributes
    ----------
    array : array
        The array itself, for engines that compute where it lies.
    xp : module
        Its array namespace, by array-api-compat.
    device : object
        Its device.
    """

    def __init__(self, array: Any) -> None:
        self.xp, self.device = array_namespace(array), device(array)
        self.array = array.detach() if hasattr(array, "detach") else array
        self.shape = tuple(array.shape)
        # One row, read by the thread that the array comes from: on a GPU that waits for the
        # work that makes the array, so that other threads may read it.
        self.dtype = to_numpy(self.array[:1, ...] if self.shape else self.array).dtype

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        return to_numpy(self.array[start:stop, ...])

    def native(self, rows: slice) -> Any:
        """Return consecutive rows as an array of the library itself."""
        return self.array[rows, ...]

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Return a new array of the same library on the same device."""
        return self.xp.empty(shape, dtype=getattr(self.xp, dtype.name), device=self.device)


class ChunkRows(LazyRows):
    """Rows in memory that are a chunk of a larger matrix, read by the thread that uses them.

    Other chunks keep the other processors busy: nothing is read ahead.

    Parameters
    ----------
    array : ndarray of shape (n_samples, n_features)
        The chunk.
    first : int, default=0
        Its first row in the whole.
    chunk : int, default=None
        Number of the chunk, where its first row in the whole is not known.
    """

    def __init__(self, array: NDArray[Any], first: int = 0, chunk: int | None = None) -> None:
        self.array, self._first, self._chunk = array, first, chunk
        self.shape, self.dtype = array.shape, array.dtype

    def number(self, row: int) -> int | str:
        """Return which row of the whole a row is, or where it is in the chunk."""
        return self._first + row if self._chunk is None else f"{row} of chunk {self._chunk}"

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        return self.array[start:stop]


class SelectedRows(LazyRows):
    """Some rows of a source, in their order.

    Parameters
    ----------
    source : source of rows
        What they are taken from.
    selected : ndarray of shape (n_samples,), bool
        True for the rows that are kept.
    """

    def __init__(self, source: Rows, selected: NDArray[np.bool_]) -> None:
        self.source, self._indices = source, np.flatnonzero(selected)
        self.shape, self.dtype = (len(self._indices), *source.shape[1:]), source.dtype

    def native(self, rows: slice) -> Any:
        """Return rows of an `ArrayRows` as an array of its library."""
        assert isinstance(self.source, ArrayRows)
        xp, array = self.source.xp, self.source.array
        return xp.take(array, xp.asarray(self._indices[rows], device=self.source.device), axis=0)

    def number(self, row: int) -> int | str:
        """Return which row of the source a selected row is."""
        return row_number(self.source, int(self._indices[row]))

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        wanted = self._indices[start:stop]
        out = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        # In pieces, as few selected rows may be spread over very many.
        for done in range(0, len(wanted), MIN_BLOCK_ROWS):
            piece = wanted[done : done + MIN_BLOCK_ROWS]
            for first in range(piece[0], piece[-1] + 1, MIN_BLOCK_ROWS):
                here = (piece >= first) & (piece < first + MIN_BLOCK_ROWS)
                if here.any():
                    # Not beyond the piece: a stream would have to start again for the next.
                    end = min(first + MIN_BLOCK_ROWS, int(piece[-1]) + 1)
                    block = np.asarray(self.source[int(first) : end])
                    out[done : done + len(piece)][here] = block[piece[here] - first]
        return out


def as_rows(X: Any) -> Rows:
    """Return X as a source of rows, without reading what is lazy.

    Arrays, and what converts to one (lists, data frames), become ndarrays; a read-only
    memmap, a feature file, an HDF5 or Zarr array stay lazy.
    """
    if isinstance(X, np.memmap):
        releasable = X.mode == "r" and hasattr(mmap, "MADV_DONTNEED")
        return MappedRows(X) if releasable else np.asarray(X)
    return X if is_lazy(X) else np.asarray(X)


def is_lazy(X: Any) -> bool:
    """Tell whether X is a source that only slicing reads, rather than an array in memory."""
    return (
        hasattr(X, "shape")
        and hasattr(X, "__getitem__")
        and isinstance(getattr(X, "dtype", None), np.dtype)
        and not hasattr(X, "iloc")  # a pandas Series
        and not isinstance(X, np.ndarray | np.generic)
        and not hasattr(X, "nnz")  # SciPy's sparse arrays, refused with scikit-learn's message
    )


def is_plain(X: Any) -> TypeGuard[FloatArray]:
    """Tell whether X is a floating-point matrix of NumPy's own, which needs no conversion.

    For a single row, scikit-learn's `check_array` and `validate_data` take longer than all
    the rest: they look for data frames, sparse matrices, masks and names.
    """
    return type(X) is np.ndarray and X.ndim == 2 and X.dtype in PLAIN_DTYPES


def check_rows(X: Any, name: str = "X") -> Rows:
    """Return X as a two-dimensional source of rows of real numbers, with at least one of each.

    Finiteness is checked block by block as the rows are read, where a bad row can be named.
    """
    if is_plain(X) and X.size:
        return X
    if is_dask(X):
        from skdice._rows.dask import dask_rows

        return dask_rows(X, name)
    if isinstance(X, str | PathLike):
        raise TypeError(f"{name} is the path {str(X)!r}: open it with skdice.io.open_features")
    if is_followed(X):
        if getattr(X, "is_sparse", False) or "sparse" in str(getattr(X, "layout", "")):
            raise TypeError(f"Sparse data was passed for {name}, but dense data is required")
        if getattr(getattr(X, "device", None), "type", None) == "meta":
            raise ValueError(f"{name} is on the device 'meta', where tensors have no values")
        X = ArrayRows(X)
    if not is_lazy(X):
        # A memmap in the right dtype comes through unread.
        array = check_array(X, dtype="numeric", ensure_all_finite=False, input_name=name)
        return as_rows(X) if isinstance(X, np.memmap) and X.dtype == array.dtype else array
    if len(X.shape) != 2:
        raise ValueError(f"{name} has shape {X.shape}, expected (n_samples, n_features)")
    for length, what in zip(X.shape, ("sample", "feature"), strict=True):
        if length == 0:
            raise ValueError(
                f"Found array with 0 {what}(s) (shape={X.shape}) while a minimum of 1 is required."
            )
    if X.dtype.kind not in "fiub":
        raise ValueError(f"{name} has dtype {X.dtype}, expected real numbers")
    rows: Rows = X
    return rows


def named(X: Any, rows: Rows) -> Any:
    """Return what has the names and the number of the features of X, for scikit-learn to look at.

    Parameters
    ----------
    X : array-like or source of rows
        What the user gave.
    rows : source of rows
        What `check_rows` made of it.
    """
    if is_dask(X) and hasattr(X, "columns"):
        return X._meta  # a data frame of pandas without rows
    return X if hasattr(X, "shape") and not is_dask(X) else rows


def scoring_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return the dtype in which rows of `dtype` are computed.

    float32 for half and single precision, float64 for everything else.
    """
    dtype = np.dtype(dtype)
    single = dtype.kind == "f" and dtype.itemsize <= 4
    return np.dtype(np.float32 if single else np.float64)


def block_slices(n_rows: int, row_bytes: int, batch_size: int | None = None) -> list[slice]:
    """Return the slices that cut `n_rows` rows into blocks.

    `batch_size` is the number of rows per block; None chooses it from `row_bytes`,
    what one row occupies while it is processed.
    """
    size = batch_size or max(MIN_BLOCK_ROWS, BLOCK_BYTES // max(1, row_bytes))
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def iterate_rows(X: Rows, batch_size: int | None = None) -> Iterator[NDArray[Any]]:
    """Yield blocks of rows as they are: of any dtype and number of axes, not validated."""
    row_bytes = X.dtype.itemsize * int(np.prod(X.shape[1:], dtype=np.int64))
    for rows in block_slices(X.shape[0], row_bytes, batch_size):
        yield np.asarray(X[rows])


def array_source(X: Rows) -> ArrayRows | None:
    """Return the array of another library that the rows, or those they are of, lie in."""
    source = X.source if isinstance(X, SelectedRows) else X
    return source if isinstance(source, ArrayRows) else None


def row_number(X: Rows, row: int) -> int | str:
    """Return the number under which the user knows a row."""
    return X.number(row) if isinstance(X, SelectedRows | ChunkRows) else row


def load_block(X: Rows, rows: slice, *, validate: bool = True) -> FloatArray:
    """Return the rows in their scoring dtype, after checking that every value is finite.

    With ``validate=False`` that is left to whoever looks at the results.

    Raises
    ------
    ValueError
        A value is NaN or infinite; the message names the first such row.
    """
    block: FloatArray = np.asarray(X[rows], dtype=scoring_dtype(X.dtype))
    if validate and block.size and not all_finite(block):
        row, column = np.argwhere(~np.isfinite(block))[0]
        value = block[row, column]
        kind = "NaN" if np.isnan(value) else f"infinity ({value})"
        raise ValueError(
            f"Input X contains {kind} in row {row_number(X, rows.start + row)}, column {column}; "
            "every feature must be finite."
        )
    return block


def iterate_blocks(
    X: Rows,
    slices: list[slice] | None = None,
    *,
    batch_size: int | None = None,
    validate: bool = True,
    description: str = "rows",
    verbose: int | bool = 0,
) -> Iterator[tuple[slice, FloatArray]]:
    """Yield the row slice and the validated block of each block of rows, in order.

    While one block is in use, a thread reads and validates the next.

    Parameters
    ----------
    X : source of rows, of shape (n_samples, n_features)
        What is read.
    slices : list of slice, default=None
        The blocks; None cuts them by `batch_size`.
    batch_size : int, default=None
        Rows per block; None chooses them.
    validate : bool
        Whether every value must be finite.
    description : str
        What the progress bar says.
    verbose : int
        Above 0, a progress bar on stderr.
    """
    if slices is None:
        row_bytes = X.shape[1] * scoring_dtype(X.dtype).itemsize
        slices = block_slices(X.shape[0], row_bytes, batch_size)
    # A single block, such as a single row, is spared the thread and the bar.
    if (len(slices) == 1 and not verbose) or _is_chunk(X):
        for rows in slices:
            yield rows, load_block(X, rows, validate=validate)
        return
    load = partial(load_block, X, validate=validate)
    blocks = _read_ahead(load, slices) if slices else iter(())
    with tqdm(total=X.shape[0], desc=description, unit=" rows", disable=not verbose) as bar:
        for rows, block in zip(slices, blocks, strict=True):
            yield rows, block
            bar.update(rows.stop - rows.start)


def _is_chunk(X: Rows) -> bool:
    return isinstance(X.source if isinstance(X, SelectedRows) else X, ChunkRows)


def _read_ahead(load: Callable[[slice], FloatArray], slices: list[slice]) -> Iterator[FloatArray]:
    with ThreadPoolExecutor(1, "skdice-read-ahead") as reader:
        ahead = reader.submit(load, slices[0])
        for following in slices[1:]:
            block = ahead.result()
            ahead = reader.submit(load, following)
            yield block
        yield ahead.result()


def all_finite(block: FloatArray) -> bool:
    """Tell whether all values of a block are finite, in one pass where none is negative.

    As unsigned integers, the bits of all finite values without a sign come before those of
    infinity, and these before NaN; all values with a sign follow, in the same order.
    """
    n_bits = 8 * block.dtype.itemsize
    bits = block.view(f"u{block.dtype.itemsize}")
    infinity = int(np.array(np.inf, block.dtype).view(bits.dtype))
    largest = int(bits.max())
    if largest < infinity:
        return True
    # With the sign as that of the integer, the values without one come last.
    return largest < infinity + (1 << (n_bits - 1)) and (
        int(block.view(f"i{block.dtype.itemsize}").max()) < infinity
    )


def map_blocks(
    function: Callable[[FloatArray], Result],
    X: Rows,
    slices: list[slice],
    *,
    n_threads: int = 1,
    validate: bool = True,
    description: str = "rows",
    verbose: int | bool = 0,
) -> Iterator[tuple[slice, Result]]:
    """Yield the row slice and ``function(block)`` of each block of rows, in order.

    So many threads work on the blocks. Rows in memory or in a mapped file are read by
    these threads; those of any other source in order, by one thread. With
    ``validate=False`` the function is to return what is not finite for rows that are not.
    """
    n_threads = min(len(slices), n_threads)
    if n_threads <= 1:
        in_order = iterate_blocks(
            X, slices, validate=validate, description=description, verbose=verbose
        )
        for rows, block in in_order:
            yield rows, function(block)
        return
    load = partial(load_block, X, validate=validate)
    tasks: Iterator[tuple[slice, Callable[[], Result]]]
    if isinstance(X, np.ndarray | MappedRows):
        tasks = ((rows, partial(_load_and_call, function, load, rows)) for rows in slices)
    else:
        blocks = zip(slices, _read_ahead(load, slices), strict=True)
        tasks = ((rows, partial(function, block)) for rows, block in blocks)
    with (
        ThreadPoolExecutor(n_threads, "skdice-blocks") as pool,
        tqdm(total=X.shape[0], desc=description, unit=" rows", disable=not verbose) as bar,
    ):
        working: deque[tuple[slice, Future[Result]]] = deque()

        def finished() -> tuple[slice, Result]:
            rows, result = working.popleft()
            bar.update(rows.stop - rows.start)
            return rows, result.result()

        for rows, task in tasks:
            working.append((rows, pool.submit(task)))
            if len(working) > n_threads:
                yield finished()
        while working:
            yield finished()


def _load_and_call(
    function: Callable[[FloatArray], Result], load: Callable[[slice], FloatArray], rows: slice
) -> Result:
    return function(load(rows))
