"""The rows and the files that a report is about, identified by digests."""

import hashlib
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from skdice._compat.arrays import is_dask
from skdice._passes.threshold import digest_of_blocks
from skdice._rows.sources import RowSource, SlicedRows
from skdice.io import open_features
from skdice.io._archive import to_path
from skdice.io._open import shard_paths


@dataclass(frozen=True)
class Digest:
    """A SHA-256 and what it was computed from."""

    # The 64 hexadecimal digits; None if `of` says why there are none.
    sha256: str | None
    of: str


@dataclass(frozen=True)
class DataSet:
    """One set of rows, and the file or the kind of object that holds them."""

    name: str
    source: str
    n_rows: int
    n_features: int
    dtype: str
    digest: Digest


def is_path(X: Any) -> bool:
    """Return whether an input is the path of a file."""
    return isinstance(X, str | PathLike)


def open_rows(X: Any, key: str | None) -> Any:
    """Return the rows of a path, or the rows themselves."""
    return open_features(to_path(X), key=key) if is_path(X) else X


def describe_rows(name: str, X: Any, rows: RowSource, n_rows: int) -> DataSet:
    """Return the facts about one set of rows: the input of the user, and the source made of it.

    A cluster may not know the number of rows before they are read.
    """
    if is_path(X):
        source, digest = str(X), digest_of_path(to_path(X))
    else:
        source, digest = f"{type(X).__module__.partition('.')[0]} {type(X).__name__}", None
    return DataSet(
        name=name,
        source=source,
        n_rows=n_rows,
        n_features=int(rows.shape[1]),
        dtype=str(rows.dtype),
        digest=digest or digest_of_values(X, rows),
    )


def digest_of_path(path: Path) -> Digest:
    """Return the digest of a file, or that of the list of files that ``sha256sum`` prints."""
    if path.is_dir() and path.suffix == ".zarr":
        files = sorted(file for file in path.rglob("*") if file.is_file())
        names = [file.relative_to(path).as_posix() for file in files]
    elif not path.is_file():
        files = shard_paths(path)
        names = [file.name for file in files]
    else:
        return Digest(_file_digest(path), "the file, by sha256sum")
    listing = hashlib.sha256()
    for name, file in zip(names, files, strict=True):
        listing.update(f"{_file_digest(file)}  {name}\n".encode())
    return Digest(
        listing.hexdigest(), f"the list that sha256sum prints for the {len(files):,} files"
    )


def digest_of_values(X: Any, rows: RowSource) -> Digest:
    """Return the digest of the values of rows, in row order and little-endian."""
    if is_dask(X) or not isinstance(rows, SlicedRows):
        return Digest(None, "not computed, because the rows lie on the workers of a Dask cluster")
    return Digest(digest_of_blocks(rows.raw_blocks()), "the values, row by row, little-endian")


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
