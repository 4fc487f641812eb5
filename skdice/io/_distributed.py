"""Feature files as a Dask array whose chunks are read by the workers."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._compat.extras import import_extra
from skdice.io._archive import to_path
from skdice.io._open import open_shard, shard_paths
from skdice.io._sequential import SequentialRows

# Size of the rows of a chunk. A file that can only be read from its beginning is one chunk.
CHUNK_BYTES = 128 << 20


def distributed_features(path: str | Path, key: str | None = None) -> Any:
    """Return a feature file, or a folder of them, as a Dask array that the workers read.

    The client opens nothing: the path must name the files on the workers. Each chunk is a block of
    rows of one file, of known size.
    """
    dask, da = import_extra("dask", "dask"), import_extra("dask.array", "dask")
    path = to_path(path).absolute()
    # One worker looks at the headers, and looks again at every call because files change.
    files, messages = dask.delayed(_describe, pure=False)(path, key).compute()
    for message in messages:
        warnings.warn(message, UserWarning, stacklevel=2)
    return da.from_array(
        files,
        chunks=(files.chunks or (0,), -1),
        name=f"skdice-features-{dask.base.tokenize(files)}",
        asarray=False,
        fancy=False,
        meta=np.empty((0, 0), files.dtype),
    )


class FileRows:
    """Rows of files. The process that reads a block opens its file, and closes it afterwards."""

    ndim = 2

    def __init__(self, paths: list[Path], key: str | None) -> None:
        self.paths, self.key = paths, key
        lengths, chunks, dtypes, widths = [], [], set(), set()
        for path in paths:
            rows = open_shard(path, key)
            if len(rows.shape) != 2:
                raise ValueError(f"{path} has shape {rows.shape}, expected (n_samples, n_features)")
            lengths.append(rows.shape[0])
            dtypes.add(rows.dtype)
            widths.add(rows.shape[1])
            size = max(1, CHUNK_BYTES // max(1, rows.dtype.itemsize * rows.shape[1]))
            if isinstance(rows, SequentialRows):
                size = max(1, rows.shape[0])
            chunks += [min(size, lengths[-1] - start) for start in range(0, lengths[-1], size)]
        if len(widths) > 1:
            raise ValueError(f"the shards do not fit together: they have {sorted(widths)} features")
        self.starts = np.cumsum([0, *lengths])
        self.shape = (int(self.starts[-1]), *widths)
        self.dtype: np.dtype[Any] = np.result_type(*dtypes)
        self.chunks = tuple(chunks)
        self._times = [path.stat().st_mtime_ns for path in paths]

    def __getitem__(self, place: tuple[slice, slice]) -> NDArray[Any]:
        """Return the rows of a chunk, all of one file, in memory of their own."""
        rows, columns = place
        file = int(np.searchsorted(self.starts, rows.start, side="right")) - 1
        first = int(self.starts[file])
        opened = open_shard(self.paths[file], self.key)
        block = np.array(opened[rows.start - first : rows.stop - first], self.dtype)
        return block[:, columns]

    def __dask_tokenize__(self) -> Any:
        # The times are part of the token, so that Dask does not take a new file for the old one.
        return self.paths, self.key, self.shape, self._times


def _describe(path: Path, key: str | None) -> tuple[FileRows, list[str]]:
    """Return the rows of a path, and the messages of the warnings about them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        files = FileRows(shard_paths(path), key)
    return files, [str(warning.message) for warning in caught]
