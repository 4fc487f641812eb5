"""Feature files opened by their ending, one file or many files as one matrix."""

import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from skdice._rows.sources import Sliceable
from skdice.io import _csv, _hdf5, _npy, _npz, _parquet, _safetensors, _torch, _zarr
from skdice.io._archive import Archive, clean_errors, require_file, to_path
from skdice.io._shards import ShardedRows

# The module of each format has a function `read`, and a function `write` for `save_features`
# (`skdice.io._save`). The command repeats the endings that are written in
# `skdice.cli._argument_types`, and a test compares them.
FORMATS: dict[str, Any] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".zarr": _zarr,
    ".parquet": _parquet,
    ".csv": _csv,
    ".pt": _torch,
    ".pth": _torch,
    ".bin": _torch,
}

# The endings that are read in a folder. A .bin or .csv file there may be anything, such as a list
# of labels; a pattern such as 'part-*.csv' reads them.
_SHARDS = [ending for ending in FORMATS if ending not in (".bin", ".csv")]


def open_archive(path: Path) -> Archive:
    """Return the arrays in a file; raise if its ending is not known or it is damaged."""
    if path.suffix not in FORMATS:
        raise ValueError(f"cannot read {path}: expected an ending of {_known()}")
    if path.suffix != ".zarr" or not path.is_dir():
        require_file(path)
    with clean_errors(path):
        archive: Archive = FORMATS[path.suffix].read(path)
    return archive


def open_features(path: str | Path, *, key: str | None = None) -> Sliceable:
    """Open a feature file, or a folder of them, without reading it into memory.

    Parameters
    ----------
    path : str or Path
        A .npy, .npz, .safetensors, .h5 or .hdf5, .zarr, .parquet, .csv, .pt or .pth file. A
        folder, or a pattern with ``*``, is read as one matrix: the rows of its files
        follow each other in the sorted order of the file names (so number the files with
        leading zeros). A folder is read without its .csv files; a pattern reads them. A
        compressed .npz, a .parquet or a .csv file is read from its beginning again if its rows
        are asked for out of order. A .csv file is also read once to count its rows.
    key : str, default=None
        Name of the array in the file: of the features, or of labels or ids stored beside
        them. None takes the only array, the array named ``"features"``, or the only
        two-dimensional array; in a Parquet file it takes the one column of lists of
        numbers, or else all numeric columns; in a .csv file it takes all numeric columns, in
        float64, whose names in the first line become the names of the features: leave out
        labels and numbers of rows. Arrays in groups are named ``"group/name"``
        in HDF5 and Zarr, arrays in nested dictionaries ``"dict.name"`` in torch files.
        Text is read only by its key.

    Returns
    -------
    source of rows
        An object with ``shape``, ``dtype`` and slicing of rows into arrays. A detector takes
        it wherever it takes an array. bfloat16 is read as float32. The slices of a mapped
        file (.npy, stored .npz, .safetensors) are views of the file, not copies.

    Raises
    ------
    ValueError
        The path is empty or is not a file, the ending is not known, the file is damaged or
        of another kind, it holds Python objects, the shards do not fit together, several
        arrays could be the features, or none has that name (the message lists the names).
        Reading a slice raises it, too, if the file was cut short after it was opened.
    FileNotFoundError
        There is no such file, or no file matches the pattern.
    ImportError
        The library for the format is not installed; the message names the extra.

    Notes
    -----
    Opening never executes code from a file: object arrays and pickles are refused, and
    torch files are read with ``weights_only``. HDF5 and Zarr files are decoded by native
    libraries that a file made for the purpose can crash: open them only if you trust them.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from skdice.io import open_features, save_features
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> save_features(folder / "test.npz", np.ones((3, 2)), labels=np.array([0, 1, 1]))
    >>> open_features(folder / "test.npz").shape
    (3, 2)
    >>> np.asarray(open_features(folder / "test.npz", key="labels")[:2])
    array([0, 1])
    """
    path = to_path(path)
    paths = shard_paths(path)
    if paths == [path]:
        return open_shard(path, key)
    return ShardedRows(paths, partial(open_shard, key=key))


def shard_paths(path: Path) -> list[Path]:
    """Return the files of a folder or a pattern in order, or the one file itself."""
    is_shards = path.is_dir() and path.suffix != ".zarr"
    if path.suffix in FORMATS and not is_shards and (path.exists() or not _is_pattern(path)):
        return [path]
    if path.is_dir():
        shards = [file for file in path.iterdir() if is_shard(file)]
    elif _is_pattern(path):
        shards = list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    elif path.exists():
        raise ValueError(
            f"cannot read {path}: expected a folder, or a file that ends in {_known()}"
        )
    else:
        raise FileNotFoundError(f"no such file: {path}")
    shards = sorted(file for file in shards if not file.name.startswith("."))
    if not shards:
        raise FileNotFoundError(
            f"no feature files in {path}: expected some that end in {', '.join(_SHARDS)}"
        )
    by_number = sorted(shards, key=lambda file: [int(n) for n in re.findall(r"\d+", file.name)])
    if by_number != shards and len({re.sub(r"\d+", "", file.name) for file in shards}) == 1:
        warnings.warn(
            f"the rows of {path} are in the sorted order of the file names, {shards[0].name}, "
            f"{shards[1].name}, ...: number the files with leading zeros to have another",
            UserWarning,
            stacklevel=3,
        )
    return shards


def open_shard(path: Path, key: str | None) -> Sliceable:
    """Return the rows of one file."""
    return open_archive(path).open(key)


def is_shard(path: Path) -> bool:
    """Tell by its ending whether a file in a folder is read as a shard."""
    return path.suffix in _SHARDS


def _is_pattern(path: Path) -> bool:
    return any(sign in str(path) for sign in "*?[")


def _known() -> str:
    return ", ".join(FORMATS)
