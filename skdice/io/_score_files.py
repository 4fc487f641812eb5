"""Scores that are written to a file block by block, for more rows than memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from skdice.io._archive import to_path
from skdice.io._atomic import replacing
from skdice.io._npy import write_array, write_header
from skdice.io._parquet import write_batches


def save_scores(path: str | Path, detector: Any, X: Any) -> int:
    """Score rows and write the result to a file, block by block.

    The file takes its name only when it is complete: an interrupted run leaves the old
    file or none.

    Parameters
    ----------
    path : str or Path
        A file that ends in ``.npy`` holds the scores alone, of shape (n_samples,). A file
        that ends in ``.parquet`` has the columns ``score`` and, if the detector has a
        threshold, ``label`` (+1 in-distribution, -1 out-of-distribution).
    detector : DICEDetector
        A fitted detector.
    X : array or source of rows, of shape (n_samples, n_features)
        Penultimate features.

    Returns
    -------
    int
        Number of rows written.

    Raises
    ------
    ValueError
        The ending is not one of the two, or a row cannot be scored.

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
    path = to_path(path)
    if path.suffix not in (".npy", ".parquet"):
        raise ValueError(f"cannot write scores to {path}: expected .npy or .parquet")
    if hasattr(detector, "class_offsets_"):
        # The labels that are written here come from one threshold.
        raise ValueError(
            "the detector was calibrated with by='prediction', and labels by the thresholds of "
            "classes cannot be written yet: use predict and pvalues in Python"
        )
    dtype, blocks = detector._iterate_scores(X)
    with replacing(path) as temporary:
        if path.suffix == ".npy":
            with temporary.open("wb") as file:
                # A Dask collection does not know its number of rows before it is read.
                n_rows = write_array(file, (0,), dtype, blocks)
                file.seek(0)
                write_header(file, (n_rows,), dtype)
            return n_rows
        offset = getattr(detector, "offset_", None)
        if offset is None:
            return write_batches(temporary, {"score": (dtype, ())}, ((block,) for block in blocks))
        columns = {"score": (dtype, ()), "label": (np.dtype(np.int8), ())}
        labelled = (
            (block, np.where(block - offset >= 0, 1, -1).astype(np.int8)) for block in blocks
        )
        return write_batches(temporary, columns, labelled)
