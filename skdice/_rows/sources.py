"""Sources of rows: one interface for all that rows can come from.

`skdice._rows.door.as_source` wraps every input of the package once. After that nobody asks what the
rows are: reading blocks, mapping a function over them, reducing them to a few numbers, and making
an output of the same kind are methods of the source.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from sklearn.utils import column_or_1d
from tqdm import tqdm

from skdice._compat.arrays import (
    Namespace,
    device_of,
    from_numpy,
    has_float64,
    is_accelerator,
    is_torch,
    namespace_of,
    to_host,
    to_numpy,
)
from skdice._rows.blocks import all_finite, block_slices, scoring_dtype

FloatArray = NDArray[np.floating[Any]]
Result = TypeVar("Result")
# From a source to the slice and the values of each of its blocks, in order.
BlockValues = Callable[["SlicedRows"], Iterator[tuple[slice, Any]]]

# A mapped file may keep this much of the process's memory before its pages are given back.
MAPPED_BYTES = 128 << 20
# A selection of few rows among very many is read in pieces of this many rows.
PIECE_ROWS = 512


class Sliceable(Protocol):
    """What can become a source: an array, a memmap, a feature file, an HDF5 or Zarr array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""

    @property
    def dtype(self) -> Any:
        """NumPy dtype of the rows."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Return consecutive rows as an array, or as something that converts to one."""


class RowSource(Protocol):
    """What all sources can do, those whose rows stay on the workers of a cluster included.

    Attributes
    ----------
    shape : tuple of int
        Shape of the whole; the number of rows is NaN where a cluster does not know it.
    dtype : dtype
        NumPy dtype of the rows.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def inliers(self, y: ArrayLike | None, weights: NDArray[np.float64] | None = None) -> RowSource:
        """Return the rows that are not labelled -1 and have no weight of 0."""

    def whole_block(self, batch_size: int | None = None) -> FloatArray | None:
        """Return all rows if they fit in one block here, else None."""

    def scaled(self, weights: NDArray[np.float64]) -> RowSource:
        """Return the rows times their weights, one for each row of the original source."""

    def selected(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the values that belong to these rows, of one for each row of the original."""

    def reduce(
        self, function: Callable[[SlicedRows], Result], merge: Callable[[list[Result]], Result]
    ) -> Result:
        """Return the result of a function of the rows, merged where they lie in several parts."""

    def collect(self, function: BlockValues, dtype: DTypeLike, n_columns: int | None = None) -> Any:
        """Return the values of all blocks as an array of the kind of the source."""

    def iterate_values(
        self, function: BlockValues, dtype: DTypeLike, n_columns: int | None = None
    ) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield the slice and the values of each block as NumPy arrays, in order."""


class SlicedRows:
    """Base of the sources of which consecutive rows can be read.

    A derived class sets `shape` and `dtype` and implements `_read`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    # The library and device of the rows, where results have to be arrays of that library, too.
    namespace: Namespace | None = None
    # True if threads that compute may read their blocks themselves. Otherwise one thread reads all
    # blocks in order, as files of some formats can only be read from their beginning.
    reads_in_threads: ClassVar[bool] = False
    # False if other tasks keep the processors busy, so that nothing is read ahead.
    reads_ahead: ClassVar[bool] = True

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
        # Only what needs all rows at once, such as a shaping of another library, calls this.
        return np.array(self[0 : len(self)], dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"

    def row_number(self, row: int) -> int | str:
        """Return the number under which the user knows a row."""
        return row

    def native_block(self, row_slice: slice) -> Any:
        """Return rows as they are: an array of their own library, dtype and device."""
        return np.asarray(self[row_slice])

    def read_block(self, row_slice: slice, *, validate: bool = True) -> FloatArray:
        """Return rows as a NumPy array in their scoring dtype, every value of which is finite.

        ``validate=False`` leaves the check of the values to the caller.

        Raises
        ------
        ValueError
            A value is NaN or infinite; the message names the first such row.
        """
        block: FloatArray = np.asarray(self[row_slice], dtype=scoring_dtype(self.dtype))
        if validate and block.size and not all_finite(block):
            row, column = np.argwhere(~np.isfinite(block))[0]
            value = block[row, column]
            kind = "NaN" if np.isnan(value) else f"infinity ({value})"
            raise ValueError(
                f"Input X contains {kind} in row {self.row_number(row_slice.start + int(row))}, "
                f"column {column}; every feature must be finite."
            )
        return block

    def whole_block(self, batch_size: int | None = None) -> FloatArray | None:
        """Return all rows if they fit in one block, else None."""
        return self.read_block(slice(0, len(self))) if len(self.slices(batch_size)) == 1 else None

    def slices(self, batch_size: int | None = None, row_bytes: int | None = None) -> list[slice]:
        """Return the slices that cut the rows into blocks.

        Parameters
        ----------
        batch_size : int, default=None
            Rows of a block; None chooses them by `row_bytes`.
        row_bytes : int, default=None
            Memory that one row takes while it is processed; None takes that of its features.
        """
        if row_bytes is None:
            row_bytes = self.shape[1] * scoring_dtype(self.dtype).itemsize
        return block_slices(len(self), row_bytes, batch_size)

    def raw_blocks(self, batch_size: int | None = None) -> Iterator[NDArray[Any]]:
        """Yield blocks of rows of any dtype and number of axes as they are, unchecked."""
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        for row_slice in self.slices(batch_size, row_bytes):
            yield np.asarray(self[row_slice])

    def iterate_blocks(
        self,
        *,
        batch_size: int | None = None,
        description: str = "rows",
        verbose: int | bool = 0,
    ) -> Iterator[tuple[slice, FloatArray]]:
        """Yield the slice and the checked NumPy block of each block of rows, in order."""
        return self.map_blocks(
            lambda block: block,
            self.slices(batch_size),
            description=description,
            verbose=verbose,
        )

    def map_blocks(
        self,
        function: Callable[[Any], Result],
        slices: list[slice],
        *,
        native: bool = False,
        validate: bool = True,
        n_threads: int = 1,
        description: str = "rows",
        verbose: int | bool = 0,
    ) -> Iterator[tuple[slice, Result]]:
        """Yield the slice and ``function(block)`` of each block of rows, in order.

        Parameters
        ----------
        function : callable
            Function of one block.
        slices : list of slice
            The blocks.
        native : bool
            True if the function takes blocks of `native_block`, False for those of `read_block`.
        validate : bool
            False if the function itself returns something that is not finite for a row that is
            not; native blocks are never checked here.
        n_threads : int
            Threads that call the function. With one, a thread reads the next block meanwhile.
        description : str
            Label of the progress bar.
        verbose : int
            Above 0, there is a progress bar on stderr.
        """
        load: Callable[[slice], Any] = (
            self.native_block if native else partial(self.read_block, validate=validate)
        )
        n_threads = min(len(slices), n_threads)
        # A single block, such as a single row, is spared the threads and the bar.
        if (len(slices) == 1 and not verbose) or not self.reads_ahead:
            for row_slice in slices:
                yield row_slice, function(load(row_slice))
            return
        with tqdm(total=len(self), desc=description, unit=" rows", disable=not verbose) as progress:
            for row_slice, result in self._map_in_threads(function, load, slices, n_threads):
                yield row_slice, result
                progress.update(row_slice.stop - row_slice.start)

    def _map_in_threads(
        self,
        function: Callable[[Any], Result],
        load: Callable[[slice], Any],
        slices: list[slice],
        n_threads: int,
    ) -> Iterator[tuple[slice, Result]]:
        if n_threads > 1 and self.reads_in_threads:

            def load_and_call(row_slice: slice) -> Result:
                return function(load(row_slice))

            yield from _map_ahead(load_and_call, slices, slices, n_threads, "skdice-blocks")
            return
        blocks = (block for _, block in _map_ahead(load, slices, slices, 1, "skdice-read-ahead"))
        if n_threads > 1:
            yield from _map_ahead(function, slices, blocks, n_threads, "skdice-blocks")
        else:
            for row_slice, block in zip(slices, blocks, strict=True):
                yield row_slice, function(block)

    def inliers(
        self, y: ArrayLike | None, weights: NDArray[np.float64] | None = None
    ) -> SlicedRows:
        """Return the rows that are not labelled -1 and have no weight of 0."""
        mask = self.inlier_mask(y)
        if weights is not None and not weights.all():
            mask = weights > 0 if mask is None else mask & (weights > 0)
        return self if mask is None else SelectedRows(self, mask)

    def inlier_mask(self, y: ArrayLike | None) -> NDArray[np.bool_] | None:
        """Return which rows are not labelled -1; None where all are kept."""
        if y is None:
            return None
        labels = column_or_1d(to_host(y))
        if len(labels) != len(self):
            raise ValueError(f"y has {len(labels)} labels, but X has {len(self)} rows")
        # Strings mark no outliers; objects may be numbers.
        if labels.dtype.kind not in "iufbO":
            return None
        mask: NDArray[np.bool_] = np.asarray(labels != -1, dtype=np.bool_)
        return None if mask.all() else mask

    def scaled(self, weights: NDArray[np.float64]) -> SlicedRows:
        """Return the rows times their weights, one for each row of the original source."""
        return ScaledRows(self, self.selected(weights))

    def selected(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the values that belong to these rows, of one for each row of the original."""
        return values

    def reduce(
        self, function: Callable[[SlicedRows], Result], merge: Callable[[list[Result]], Result]
    ) -> Result:
        """Return the result of a function of the rows, which lie in one part here."""
        return function(self)

    def collect(self, function: BlockValues, dtype: DTypeLike, n_columns: int | None = None) -> Any:
        """Return the values of all blocks as an array of the kind of the source.

        Parameters
        ----------
        function : callable
            From the source to the slice and the values of each block, in order.
        dtype : dtype
            Dtype of the values.
        n_columns : int, default=None
            Number of columns of the values; None for one value per row.
        """
        shape = (len(self),) if n_columns is None else (len(self), n_columns)
        return self.assemble(function(self), shape, np.dtype(dtype))

    def assemble(
        self, blocks: Iterable[tuple[slice, Any]], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Any:
        """Return an array of the kind of the source with the values of all blocks."""
        out = np.empty(shape, dtype)
        for row_slice, values in blocks:
            out[row_slice] = values
        return out

    def iterate_values(
        self, function: BlockValues, dtype: DTypeLike, n_columns: int | None = None
    ) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield the slice and the values of each block as NumPy arrays, in order."""
        for row_slice, values in function(self):
            yield row_slice, to_numpy(values).astype(dtype, copy=False)


def _map_ahead(
    function: Callable[[Any], Result],
    slices: list[slice],
    arguments: Iterable[Any],
    n_threads: int,
    name: str,
) -> Iterator[tuple[slice, Result]]:
    """Yield each slice with ``function(argument)``, which threads compute ahead, in order."""
    with ThreadPoolExecutor(n_threads, name) as pool:
        waiting: deque[tuple[slice, Future[Result]]] = deque()
        for row_slice, argument in zip(slices, arguments, strict=True):
            waiting.append((row_slice, pool.submit(function, argument)))
            if len(waiting) > n_threads:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


class NumpyRows(SlicedRows):
    """Rows of a NumPy array in memory.

    Parameters
    ----------
    array : ndarray of shape (n_samples, ...)
        The rows.
    """

    reads_in_threads = True

    def __init__(self, array: NDArray[Any]) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __sizeof__(self) -> int:
        # A cluster decides by size whether to send an object once or with every task.
        return object.__sizeof__(self) + self.array.nbytes

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        return self.array[start:stop]


class ChunkRows(NumpyRows):
    """Rows in memory that are a chunk of a larger matrix; one task of a cluster works on them.

    Parameters
    ----------
    array : ndarray of shape (n_samples, n_features)
        The chunk.
    first : int, default=0
        Number of its first row in the whole.
    chunk : int, default=None
        Number of the chunk, where the number of its first row is not known.
    """

    reads_ahead = False

    def __init__(self, array: NDArray[Any], first: int = 0, chunk: int | None = None) -> None:
        super().__init__(array)
        self._first, self._chunk = first, chunk

    def row_number(self, row: int) -> int | str:
        """Return the number of a row in the whole, or its place in the chunk."""
        return self._first + row if self._chunk is None else f"{row} of chunk {self._chunk}"


class MappedRows(SlicedRows):
    """Rows of a read-only memmap that do not pile up in the memory of the process.

    The pages of a mapped file count as memory of the process as long as they are mapped. They
    are given back to the system now and then. The system keeps them in its cache, where a later
    read finds them again.

    Parameters
    ----------
    array : numpy.memmap
        Opened in mode "r".
    """

    reads_in_threads = True

    def __init__(self, array: np.memmap[Any, Any]) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self._array = np.asarray(array)
        # NumPy's memmap has this attribute, though its types do not.
        self._pages: mmap.mmap = array._mmap  # type: ignore[attr-defined]
        self._touched = 0

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        block = self._array[start:stop]
        self._touched += block.nbytes
        if self._touched > MAPPED_BYTES:
            self._touched = 0
            self._pages.madvise(mmap.MADV_DONTNEED)
        return block


class ForeignRows(SlicedRows):
    """Rows of an object of another library that has a shape, a NumPy dtype and slicing.

    Parameters
    ----------
    source : object
        An h5py dataset or a Zarr array, for example.
    """

    def __init__(self, source: Any) -> None:
        self.source, self.shape, self.dtype = source, tuple(source.shape), source.dtype

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        return np.asarray(self.source[start:stop])


class ArrayRows(SlicedRows):
    """Rows of an array of another library than NumPy, read as NumPy arrays.

    Parameters
    ----------
    array : array
        Any real dtype, on any device; dtypes that NumPy lacks are read as float32.
    """

    def __init__(self, array: Any) -> None:
        self.namespace = Namespace(namespace_of(array), device_of(array))
        self.array = array.detach() if hasattr(array, "detach") else array
        self.shape = tuple(array.shape)
        # This reads one row in the thread that made the array. On a GPU that waits for the work
        # that makes the array, so that other threads may read it afterwards.
        self.dtype = to_numpy(self.array[:1, ...] if self.shape else self.array).dtype

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        return to_numpy(self.array[start:stop, ...])

    def native_block(self, row_slice: slice) -> Any:
        """Return rows as an array of their library."""
        return self.array[row_slice, ...]

    def assemble(
        self, blocks: Iterable[tuple[slice, Any]], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Any:
        """Return an array of the library of the rows, on their device."""
        assert self.namespace is not None
        xp = self.namespace.xp
        if not has_float64(self.namespace):
            dtype = np.dtype(np.float32)
        parts = ((row_slice, self._native_values(values, dtype)) for row_slice, values in blocks)
        if is_torch(self.array):
            # Tensors can be written to, which takes half the memory of joining them.
            out = xp.empty(shape, dtype=getattr(xp, dtype.name), device=self.namespace.device)
            for row_slice, values in parts:
                out[row_slice, ...] = values
            return out
        return xp.concat([values for _, values in parts])

    def _native_values(self, values: Any, dtype: np.dtype[Any]) -> Any:
        assert self.namespace is not None
        if isinstance(values, np.ndarray):
            return from_numpy(values.astype(dtype, copy=False), self.namespace)
        return values


class SelectedRows(SlicedRows):
    """Some rows of a source, in their order.

    Parameters
    ----------
    source : SlicedRows
        All rows.
    mask : ndarray of shape (n_samples,), bool
        True for the rows that are kept.
    """

    def __init__(self, source: SlicedRows, mask: NDArray[np.bool_]) -> None:
        self.source, self._indices = source, np.flatnonzero(mask)
        self.shape, self.dtype = (len(self._indices), *source.shape[1:]), source.dtype
        self.namespace = source.namespace
        # An instance takes the place of the class attribute.
        self.reads_ahead = source.reads_ahead  # type: ignore[misc]

    def row_number(self, row: int) -> int | str:
        """Return the number of a selected row in its source."""
        return self.source.row_number(int(self._indices[row]))

    def selected(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the values that belong to the selected rows."""
        selected: NDArray[Any] = values[self._indices]
        return selected

    def native_block(self, row_slice: slice) -> Any:
        """Return selected rows as they are."""
        if not isinstance(self.source, ArrayRows) or self.namespace is None:
            return self[row_slice]
        indices = self.namespace.xp.asarray(self._indices[row_slice], device=self.namespace.device)
        return self.namespace.xp.take(self.source.array, indices, axis=0)

    def assemble(
        self, blocks: Iterable[tuple[slice, Any]], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Any:
        """Return an array of the kind of the source."""
        return self.source.assemble(blocks, shape, dtype)

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        wanted = self._indices[start:stop]
        out = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        # Few selected rows may be spread over very many, so that they are read in pieces.
        for done in range(0, len(wanted), PIECE_ROWS):
            piece = wanted[done : done + PIECE_ROWS]
            for first in range(piece[0], piece[-1] + 1, PIECE_ROWS):
                here = (piece >= first) & (piece < first + PIECE_ROWS)
                if here.any():
                    # A stream read beyond the piece would have to start again for the next one.
                    end = min(first + PIECE_ROWS, int(piece[-1]) + 1)
                    block = np.asarray(self.source[int(first) : end])
                    out[done : done + len(piece)][here] = block[piece[here] - first]
        return out


class ScaledRows(SlicedRows):
    """Rows times a weight for each row, in float64.

    Parameters
    ----------
    source : SlicedRows
        The rows.
    weights : ndarray of shape (n_samples,), float64
        Their weights.
    """

    def __init__(self, source: SlicedRows, weights: NDArray[np.float64]) -> None:
        self.source, self._weights = source, weights
        self.shape, self.dtype = source.shape, np.dtype(np.float64)
        # An instance takes the place of the class attribute.
        self.reads_ahead = source.reads_ahead  # type: ignore[misc]

    def row_number(self, row: int) -> int | str:
        """Return the number under which the user knows a row."""
        return self.source.row_number(row)

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        block = np.asarray(self.source[start:stop], np.float64)
        scaled: NDArray[Any] = block * self._weights[start:stop, np.newaxis]
        return scaled


def on_accelerator(rows: SlicedRows) -> bool:
    """Tell whether the rows lie on a device that sums them faster than the host."""
    return rows.namespace is not None and is_accelerator(rows.namespace)
