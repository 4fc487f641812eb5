"""Scores along a path of sparsities, from one mean, one selection and one pass over the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from skdice._compat.extras import has_numba
from skdice._engines import (
    FUSED_SCORES,
    FusedScore,
    SparseLayer,
    available_threads,
    choose_path_engine,
)
from skdice._engines.scoring import (
    block_scorer,
    check_finite,
    fitted_shaping,
    is_builtin,
    masked_layer,
    shape_block,
)
from skdice._head import LinearHead
from skdice._passes.mean import FeatureStatistics, add_rows
from skdice._rows.dask import sliceable
from skdice._rows.sources import Rows, block_slices, check_rows, map_blocks, scoring_dtype
from skdice._sparsify import contribution, threshold_masks

FloatArray = NDArray[np.floating[Any]]


def sparsity_path(
    head: LinearHead,
    X_fit: Any,
    X: Any,
    sparsities: Sequence[float],
    *,
    shaping: Any = None,
    score_func: str | Callable[[FloatArray], FloatArray] = "energy",
    batch_size: int | None = None,
    verbose: int = 0,
) -> FloatArray:
    """Return the scores of rows at each of several sparsities.

    What `DICEDetector(head, sparsity=p).fit(X_fit).score_samples(X)` gives for each p, with
    one mean of the fitted rows, one selection in the contributions for all thresholds, and
    one pass over the scored rows.

    Parameters
    ----------
    head : LinearHead
        The last linear layer.
    X_fit : array-like or source of rows, of shape (n_fitted, n_features)
        Features of in-distribution inputs.
    X : array-like or source of rows, of shape (n_samples, n_features)
        Features that are scored.
    sparsities : sequence of float in [0, 1)
        Fractions of the weights pruned.
    shaping : transformer, default=None
        As in `DICEDetector`, fitted on `X_fit`.
    score_func : {"energy", "max_logit", "msp", "gen"} or callable, default="energy"
        As in `DICEDetector`.
    batch_size : int, default=None
        Rows per block; None chooses them.
    verbose : int, default=0
        Above 0, progress bars on stderr.

    Returns
    -------
    ndarray of shape (n_sparsities, n_samples), float32 or float64

    Raises
    ------
    ValueError
        A sparsity is out of its range, widths do not match, or a value is not finite.

    See Also
    --------
    DICEDetectorCV : Chooses the sparsity by cross-validation.

    Examples
    --------
    >>> from skdice import sparsity_path
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> data = load_fashion_mnist_ood()
    >>> sparsity_path(data.head, data.id_train, data.id_test, [0, 0.1, 0.9]).shape
    (3, 3000)
    """
    fitted, rows = check_rows(X_fit, "X_fit"), sliceable(check_rows(X))
    for name, each in (("X_fit", fitted), ("X", rows)):
        if each.shape[1] != head.n_features:
            raise ValueError(
                f"{name} has {each.shape[1]} features, but the head expects {head.n_features}"
            )
    statistics = FeatureStatistics(fitted.shape[1])
    add_rows(statistics, fitted, batch_size=batch_size, verbose=verbose)
    return path_scores(
        head,
        statistics.mean(),
        fitted_shaping(shaping, fitted, verbose),
        rows,
        check_sparsities(sparsities),
        score_func,
        batch_size,
        verbose,
    )


def check_sparsities(sparsities: Any) -> list[float]:
    """Return the sparsities as a list of floats, in the order given."""
    values = np.asarray(sparsities, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"sparsities is {sparsities!r}, expected a sequence of floats in [0, 1)")
    for value in values.tolist():
        if not 0 <= value < 1:
            hint = f" It is a fraction: did you mean {value / 100:g}?" if 1 < value < 100 else ""
            raise ValueError(f"sparsities holds {value:g}, expected floats in [0, 1).{hint}")
    return [float(value) for value in values]


def path_scores(
    head: LinearHead,
    mean_activation: NDArray[np.float64],
    shaping: Any,
    rows: Rows,
    sparsities: Sequence[float],
    score_func: str | Callable[[FloatArray], FloatArray],
    batch_size: int | None = None,
    verbose: int | bool = 0,
) -> FloatArray:
    """Return the scores of `sparsity_path`, from a mean activation and a fitted shaping."""
    dtype = scoring_dtype(rows.dtype)
    masks = [
        mask for mask, _ in threshold_masks(contribution(head.weight, mean_activation), sparsities)
    ]
    function, n_threads = _path_function(head, masks, rows.shape[0], dtype, score_func)

    def shaped_scores(block: FloatArray) -> FloatArray:
        with np.errstate(over="ignore", invalid="ignore"):
            shaped = shape_block(shaping, block)
        return function(shaped)

    out = np.empty((len(sparsities), rows.shape[0]), dtype)
    row_bytes = sum(head.weight.shape) * dtype.itemsize
    blocks = map_blocks(
        shaped_scores,
        rows,
        block_slices(rows.shape[0], row_bytes, batch_size),
        n_threads=n_threads if is_builtin(shaping) else 1,
        description="scores",
        verbose=verbose,
    )
    for where, scores in blocks:
        for each in scores:
            check_finite(each, rows, where.start, "score")
        out[:, where] = scores
    return out


def _path_function(
    head: LinearHead,
    masks: Sequence[NDArray[np.bool_]],
    n_rows: int,
    dtype: np.dtype[Any],
    score_func: str | Callable[[FloatArray], FloatArray],
) -> tuple[Callable[[FloatArray], FloatArray], int]:
    """Return the function from blocks to scores (n_sparsities, n), and its number of threads."""
    weight, bias = head.weight.astype(dtype, copy=False), head.bias.astype(dtype, copy=False)
    n_kept = [int(np.count_nonzero(mask)) for mask in masks]
    order = np.argsort(n_kept)
    n_threads = available_threads()
    engine = choose_path_engine(
        n_rows, weight.shape[1], len(weight), sorted(n_kept), dtype, n_threads
    )
    if engine == "sparse" and score_func in FUSED_SCORES and has_numba():
        # Each mask holds the smaller ones: a weight comes in with the first mask that has it.
        level = np.full(weight.shape, len(masks), np.uint16)
        for mask in masks:
            level -= mask
        layer = SparseLayer(weight, bias, level, len(masks))
        name, place = cast(FusedScore, score_func), np.argsort(order)
        return lambda block: layer.level_scores(block, name)[place], n_threads
    zero = weight.dtype.type(0)
    scorers = [
        block_scorer(masked_layer(np.where(mask, weight, zero), bias, None, dtype), score_func)
        for mask in masks
    ]
    return lambda block: np.stack([scorer(block) for scorer in scorers]), 1
