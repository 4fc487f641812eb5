"""Feature files that are written block by block."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from skdice._rows.door import wrap
from skdice._rows.sources import SlicedRows
from skdice.io._archive import FEATURES, check_shape, clean_errors, to_path
from skdice.io._atomic import replacing
from skdice.io._open import FORMATS

# Only torch's own files of weights end in .bin.
_WRITERS: dict[str, Callable[[Path, dict[str, SlicedRows]], None]] = {
    ending: module.write for ending, module in FORMATS.items() if ending != ".bin"
}


def save_features(path: str | Path, X: Any, **beside: ArrayLike) -> None:
    """Write features to a file, block by block, and labels or ids beside them.

    The file takes its name only when it is complete: an interrupted run leaves the old
    file or none.

    Parameters
    ----------
    path : str or Path
        The file. Its ending chooses the format; see `open_features`.
    X : array or source of rows, of shape (n_samples, n_features)
        The features. They are written in their dtype under the name ``"features"``.
    **beside : array of shape (n_samples, ...)
        More arrays by name, such as ``labels=y``. A .npy or .csv file cannot hold them.

    Raises
    ------
    ValueError
        The path is empty, its ending is not known, or an array has another number of rows.
    OSError
        The file cannot be written, for example because the disk is full. Nothing is left
        behind.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from skdice.io import open_features, save_features
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "train.safetensors"
    >>> save_features(path, np.ones((3, 2), np.float16), labels=np.arange(3))
    >>> open_features(path).dtype
    dtype('float16')
    """
    path = to_path(path)
    check_ending(path)
    if FEATURES in beside:
        raise ValueError(f"{FEATURES!r} is the name of X in the file; give the other array another")
    arrays = {name: wrap(rows) for name, rows in {FEATURES: X, **beside}.items()}
    for name, rows in arrays.items():
        check_shape(name, rows.shape, rows.dtype)
        if rows.dtype.hasobject:
            raise ValueError(f"{name} has dtype {rows.dtype}: Python objects are not written")
        if rows.shape[0] != arrays[FEATURES].shape[0]:
            raise ValueError(
                f"{name} has {rows.shape[0]} rows, the features have {arrays[FEATURES].shape[0]}"
            )
    with replacing(path) as temporary, clean_errors(path, "write"):
        _WRITERS[path.suffix](temporary, arrays)


def check_ending(path: Path) -> None:
    """Raise if the ending of `path` is not that of a format."""
    if path.suffix not in _WRITERS:
        raise ValueError(f"cannot write {path}: expected an ending of {', '.join(_WRITERS)}")
