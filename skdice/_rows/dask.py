"""Rows that lie in the chunks of a Dask array, and stay on the workers of its cluster.

Every pass over the rows is one reduction in a tree, whose leaves look at one chunk each;
scores are a lazy array with a chunk for each chunk of rows. An object that all tasks need, such as
the masked weight, is one node of the graph, which Dask sends to each worker once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from skdice._compat.arrays import is_dask
from skdice._compat.extras import import_extra
from skdice._rows.sources import BlockValues, ChunkRows, SelectedRows, SlicedRows, scoring_dtype

Result = TypeVar("Result")

# One task of a reduction merges this many results.
MERGED = 8
# Where results are read in order, groups of chunks of this size travel to the client.
GROUP_BYTES = 128 << 20
# A group has so many chunks where their sizes are not known, and never more than the second number.
UNKNOWN_GROUP = 256
LARGEST_GROUP = 4096
# Labels with dtypes of these kinds can be -1.
NUMERIC_KINDS = "iufbO"


class DaskRows:
    """Rows of a Dask array, or those of them that are not labelled -1.

    Parameters
    ----------
    array : dask.array.Array of shape (n_samples, n_features)
        All columns lie in one chunk.
    labels : dask.array.Array of shape (n_samples,), default=None
        One chunk of labels for each chunk of rows; rows labelled -1 are left out.
    weights : dask.array.Array of shape (n_samples,), default=None
        One chunk of weights for each chunk of rows.

    Attributes
    ----------
    shape : tuple
        Shape of all rows; the number of rows is NaN where sizes of chunks are not known.
    """

    namespace = None

    def __init__(self, array: Any, labels: Any = None, weights: Any = None) -> None:
        self.array, self.labels, self.weights = array, labels, weights
        self.shape, self.dtype = array.shape, array.dtype

    @property
    def n_parts(self) -> int:
        """Number of chunks, for each of which `reduce` calls its function."""
        return int(self.array.numblocks[0])

    def inliers(self, y: ArrayLike | None, weights: NDArray[np.float64] | None = None) -> DaskRows:
        """Return the rows that are not labelled -1 and have no weight of 0, with their weights.

        Parameters
        ----------
        y : array-like or dask.array.Array or Series of shape (n_samples,), or None
            Labels. They may lie in memory only where the sizes of the chunks of rows are known.
        weights : ndarray of shape (n_samples,), default=None
            Weights of the rows.
        """
        if weights is not None:
            return self._weighted(y, weights)
        if y is None:
            return self
        da = import_extra("dask.array", "dask")
        chunks = self.array.chunks[0]
        if is_dask(y):
            labels: Any = y.to_dask_array() if hasattr(y, "to_dask_array") else y
        elif np.isnan(self.shape[0]):
            raise ValueError(
                "the chunks of X have unknown sizes, so labels in memory cannot be split like "
                "them: give y as a Dask collection with the same chunks, or call "
                "X.compute_chunk_sizes() first"
            )
        else:
            labels = np.asarray(y)
        if labels.ndim != 1:
            raise ValueError(f"y has shape {labels.shape}, expected (n_samples,)")
        known = not np.isnan([*self.shape[:1], *labels.shape]).any()
        if known and labels.shape[0] != self.shape[0]:
            raise ValueError(f"y has {labels.shape[0]} labels, but X has {self.shape[0]} rows")
        if labels.dtype.kind not in NUMERIC_KINDS:
            return self
        if not is_dask(labels):
            labels = da.from_array(labels != -1, chunks=(chunks,)) * 2 - 1
        elif known:
            labels = labels.rechunk((chunks,))
        elif labels.numblocks[0] != len(chunks):
            raise ValueError(
                f"y has {labels.numblocks[0]} chunks, but X has {len(chunks)}, some of unknown "
                "size: they must have the same chunks"
            )
        return DaskRows(self.array, labels)

    def _weighted(self, y: ArrayLike | None, weights: NDArray[np.float64]) -> DaskRows:
        """Return the rows that are not labelled -1 and have no weight of 0, with their weights."""
        da = import_extra("dask.array", "dask")
        if np.isnan(self.shape[0]):
            raise ValueError(
                "the chunks of X have unknown sizes, so sample_weight cannot be split like them: "
                "call X.compute_chunk_sizes() first"
            )
        labels = np.where(weights > 0, 1 if y is None else np.asarray(y), -1)
        selected = self.inliers(labels)
        chunked = da.from_array(weights, chunks=(self.array.chunks[0],))
        return DaskRows(selected.array, selected.labels, chunked)

    def whole_block(
        self, *, batch_size: int | None = None, description: str = "", verbose: int | bool = 0
    ) -> None:
        """Return None, because the rows are never brought to one place."""

    def reduce(
        self, function: Callable[[SlicedRows], Result], merge: Callable[[list[Result]], Result]
    ) -> Result:
        """Return the results of a function of the rows of each chunk, merged in a tree.

        Parameters
        ----------
        function : callable
            Function of the rows of one chunk, which may be empty.
        merge : callable
            Function of a list of results, which it does not change. The list may hold a single
            result.
        """
        da = import_extra("dask.array", "dask")
        n_chunks = self.array.numblocks[0]
        if n_chunks == 0:
            return function(ChunkRows(np.empty((0, self.shape[1]), self.dtype), 0, 0))
        results = self._per_chunk(
            _result_of_chunk,
            function,
            name="reduce",
            chunks=(1,) * n_chunks,
            dtype=np.dtype(object),
            n_columns=1,
        )
        merged = da.reduction(
            results,
            chunk=_unchanged,
            combine=_Merged(merge),
            aggregate=_Merged(merge),
            axis=(0, 1),
            keepdims=True,
            split_every={0: MERGED, 1: 2},
            dtype=np.dtype(object),
            meta=np.empty((0, 0), object),
        )
        ((result,),) = merged.compute()
        merged_result: Result = result
        return merged_result

    def collect(
        self, function: BlockValues, dtype: DTypeLike | None = None, n_columns: int | None = None
    ) -> Any:
        """Return a lazy array of the values of all rows, with a chunk for each chunk of rows.

        Parameters
        ----------
        function : callable
            Function from the rows of a chunk to the slice and the values of each block. Dask
            pickles it.
        dtype : dtype, default=None
            Dtype of the values; None is the scoring dtype of the rows.
        n_columns : int, default=None
            Number of columns of the values; None for one value per row.
        """
        dtype = np.dtype(dtype or scoring_dtype(self.dtype))
        chunks = self.array.chunks[0]
        if self.labels is not None:
            chunks = (np.nan,) * len(chunks)
        values = self._per_chunk(
            _values_of_chunk,
            (function, dtype, n_columns),
            name="values",
            chunks=chunks,
            dtype=dtype,
            n_columns=n_columns or 1,
        )
        if n_columns is not None:
            return values
        # The axis is dropped last, because Dask fuses only tasks that keep both axes.
        return values.map_blocks(
            _one_axis, drop_axis=1, dtype=dtype, meta=np.empty(0, dtype), token="skdice-column"
        )

    def iterate_values(
        self, function: BlockValues, dtype: DTypeLike | None = None, n_columns: int | None = None
    ) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield the slice and the values of each chunk on the client, in order."""
        stop = 0
        for values in in_order(self.collect(function, dtype, n_columns)):
            start, stop = stop, stop + len(values)
            yield slice(start, stop), values

    def _per_chunk(
        self,
        task: Callable[..., NDArray[Any]],
        argument: Any,
        *,
        name: str,
        chunks: tuple[float, ...],
        dtype: np.dtype[Any],
        n_columns: int,
    ) -> Any:
        da = import_extra("dask.array", "dask")
        layers = import_extra("dask.layers", "dask")
        rows, columns = "ij"
        known = not np.isnan(self.shape[0])
        place = (layers.ArraySliceDep if known else layers.ArrayBlockIdDep)(self.array.chunks[:1])
        beside = []
        for values in (self.labels, self.weights):
            beside += [None, None] if values is None else [values, rows]
        return da.blockwise(
            task,
            rows + columns,
            self.array,
            rows + columns,
            place,
            rows,
            *beside,
            _shared(argument),
            None,
            token=f"skdice-{name}",
            adjust_chunks={rows: chunks, columns: (n_columns,)},
            dtype=dtype,
            meta=np.empty((0, 0), dtype),
            align_arrays=False,
            rows_dtype=self.dtype,
        )


def dask_rows(X: Any, name: str = "X") -> DaskRows:
    """Return a Dask array or DataFrame as a source of rows of real numbers.

    Parameters
    ----------
    X : dask.array.Array or dask.dataframe.DataFrame
        The collection, of which nothing is computed.
    name : str
        Name of X for error messages.
    """
    if hasattr(X, "to_dask_array"):
        X = X.to_dask_array()
    if not isinstance(X, import_extra("dask.array", "dask").Array):
        raise TypeError(f"{name} is a {type(X).__name__}, expected a Dask array or DataFrame")
    if X.ndim != 2:
        raise ValueError(f"{name} has shape {X.shape}, expected (n_samples, n_features)")
    if X.dtype.kind not in "fiub":
        raise ValueError(f"{name} has dtype {X.dtype}, expected real numbers")
    if not isinstance(X._meta, np.ndarray):
        raise TypeError(
            f"the chunks of {name} are {type(X._meta).__name__}s, expected NumPy arrays: "
            f"{name}.map_blocks can convert them"
        )
    if np.isnan(X.shape[1]):
        raise ValueError(f"{name} has an unknown number of features: call compute_chunk_sizes()")
    for length, axis in zip(X.shape, ("sample", "feature"), strict=True):
        if length == 0:
            raise ValueError(
                f"Found array with 0 {axis}(s) (shape={X.shape}) while a minimum of 1 is required."
            )
    return DaskRows(X if X.numblocks[1] == 1 else X.rechunk({1: -1}))


def in_order(values: Any) -> Iterator[NDArray[Any]]:
    """Yield the chunks of a lazy array in order, with few of them on the client at a time.

    The next group of chunks is computed while the current group is read.
    """
    dask = import_extra("dask", "dask")
    groups = _groups(values)
    ahead = next(groups, None)
    if ahead is None:
        return
    # A cluster computes the next group while the client reads the current one.
    (ahead,) = dask.persist(ahead)
    for following in groups:
        current = ahead
        (ahead,) = dask.persist(following)
        yield current.compute()
        del current
    yield ahead.compute()


def _groups(values: Any) -> Iterator[Any]:
    chunks = np.asarray(values.chunks[0], dtype=np.float64)
    row_bytes = values.dtype.itemsize * int(np.prod(values.shape[1:]))
    first, size, n_bytes = 0, 0, 0.0
    for n, length in enumerate(chunks):
        added = GROUP_BYTES / UNKNOWN_GROUP if np.isnan(length) else length * row_bytes
        if size and (n_bytes + added > GROUP_BYTES or size == LARGEST_GROUP):
            yield values.blocks[first:n]
            first, size, n_bytes = n, 0, 0.0
        size, n_bytes = size + 1, n_bytes + added
    if size:
        yield values.blocks[first:]


def _shared(argument: Any) -> Any:
    """Return an object as a node of the graph, which Dask sends to each worker only once."""
    dask = import_extra("dask", "dask")
    name = f"skdice-{dask.base.tokenize(argument)}"
    return dask.delayed(argument, name=name, traverse=False)


class _Merged:
    """A step of a reduction, which merges an array of results into an array of one.

    Parameters
    ----------
    merge : callable
        Function of a list of results.
    """

    def __init__(self, merge: Callable[[list[Any]], Any]) -> None:
        self.merge = merge

    def __call__(self, results: Any, axis: Any = None, keepdims: bool = True) -> NDArray[Any]:
        return _alone(self.merge(list(np.ravel(results))))


def _unchanged(results: NDArray[Any], axis: Any = None, keepdims: bool = True) -> NDArray[Any]:
    return results


def _alone(result: Any) -> NDArray[Any]:
    """Return an array that holds one object."""
    array = np.empty((1, 1), object)
    array[0, 0] = result
    return array


def _one_axis(column: NDArray[Any]) -> NDArray[Any]:
    return column[:, 0]


def _chunk_rows(
    block: NDArray[Any],
    place: Any,
    labels: NDArray[Any] | None,
    weights: NDArray[np.float64] | None,
    dtype: np.dtype[Any],
) -> SlicedRows:
    """Return the rows of a chunk.

    Parameters
    ----------
    block : ndarray (n, n_features)
        The chunk.
    place : tuple
        One item: the slice of the rows of the chunk, or the number of the chunk where the slice
        is not known.
    labels : ndarray (n,) or None
        Rows labelled -1 are left out.
    weights : ndarray (n,) or None
        Weights of the rows.
    dtype : dtype
        Dtype of the whole array.
    """
    # Dask does not check that chunks have the dtype that their array declares.
    block = np.asarray(block, dtype)
    (position,) = place
    known = isinstance(position, slice)
    rows = ChunkRows(block, position.start) if known else ChunkRows(block, chunk=position)
    if labels is None:
        return rows
    if len(labels) != len(block):
        raise ValueError(f"a chunk of y has {len(labels)} labels for {len(block)} rows of X")
    return SelectedRows(rows, np.asarray(labels != -1, dtype=np.bool_), weights)


def _result_of_chunk(
    block: Any, place: Any, labels: Any, weights: Any, function: Any, *, rows_dtype: Any
) -> NDArray[Any]:
    return _alone(function(_chunk_rows(block, place, labels, weights, rows_dtype)))


def _values_of_chunk(
    block: Any, place: Any, labels: Any, weights: Any, function: Any, *, rows_dtype: Any
) -> NDArray[Any]:
    rows = _chunk_rows(block, place, labels, weights, rows_dtype)
    block_values, dtype, n_columns = function
    values: NDArray[Any] = rows.collect(block_values, dtype, n_columns)
    return values if values.ndim == 2 else values[:, None]
