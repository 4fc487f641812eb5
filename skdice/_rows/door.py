"""The door: every input of the package becomes one of its own sources of rows here, once."""

import mmap
from os import PathLike
from typing import Any

import numpy as np
from sklearn.utils import check_array

from skdice._compat.arrays import is_dask, is_narrow_float, keeps_namespace
from skdice._rows.sources import NumpyRows, RowSource, SlicedRows
from skdice._rows.wrapped import ArrayRows, ForeignRows, MappedRows, NarrowRows

PLAIN_DTYPES = tuple(np.dtype(dtype) for dtype in (np.float16, np.float32, np.float64))
NOT_IN_MEMORY = (
    "the rows of a Dask collection stay on its workers, but here they are needed in memory: "
    "give a part of them, such as X[:10000].compute(). The detectors take Dask collections in "
    "fit, partial_fit and calibrate and in all methods that score"
)


def as_source(X: Any, name: str = "X") -> RowSource:
    """Return X as a source of at least one row and one feature of real numbers.

    Nothing lazy is read. Finite values are checked block by block as the rows are read, where a
    bad row can be named.

    Parameters
    ----------
    X : array-like or source of rows, of shape (n_samples, n_features)
        NumPy array or memmap, list, data frame, feature file, h5py or Zarr array, tensor, Dask
        array or data frame.
    name : str
        Name of X for error messages.
    """
    # For a single row, scikit-learn's validation takes longer than all the rest, because it looks
    # for data frames, sparse matrices, masks and names.
    if type(X) is np.ndarray and X.ndim == 2 and X.dtype in PLAIN_DTYPES and X.size:
        return NumpyRows(X)
    if is_dask(X):
        from skdice._rows.dask import dask_rows

        return dask_rows(X, name)
    if isinstance(X, str | PathLike):
        raise TypeError(f"{name} is the path {str(X)!r}: open it with skdice.io.open_features")
    if keeps_namespace(X):
        if getattr(X, "is_sparse", False) or "sparse" in str(getattr(X, "layout", "")):
            raise TypeError(f"Sparse data was passed for {name}, but dense data is required")
        if getattr(getattr(X, "device", None), "type", None) == "meta":
            raise ValueError(f"{name} is on the device 'meta', where tensors have no values")
        return check_shape_and_dtype(ArrayRows(X), name)
    if _is_lazy(X):
        return check_shape_and_dtype(wrap(X), name)
    if isinstance(X, np.ndarray) and is_narrow_float(X.dtype):
        return check_shape_and_dtype(wrap(X), name)  # scikit-learn takes it for bytes
    # NaN is not looked for here, because `read_block` checks each block as it is read.
    # check_array returns a memmap of a suitable dtype as it is, without reading it.
    array = check_array(X, dtype="numeric", ensure_all_finite=False, input_name=name)
    return wrap(X if isinstance(X, np.memmap) and X.dtype == array.dtype else array)


def as_sliced_source(X: Any, name: str = "X") -> SlicedRows:
    """Return X as a source of which slices can be read; refuse rows that lie on a cluster."""
    return require_slicing(as_source(X, name))


def require_slicing(source: RowSource) -> SlicedRows:
    """Return a source of which slices can be read; refuse one whose rows lie on a cluster."""
    if not isinstance(source, SlicedRows):
        raise TypeError(NOT_IN_MEMORY)
    return source


def wrap(X: Any) -> SlicedRows:
    """Return X as a source of rows of any dtype and number of axes, without reading or checks."""
    if isinstance(X, SlicedRows):
        return X
    source: SlicedRows
    if isinstance(X, np.memmap) and X.mode == "r" and hasattr(mmap, "MADV_DONTNEED"):
        source = MappedRows(X)
    else:
        source = ForeignRows(X) if _is_lazy(X) else NumpyRows(np.asarray(X))
    return NarrowRows(source) if is_narrow_float(source.dtype) else source


def check_shape_and_dtype(source: SlicedRows, name: str) -> SlicedRows:
    """Return a source after checking that it is a matrix of real numbers that is not empty."""
    if len(source.shape) != 2:
        raise ValueError(f"{name} has shape {source.shape}, expected (n_samples, n_features)")
    for length, axis in zip(source.shape, ("sample", "feature"), strict=True):
        if length == 0:
            raise ValueError(
                f"Found array with 0 {axis}(s) (shape={source.shape}) while a minimum of 1 is "
                "required."
            )
    if source.dtype.kind not in "fiub":
        raise ValueError(f"{name} has dtype {source.dtype}, expected real numbers")
    return source


def feature_names_source(X: Any, source: RowSource) -> Any:
    """Return an object with the names and the number of the features of X, for scikit-learn.

    Parameters
    ----------
    X : array-like or source of rows
        The input of the user.
    source : RowSource
        The source that `as_source` made of it.
    """
    if hasattr(X, "__dask_graph__"):
        return X._meta if hasattr(X, "columns") else source
    frame = getattr(source, "names_frame", None)
    if frame is not None:
        return frame
    return X if hasattr(X, "shape") else source


def _is_lazy(X: Any) -> bool:
    """Return whether the rows of X are read by slicing because X is not an array in memory."""
    return isinstance(X, SlicedRows) or (
        hasattr(X, "shape")
        and hasattr(X, "__getitem__")
        and isinstance(getattr(X, "dtype", None), np.dtype)
        and not hasattr(X, "iloc")  # a pandas Series
        and not isinstance(X, np.ndarray | np.generic)
        and not hasattr(X, "nnz")  # SciPy's sparse arrays, which scikit-learn refuses
    )
