"""The choice of the fastest engine of the CPU for a head, by a model of their costs.

The model is linear in counts that need no measuring at run time. Its constants are seconds on
one core with AVX-512, fitted by ``benchmarks/engines.py --constants``; only their ratios
matter, which vary little between processors.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from skdice._engines.few import MOST_WEIGHT_BYTES
from skdice._engines.kernels.layout import CLASSES
from skdice._engines.sparse import PANEL_COLUMNS

# The constants are nanoseconds, by bytes per number. Those of the dense engine are per
# multiplication, logit, feature and row.
DENSE = {4: (0.0196, 1.57, 0.657, 54.6), 8: (0.0372, 3.32, 1.3, 38.6)}
# Those of the sparse engine are, for every row, per kept weight, class and panel, logit, feature
# and row, and once for all rows per weight and kept weight.
SPARSE = {
    4: (0.0262, 0.0257, 0.901, 0.435, 18.6, 2.49, 10.4),
    8: (0.0527, 0.105, 1.03, 0.679, 52.9, 2.46, 26.2),
}
# Those of the engine for few classes are per multiplication, logit, feature and row.
FEW = {4: (0.0198, 1.21, 0.009, 14.0), 8: (0.0456, 0.466, 0.0105, 26.4)}
# Rows that one core scores in less than this by matrix products are left to the dense engine.
# Otherwise the first call of a process may pay half a second for the import of numba, and the first
# call of an installation a few seconds for the compilation; all further calls gain.
LEAST_DENSE_NANOSECONDS = 50e6
# The error of the model is up to this much, and a tie is not worth the import of numba.
CLEARLY_LESS = 0.85


def dense_counts(n_rows: int, n_features: int, n_classes: int, n_threads: int) -> tuple[float, ...]:
    """Return how often each constant of `DENSE` counts.

    Threads share the matrix product and the reading of the features, but not the log-sum-exp.
    """
    n_numbers = n_rows * n_features / n_threads
    return n_numbers * n_classes, n_rows * n_classes, n_numbers, n_rows


def sparse_counts(
    n_rows: int, n_features: int, n_classes: int, n_kept: int, n_threads: int
) -> tuple[float, ...]:
    """Return how often each constant of `SPARSE` counts."""
    n_panels = -(-min(n_features, n_kept) // PANEL_COLUMNS)
    rows = n_rows / n_threads
    return (
        rows * n_kept,
        rows * n_classes * n_panels,
        rows * n_classes,
        rows * n_features,
        rows,
        n_classes * n_features,
        n_kept,
    )


def few_counts(n_rows: int, n_features: int, n_classes: int, n_threads: int) -> tuple[float, ...]:
    """Return how often each constant of `FEW` counts."""
    rows = n_rows / n_threads
    n_multiplied = -(-n_classes // CLASSES) * CLASSES
    return rows * n_features * n_multiplied, rows * n_classes, rows * n_features, rows


def cheapest_for_path(
    n_rows: int,
    n_features: int,
    n_classes: int,
    n_kept: Sequence[int],
    dtype: np.dtype[Any],
    n_threads: int,
) -> Literal["dense", "sparse"]:
    """Return the engine that scores rows at several sparsities in less time.

    Parameters
    ----------
    n_rows, n_features, n_classes, dtype, n_threads
        The same as for `cheapest`.
    n_kept : sequence of int
        Numbers of weights that the sparsities keep, in ascending order.
    """
    size, shape = dtype.itemsize, (n_rows, n_features, n_classes)
    dense = len(n_kept) * np.dot(DENSE[size], dense_counts(*shape, 1))
    if dense < LEAST_DENSE_NANOSECONDS:
        return "dense"
    dense = len(n_kept) * np.dot(DENSE[size], dense_counts(*shape, n_threads))
    # A sparsity only adds its further weights to the logits of the next higher sparsity.
    added = np.diff(n_kept, prepend=0)
    sparse = sum(
        np.dot(SPARSE[size], sparse_counts(*shape, int(n_added), n_threads)) for n_added in added
    )
    return "sparse" if sparse < CLEARLY_LESS * dense else "dense"


def pays_to_compile(n_rows: int, n_features: int, n_classes: int, dtype: np.dtype[Any]) -> bool:
    """Return whether the rows of a problem cost more than the import of numba."""
    counts = dense_counts(n_rows, n_features, n_classes, 1)
    return bool(np.dot(DENSE[dtype.itemsize], counts) >= LEAST_DENSE_NANOSECONDS)


def cheapest(
    n_rows: int,
    n_features: int,
    n_classes: int,
    n_kept: int,
    dtype: np.dtype[Any],
    n_threads: int,
) -> Literal["dense", "sparse", "few"]:
    """Return the engine that scores rows in the least time.

    Parameters
    ----------
    n_rows, n_features, n_classes : int
        Shape of the problem.
    n_kept : int
        Number of weights that are not pruned.
    dtype : dtype
        Dtype of the computation, float32 or float64.
    n_threads : int
        Number of threads that any engine would use.
    """
    size, shape = dtype.itemsize, (n_rows, n_features, n_classes)
    if not pays_to_compile(*shape, dtype):
        return "dense"
    dense = np.dot(DENSE[size], dense_counts(*shape, n_threads))
    sparse = np.dot(SPARSE[size], sparse_counts(*shape, n_kept, n_threads))
    few = np.inf
    if n_classes * n_features * size <= MOST_WEIGHT_BYTES:
        few = np.dot(FEW[size], few_counts(*shape, n_threads))
    if min(few, sparse) >= CLEARLY_LESS * dense:
        return "dense"
    return "sparse" if sparse < few else "few"
