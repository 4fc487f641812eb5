"""Scores and verdicts that are written to a file block by block, for more rows than memory."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice.io._archive import to_path
from skdice.io._atomic import replacing
from skdice.io._npy import write_array, write_header
from skdice.io._parquet import write_batches

SCORE_ENDINGS = (".npy", ".csv", ".parquet", ".jsonl")
# The verdicts on the rows of a block: arrays of equal length by the name of their column.
Verdicts = dict[str, NDArray[Any]]


def save_scores(path: str | Path, detector: Any, X: Any) -> int:
    """Score rows and write the result to a file, block by block.

    The file takes its name only when it is complete: an interrupted run leaves the old
    file or none. Each row of X is read once.

    Parameters
    ----------
    path : str or Path
        A file that ends in ``.npy`` holds the scores alone, of shape (n_samples,). A file that
        ends in ``.csv``, ``.parquet`` or ``.jsonl`` (an object of JSON per line) has the columns
        ``row``, the number of the row from 0; ``score``; ``pvalue``, if the detector has a
        conformal calibration (see `DICEDetector.pvalues`); ``is_ood``, if it has a threshold; and
        ``member``, for an ensemble: the member with the smallest p-value, which objects most.
    detector : outlier detector of skdice
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
        The ending is not one of the four, or a row cannot be scored.
    ImportError
        pyarrow, which writes ``.parquet``, is not installed.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from skdice import make_ensemble
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> from skdice.io import save_scores
    >>> data = load_fashion_mnist_ood()
    >>> detector = make_ensemble(data.head).fit(data.id_train)
    >>> detector = detector.calibrate(data.id_test, method="conformal")
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "digits.csv"
    >>> save_scores(path, detector, data.ood["mnist"][:2])
    2
    >>> header, *_ = path.read_text().splitlines()
    >>> header
    'row,score,pvalue,is_ood,member'
    """
    path = to_path(path)
    if path.suffix not in SCORE_ENDINGS:
        raise ValueError(
            f"cannot write scores to {path}: expected an ending of {', '.join(SCORE_ENDINGS)}"
        )
    if path.suffix == ".npy":
        dtype, blocks = detector._iterate_scores(X)
        with replacing(path) as temporary, temporary.open("wb") as file:
            # A Dask collection does not know its number of rows before it is read.
            n_rows = write_array(file, (0,), dtype, blocks)
            file.seek(0)
            write_header(file, (n_rows,), dtype)
        return n_rows
    dtypes, verdicts = numbered_verdicts(detector, X)
    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            columns = {name: (dtype, ()) for name, dtype in dtypes.items()}
            return write_batches(temporary, columns, (tuple(v.values()) for v in verdicts))
        with temporary.open("w", encoding="utf-8", newline="") as text:
            is_csv, n_rows = path.suffix == ".csv", 0
            table = csv.writer(text, lineterminator="\n")
            if is_csv:
                table.writerow(dtypes)
            for block in verdicts:
                if is_csv:
                    table.writerows(zip(*map(_as_text, block.values()), strict=True))
                else:
                    text.writelines(json_lines(block))
                n_rows += len(block["row"])
        return n_rows


def numbered_verdicts(detector: Any, X: Any) -> tuple[dict[str, np.dtype[Any]], Iterator[Verdicts]]:
    """Return the dtypes of the columns, and the verdicts with the numbers of their rows."""
    dtypes, verdicts = detector._iterate_verdicts(X)

    def numbered() -> Iterator[Verdicts]:
        start = 0
        for block in verdicts:
            stop = start + len(block["score"])
            yield {"row": np.arange(start, stop), **block}
            start = stop

    return {"row": np.dtype(np.int64), **dtypes}, numbered()


def json_lines(block: Verdicts) -> Iterator[str]:
    """Yield an object of JSON in a line for each row of a block."""
    for values in zip(*(column.tolist() for column in block.values()), strict=True):
        yield json.dumps(dict(zip(block, values, strict=True))) + "\n"


def _as_text(column: NDArray[Any]) -> list[str]:
    """Return values as text: numbers as the shortest text of their dtype, booleans as in JSON."""
    is_bool = column.dtype == np.bool_
    text: list[str] = (
        np.where(column, "true", "false") if is_bool else column.astype(str)
    ).tolist()
    return text
