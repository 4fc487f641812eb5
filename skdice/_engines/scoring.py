"""From blocks of features to logits and scores: what an estimator's fitted arrays compute."""

from __future__ import annotations

from collections.abc import Callable
from threading import local
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from skdice._engines import FUSED_SCORES, FewClassesLayer, FusedScore, SparseLayer, dense_logits
from skdice._rows.sources import Rows, all_finite, row_number
from skdice._scores import SCORES
from skdice.shaping import ASH, VRA, ReAct, Scale

FloatArray = NDArray[np.floating[Any]]
BlockFunction = Callable[[FloatArray], FloatArray]


def fitted_shaping(shaping: Any, rows: Rows, verbose: int | bool = 0) -> Any:
    """Return a clone of a shaping, fitted on rows; None for None."""
    if shaping is None:
        return None
    shaping = clone(shaping)
    return (
        shaping.fit_rows(rows, verbose=verbose) if is_builtin(shaping) else shaping.fit(rows, None)
    )


def is_builtin(shaping: Any) -> bool:
    """Tell whether a shaping is none of the user's own.

    Those may not be made for threads; and what is derived from one of skdice may do another thing.
    """
    return shaping is None or type(shaping) in (ReAct, VRA, ASH, Scale)


def shape_block(shaping: Any, block: FloatArray) -> FloatArray:
    """Return a block of validated features after a fitted shaping, or None."""
    if shaping is None:
        return block
    if is_builtin(shaping):  # the block is validated already
        return _spoil_rows(shaping.shape_block(block))
    shaped = np.asarray(shaping.transform(block), dtype=block.dtype)
    if shaped.shape != block.shape:
        raise ValueError(
            f"{shaping!r} turned features of shape {block.shape} into {shaped.shape}; a "
            "shaping keeps the shape"
        )
    return _spoil_rows(shaped)


def _spoil_rows(shaped: FloatArray) -> FloatArray:
    """Return shaped features in which a row is all NaN if any of its values is not finite.

    Else it would be found or not by what the masked weight keeps.
    """
    if shaped.size and not all_finite(shaped):
        spoilt = ~np.isfinite(shaped).all(axis=1, keepdims=True)
        shaped = np.where(spoilt, shaped.dtype.type(np.nan), shaped)
    return shaped


class _Memory(local):
    """Logits of a block, in memory of each thread that the next block overwrites."""

    logits: FloatArray | None = None

    def of_rows(self, n_rows: int, n_classes: int, dtype: np.dtype[Any]) -> FloatArray:
        if self.logits is None or len(self.logits) < n_rows:
            self.logits = np.empty((n_rows, n_classes), dtype)
        return self.logits[:n_rows]


def masked_layer(
    coef: FloatArray,
    intercept: FloatArray,
    shaping: Any,
    dtype: np.dtype[Any],
    *,
    kept: bool = True,
) -> BlockFunction:
    """Return the function from a block of features to the logits of the masked layer.

    Parameters
    ----------
    coef : ndarray of shape (n_classes, n_features)
        Masked weight.
    intercept : ndarray of shape (n_classes,)
        Bias.
    shaping : fitted transformer or None
        Applied to the features first.
    dtype : dtype
        In which the blocks come and the logits are computed.
    kept : bool
        False if the logits are done with before the next call in the same thread: all blocks
        then share one piece of memory.
    """
    coef, intercept = coef.astype(dtype, copy=False), intercept.astype(dtype, copy=False)
    memory = _Memory()

    def layer(block: FloatArray) -> FloatArray:
        out = None if kept else memory.of_rows(len(block), len(coef), dtype)
        # An overflow is reported with its row, by `check_finite`.
        with np.errstate(over="ignore", invalid="ignore"):
            return dense_logits(shape_block(shaping, block), coef, intercept, out)

    return layer


def engine_function(
    engine: Literal["dense", "sparse", "few"],
    coef: FloatArray,
    intercept: FloatArray,
    shaping: Any,
    dtype: np.dtype[Any],
    score_func: str | Callable[[FloatArray], FloatArray] | None,
) -> BlockFunction:
    """Return the function from a block of features to scores, or logits, by an engine.

    Parameters
    ----------
    engine : {"dense", "sparse", "few"}
        By matrix products, by the kept weights only, or by the kernel for few classes.
    coef, intercept, shaping, dtype
        As in `masked_layer`.
    score_func : str, callable or None
        As in `block_scorer`; None for the logits.
    """
    if engine == "dense":
        # A function of the user may keep the logits that it is given.
        named = isinstance(score_func, str)
        function = masked_layer(coef, intercept, shaping, dtype, kept=not named)
        return function if score_func is None else block_scorer(function, score_func)
    kernels = SparseLayer if engine == "sparse" else FewClassesLayer
    layer = kernels(coef.astype(dtype, copy=False), intercept)

    def shaped(block: FloatArray) -> FloatArray:
        with np.errstate(over="ignore", invalid="ignore"):
            return shape_block(shaping, block)

    if isinstance(score_func, str) and score_func in FUSED_SCORES:
        name = cast(FusedScore, score_func)
        return lambda block: layer.scores(shaped(block), name)

    def logits(block: FloatArray) -> FloatArray:
        return layer.logits(shaped(block))

    return logits if score_func is None else block_scorer(logits, score_func)


def block_scorer(
    layer: BlockFunction, score_func: str | Callable[[FloatArray], FloatArray]
) -> BlockFunction:
    """Return the function from a block of features to its scores.

    Parameters
    ----------
    layer : callable
        From a block of features to logits.
    score_func : str or callable
        Name of a score, or a function of logits (n, n_classes) to scores (n,).
    """
    if isinstance(score_func, str):
        score = SCORES[score_func]

        def named(block: FloatArray) -> FloatArray:
            with np.errstate(over="ignore", invalid="ignore"):
                return score(layer(block), overwrite=True)

        return named

    def custom(block: FloatArray) -> FloatArray:
        logits = layer(block)
        # Looked at before: a function may hide what overflowed, or write over it.
        finite = np.isfinite(logits).all(axis=1)
        scores = np.asarray(score_func(logits))
        if scores.shape != (len(block),):
            raise ValueError(
                f"score_func returned shape {scores.shape} for logits of shape {logits.shape}, "
                f"expected ({len(block)},)"
            )
        if scores.dtype.kind not in "fiub":
            raise ValueError(
                f"score_func returned {scores.dtype} values such as {scores.flat[0]!r}, expected "
                "real numbers"
            )
        return scores if finite.all() else np.where(finite, scores, np.nan)

    return custom


def check_finite(values: FloatArray, rows: Rows, first_row: int, name: str) -> None:
    """Raise for the first row whose value is not finite.

    Parameters
    ----------
    values : ndarray of shape (n_samples,)
        One value per row.
    rows : source of rows
        What they were computed from.
    first_row : int
        Position of the first of them among the rows.
    name : str
        What the value is.
    """
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        number = row_number(rows, first_row + int(bad[0]))
        raise ValueError(
            f"the {name} of row {number} is {values[bad[0]]}: its features, after shaping, are too "
            f"large for {values.dtype}, or score_func is not finite there"
        )
