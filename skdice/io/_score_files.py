"""Writing scores to a file, block by block, for more rows than memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from skdice._compat.extras import import_extra
from skdice.io._atomic import replacing

if TYPE_CHECKING:
    from skdice._dice import DICEDetector

Blocks = Iterator[NDArray[Any]]


def save_scores(path: str | Path, detector: DICEDetector, X: Any) -> int:
    """Score rows and write the result to a file, block by block.

    The file takes its name only when it is complete: an interrupted run leaves the old
    file or none.

    Parameters
    ----------
    path : str or Path
        ``.npy``: the scores alone, of shape (n_samples,). ``.parquet``: the columns
        ``score`` and, where the detector has a threshold, ``label`` (+1 in-distribution,
        -1 out-of-distribution).
    detector : DICEDetector
        Fitted.
    X : array or source of rows, of shape (n_samples, n_features)
        Penultimate features.

    Returns
    -------
    int
        Number of rows written.

    Raises
    ------
    ValueError
        The ending is neither, or a row cannot be scored.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from skdice import DICEDetector
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> from skdice.io import save_scores
    >>> data = load_fashion_mnist_ood()
    >>> detector = DICEDetector(data.head, sparsity=0.1).fit(data.id_train)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "scores.npy"
    >>> save_scores(path, detector, data.id_test)
    3000
    >>> bool((np.load(path) == detector.score_samples(data.id_test)).all())
    True
    """
    path = Path(path)
    if path.suffix not in (".npy", ".parquet"):
        raise ValueError(f"cannot write scores to {path}: expected .npy or .parquet")
    dtype, blocks = detector._iterate_scores(X)
    with replacing(path) as temporary:
        if path.suffix == ".npy":
            return _write_npy(temporary, blocks, dtype)
        return _write_parquet(temporary, blocks, getattr(detector, "offset_", None), dtype)


def _write_npy(path: Path, blocks: Blocks, dtype: np.dtype[Any]) -> int:
    header = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False}
    n_rows = 0
    with path.open("wb") as file:
        npy_format.write_array_header_1_0(file, header | {"shape": (0,)})
        for scores in blocks:
            file.write(np.ascontiguousarray(scores).data)
            n_rows += len(scores)
        # Not known before of a Dask collection; NumPy leaves room for it to grow.
        file.seek(0)
        npy_format.write_array_header_1_0(file, header | {"shape": (n_rows,)})
    return n_rows


def _write_parquet(path: Path, blocks: Blocks, offset: float | None, dtype: np.dtype[Any]) -> int:
    pa, pq = import_extra("pyarrow", "parquet"), import_extra("pyarrow.parquet", "parquet")
    fields = [("score", pa.from_numpy_dtype(dtype))]
    if offset is not None:
        fields.append(("label", pa.int8()))
    schema = pa.schema(fields)
    n_rows = 0
    with pq.ParquetWriter(path, schema) as writer:
        for scores in blocks:
            n_rows += len(scores)
            columns = [pa.array(scores)]
            if offset is not None:
                columns.append(pa.array(np.where(scores - offset >= 0, 1, -1).astype(np.int8)))
            writer.write_batch(pa.record_batch(columns, schema=schema))
    return n_rows
