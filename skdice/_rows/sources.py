"""Sources of rows: one interface to arrays, files, tensors and clusters.

`skdice._rows.door.as_source` wraps every input of the package once. After that no module asks for
the type of the rows: reading blocks, mapping a function over them, reducing them to a few numbers,
and making an output of the same kind are methods of the source.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from sklearn.utils import column_or_1d
from tqdm import tqdm

from skdice._compat.arrays import (
    Namespace,
    from_numpy,
    has_float64,
    is_torch,
    to_host,
    to_numpy,
)

FloatArray = NDArray[np.floating[Any]]
Result = TypeVar("Result")
# A function from a source to the slice and the values of each of its blocks, in order.
BlockValues = Callable[["SlicedRows"], Iterator[tuple[slice, Any]]]

# A block takes this much memory while it is processed. It stays in cache, and it is large enough
# for a matrix product to run at its full rate.
BLOCK_BYTES = 8 << 20
MIN_BLOCK_ROWS = 512
# A selection of few rows among very many is read in pieces of this many rows.
PIECE_ROWS = 512


class Sliceable(Protocol):
    """An object that can become a source: an array, a memmap, a feature file, a Zarr array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""

    @property
    def dtype(self) -> Any:
        """NumPy dtype of the rows."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Return consecutive rows as an array, or as something that converts to one."""


class RowSource(Protocol):
    """The interface of all sources, also of those whose rows stay on the workers of a cluster.

    Attributes
    ----------
    shape : tuple of int
        Shape of the whole; the number of rows is NaN where a cluster does not know it.
    dtype : dtype
        NumPy dtype of the rows.
    weights : array of shape (n_samples,) or None
        Weights of the rows, where the user gave them.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    weights: Any

    @property
    def n_parts(self) -> int:
        """Number of parts that `reduce` calls its function for."""

    def inliers(self, y: ArrayLike | None, weights: NDArray[np.float64] | None = None) -> RowSource:
        """Return the rows that are not labelled -1 and have no weight of 0, with their weights."""

    def whole_block(
        self, *, batch_size: int | None = None, description: str = "rows", verbose: int | bool = 0
    ) -> FloatArray | None:
        """Return all rows if they fit in one block here, else None."""

    def reduce(
        self, function: Callable[[SlicedRows], Result], merge: Callable[[list[Result]], Result]
    ) -> Result:
        """Return the result of a function of the rows, merged where they lie in several parts."""

    def collect(
        self, function: BlockValues, dtype: DTypeLike | None = None, n_columns: int | None = None
    ) -> Any:
        """Return the values of all blocks as an array of the kind of the source."""

    def iterate_values(
        self, function: BlockValues, dtype: DTypeLike | None = None, n_columns: int | None = None
    ) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield the slice and the values of each block as NumPy arrays, in order."""


def scoring_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return the dtype in which rows of `dtype` are computed.

    It is float32 for half and single precision, and float64 for everything else.
    """
    dtype = np.dtype(dtype)
    single = dtype.kind == "f" and dtype.itemsize <= 4
    return np.dtype(np.float32 if single else np.float64)


def all_finite(block: FloatArray) -> bool:
    """Return whether all values of a block are finite, in one pass where none is negative.

    Read as unsigned integers, the bits of finite values without a sign are below the bits of
    infinity, and the bits of NaN are above. Values with a sign follow in the same order.
    """
    n_bits = 8 * block.dtype.itemsize
    bits = block.view(f"u{block.dtype.itemsize}")
    infinity = int(np.array(np.inf, block.dtype).view(bits.dtype))
    largest = int(bits.max())
    if largest < infinity:
        return True
    # Read as signed integers, the values without a sign are the largest.
    return largest < infinity + (1 << (n_bits - 1)) and (
        int(block.view(f"i{block.dtype.itemsize}").max()) < infinity
    )


class SlicedRows:
    """Base of the sources of which consecutive rows can be read.

    A derived class sets `shape` and `dtype` and implements `_read`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    # The library and device of the rows if results must be arrays of that library as well.
    namespace: Namespace | None = None
    # Weights of the rows, where the user gave them.
    weights: NDArray[np.float64] | None = None
    # An empty data frame with the names of the features, where a file has some.
    names_frame: Any = None
    # True if threads that compute may read their blocks themselves. Otherwise one thread reads all
    # blocks in order, because files of some formats can only be read from their beginning.
    reads_in_threads: bool = False
    # False if nothing is read ahead because other tasks keep the processors busy.
    reads_ahead: bool = True
    # Number of the first row in the whole, if these rows are a part of it.
    first: int = 0
    n_parts: int = 1

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
        # Only callers that need all rows at once, such as a shaping of another library, get here.
        return np.array(self[0 : len(self)], dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"

    def row_number(self, row: int) -> int | str:
        """Return the number under which the user knows a row."""
        return row

    def native_block(self, row_slice: slice) -> Any:
        """Return rows as an array of their own library, dtype and device."""
        return np.asarray(self[row_slice])

    def take(self, indices: NDArray[np.intp]) -> Any:
        """Return some rows as an array of their own library, if the source has a `namespace`."""
        raise NotImplementedError

    def read_block(self, row_slice: slice, *, validate: bool = True) -> FloatArray:
        """Return rows as a NumPy array in their scoring dtype, after a check of their values.

        With ``validate=False`` the caller checks that they are finite.

        Raises
        ------
        ValueError
            A value is NaN or infinite; the message names the first such row.
        """
        rows = self._read(row_slice.start, row_slice.stop)
        block: FloatArray = np.asarray(rows, dtype=scoring_dtype(self.dtype))
        if validate and block.size and not all_finite(block):
            row, column = np.argwhere(~np.isfinite(block))[0]
            value = block[row, column]
            kind = "NaN" if np.isnan(value) else f"infinity ({value})"
            raise ValueError(
                f"Input X contains {kind} in row {self.row_number(row_slice.start + int(row))}, "
                f"column {column}; every feature must be finite."
            )
        return block

    def check_values(self, values: FloatArray, row_slice: slice, name: str) -> None:
        """Raise for the first row whose logits or score are not finite.

        Parameters
        ----------
        values : ndarray of shape (n_samples,) or (n_samples, n_columns)
            Values that were computed from a block.
        row_slice : slice
            Rows of the block.
        name : str
            Name of the values for the message.

        Raises
        ------
        ValueError
            A feature, or a value of finite features, is not finite; the message names the row.
        """
        if np.isfinite(values).all():
            return
        if values.ndim == 2:
            values = np.abs(values).max(axis=1)  # NaN where there is one
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        row = row_slice.start + bad
        # Only `read_block` names a feature that is not finite, and some engines do not check the
        # features. Let it raise first.
        self.read_block(slice(row, row + 1))
        raise ValueError(
            f"the {'score' if name == 'scores' else name} of row {self.row_number(row)} is "
            f"{values[bad]}: its features, after shaping, are too large for {values.dtype}, or "
            "score_func is not finite there"
        )

    def whole_block(
        self, *, batch_size: int | None = None, description: str = "rows", verbose: int | bool = 0
    ) -> FloatArray | None:
        """Return all rows if they fit in one block, else None."""
        if len(self.slices(batch_size)) != 1:
            return None
        ((_, block),) = self.iterate_blocks(
            batch_size=batch_size, description=description, verbose=verbose
        )
        return block

    def slices(
        self,
        batch_size: int | None = None,
        row_bytes: int | None = None,
        *,
        block_bytes: int = BLOCK_BYTES,
        min_rows: int = MIN_BLOCK_ROWS,
    ) -> list[slice]:
        """Return the slices that cut the rows into blocks.

        Parameters
        ----------
        batch_size : int, default=None
            Rows of a block; None chooses them by `row_bytes`.
        row_bytes : int, default=None
            Memory that one row takes while it is processed; None takes that of its features.
        block_bytes : int
            Approximate memory of a block.
        min_rows : int
            Least number of rows of a block.
        """
        n_rows = self.shape[0]
        if n_rows <= (batch_size or min_rows):
            return [slice(0, n_rows)] if n_rows else []
        if row_bytes is None:
            row_bytes = self.shape[1] * scoring_dtype(self.dtype).itemsize
        size = batch_size or max(min_rows, block_bytes // max(1, row_bytes))
        return list(map(slice, range(0, n_rows, size), [*range(size, n_rows, size), n_rows]))

    def raw_blocks(self, batch_size: int | None = None) -> Iterator[NDArray[Any]]:
        """Yield unchecked blocks of rows of any dtype and number of axes."""
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
            True if the function takes the blocks that `native_block` returns, False if it takes
            those that `read_block` returns.
        validate : bool
            False if features need no check because the function turns a non-finite feature into
            a non-finite value. Native blocks are never checked here.
        n_threads : int
            Number of threads that call the function. If it is 1, a second thread reads the next
            block meanwhile.
        description : str
            Label of the progress bar.
        verbose : int
            Above 0, there is a progress bar on stderr.
        """
        load: Callable[[slice], Any] = (
            self.native_block if native else partial(self.read_block, validate=validate)
        )
        n_threads = min(len(slices), n_threads)
        # A single block is computed without threads and bar, because starting these takes longer
        # than scoring a single row.
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
        """Return the rows that are not labelled -1 and have no weight of 0, with their weights."""
        mask = None if y is None else self.inlier_mask(y)
        if weights is None:
            return self if mask is None else SelectedRows(self, mask)
        return SelectedRows(self, weights > 0 if mask is None else mask & (weights > 0), weights)

    def inlier_mask(self, y: ArrayLike) -> NDArray[np.bool_] | None:
        """Return the mask of the rows that are not labelled -1; None if all rows are kept."""
        labels = column_or_1d(to_host(y))
        if len(labels) != len(self):
            raise ValueError(f"y has {len(labels)} labels, but X has {len(self)} rows")
        # Labels of type string mark no outliers; labels of type object may be numbers.
        if labels.dtype.kind not in "iufbO":
            return None
        mask: NDArray[np.bool_] = np.asarray(labels != -1, dtype=np.bool_)
        return None if mask.all() else mask

    def reduce(
        self, function: Callable[[SlicedRows], Result], merge: Callable[[list[Result]], Result]
    ) -> Result:
        """Return the result of a function of the rows, which are one part, so nothing is merged."""
        return function(self)

    def collect(
        self, function: BlockValues, dtype: DTypeLike | None = None, n_columns: int | None = None
    ) -> Any:
        """Return the values of all blocks as an array of the kind of the source.

        Parameters
        ----------
        function : callable
            Function from the source to the slice and the values of each block, in order.
        dtype : dtype, default=None
            Dtype of the values; None is the scoring dtype of the rows.
        n_columns : int, default=None
            Number of columns of the values; None for one value per row.
        """
        dtype = dtype or scoring_dtype(self.dtype)
        if self.namespace is not None:
            return self._collect_native(function, np.dtype(dtype), n_columns)
        n_rows = self.shape[0]
        out = np.empty((n_rows,) if n_columns is None else (n_rows, n_columns), dtype)
        for row_slice, values in function(self):
            out[row_slice] = values
        return out

    def _collect_native(
        self, function: BlockValues, dtype: np.dtype[Any], n_columns: int | None
    ) -> Any:
        """Return the values of all blocks as an array of the library of the rows."""
        assert self.namespace is not None
        xp, device = self.namespace
        if not has_float64(self.namespace):
            dtype = np.dtype(np.float32)
        parts: list[Any] = []
        for row_slice, values in function(self):
            if isinstance(values, np.ndarray):
                values = from_numpy(values.astype(dtype, copy=False), self.namespace)
            if is_torch(values):
                # Writing the parts to one tensor takes half the memory of joining them.
                if not parts:
                    shape = (self.shape[0], *values.shape[1:])
                    parts = [xp.empty(shape, dtype=values.dtype, device=device)]
                parts[0][row_slice, ...] = values
            else:
                parts.append(values)
        return parts[0] if len(parts) == 1 else xp.concat(parts)

    def iterate_values(
        self, function: BlockValues, dtype: DTypeLike | None = None, n_columns: int | None = None
    ) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield the slice and the values of each block as NumPy arrays, in order."""
        dtype = dtype or scoring_dtype(self.dtype)
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
        Number of the chunk's first row in the whole.
    chunk : int, default=None
        Number of the chunk; given where the number of its first row is not known.
    """

    reads_ahead = False

    def __init__(self, array: NDArray[Any], first: int = 0, chunk: int | None = None) -> None:
        super().__init__(array)
        self.first, self._chunk = first, chunk

    def row_number(self, row: int) -> int | str:
        """Return the number of a row in the whole, or its place in the chunk."""
        return self.first + row if self._chunk is None else f"{row} of chunk {self._chunk}"


class SelectedRows(SlicedRows):
    """Some rows of a source, in their order.

    Parameters
    ----------
    source : SlicedRows
        All rows.
    mask : ndarray of shape (n_samples,), bool
        True for the rows that are kept.
    weights : ndarray of shape (n_samples,), float64, default=None
        Weights of all rows.
    """

    def __init__(
        self,
        source: SlicedRows,
        mask: NDArray[np.bool_],
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        self.source, self._indices = source, np.flatnonzero(mask)
        self.weights = None if weights is None else weights[mask]
        self.shape, self.dtype = (len(self._indices), *source.shape[1:]), source.dtype
        self.namespace, self.first = source.namespace, source.first
        self.reads_ahead = source.reads_ahead

    def row_number(self, row: int) -> int | str:
        """Return the number of a selected row in its source."""
        return self.source.row_number(int(self._indices[row]))

    def native_block(self, row_slice: slice) -> Any:
        """Return selected rows as an array of their own library, dtype and device."""
        if self.namespace is None:
            return self[row_slice]
        return self.source.take(self._indices[row_slice])

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        indices = self._indices[start:stop]
        if len(indices) and indices[-1] - indices[0] == len(indices) - 1:
            return np.asarray(self.source[int(indices[0]) : int(indices[-1]) + 1])
        out = np.empty((len(indices), *self.shape[1:]), self.dtype)
        # The rows are read in pieces because few of very many rows may be selected.
        for done in range(0, len(indices), PIECE_ROWS):
            piece = indices[done : done + PIECE_ROWS]
            for first in range(piece[0], piece[-1] + 1, PIECE_ROWS):
                is_read = (piece >= first) & (piece < first + PIECE_ROWS)
                if is_read.any():
                    # Read no row beyond the piece: a compressed file would have to start again
                    # from its beginning for the next piece.
                    end = min(first + PIECE_ROWS, int(piece[-1]) + 1)
                    block = np.asarray(self.source[int(first) : end])
                    out[done : done + len(piece)][is_read] = block[piece[is_read] - first]
        return out
