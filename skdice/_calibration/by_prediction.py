"""Thresholds and p-values for each predicted class: what ``calibrate(by="prediction")`` sets."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._compat.arrays import Namespace, device_of, from_numpy, namespace_of, to_numpy
from skdice._engines.dense import array_engine, dense_engine
from skdice._engines.layer import MaskedLayer
from skdice._head import LinearHead
from skdice._passes.threshold import conformal_pvalues, conformal_rank, fewest_rows
from skdice._rows.beside import RowsBeside
from skdice._rows.sources import BlockValues, SlicedRows, scoring_dtype

FloatArray = NDArray[np.floating[Any]]
Classes = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class ClassScores:
    """The scores of calibration rows, and the class that the head predicts for each row.

    Parameters
    ----------
    scores : ndarray of shape (n_calibration,)
        Scores in ascending order.
    classes : ndarray of shape (n_calibration,), int
        Predicted class of each row, in the same order.
    n_classes : int
        Number of classes of the head.
    """

    scores: FloatArray
    classes: Classes
    n_classes: int

    @property
    def counts(self) -> Classes:
        """The number of calibration rows of each class."""
        return np.bincount(self.classes, minlength=self.n_classes)

    def fallback(self, contamination: float, confidence: float | None) -> Classes:
        """Return the classes that have too few rows for a threshold of their own."""
        return np.flatnonzero(self.counts < fewest_rows(contamination, confidence))

    def offsets(
        self, offset: float, contamination: float, confidence: float | None
    ) -> NDArray[np.float64]:
        """Return the threshold of each class; `offset` for a class that has too few rows."""
        offsets = np.full(self.n_classes, offset)
        least = fewest_rows(contamination, confidence)
        for k, scores in enumerate(self.parts()):
            if len(scores) >= least:
                offsets[k] = scores[conformal_rank(len(scores), contamination, confidence) - 1]
        return offsets

    def parts(self) -> list[FloatArray]:
        """Return the scores of each class in ascending order."""
        order = np.argsort(self.classes, kind="stable")
        return np.split(self.scores[order], np.cumsum(self.counts)[:-1])

    def references(self, fallback: Classes) -> list[FloatArray]:
        """Return the scores that rows of each class are compared with: all for `fallback`."""
        references = self.parts()
        for k in fallback:
            references[k] = self.scores
        return references


def warn_of_fallback(
    fallback: Classes, n_classes: int, contamination: float, confidence: float | None
) -> None:
    """Warn that some classes have too few rows for a threshold of their own."""
    if len(fallback):
        warnings.warn(
            f"{len(fallback)} of {n_classes} predicted classes have too few calibration rows for a "
            f"threshold of their own (the first is class {fallback[0]}), and take the threshold of "
            "all rows, which promises nothing for one class: a class needs "
            f"{fewest_rows(contamination, confidence)} rows. fallback_classes_ lists them.",
            UserWarning,
            stacklevel=4,
        )


def class_function(head: LinearHead, dtype: np.dtype[Any]) -> Callable[[Any], Any]:
    """Return the function from a block of features to the class that the head predicts for each.

    It is the first class with the largest logit of the unmasked head. The classes are an array of
    the library of the block.

    Parameters
    ----------
    head : LinearHead
        The unmasked head.
    dtype : dtype
        The scoring dtype of the rows.
    """
    layer = MaskedLayer(head.weight, head.bias, score=None)
    numpy_logits = dense_engine(layer, dtype, reuses_memory=False)

    def predicted(block: Any) -> Any:
        if isinstance(block, np.ndarray):
            return np.argmax(numpy_logits(block.astype(dtype, copy=False)), axis=1)
        namespace = Namespace(namespace_of(block), device_of(block))
        return namespace.xp.argmax(array_engine(layer, namespace, dtype)(block), axis=1)

    return predicted


def scores_and_classes(
    block_scores: BlockValues, head: LinearHead, rows: SlicedRows
) -> Iterator[tuple[slice, Any, Any]]:
    """Yield the slice, the scores and the predicted classes of each block, which is read once.

    Both are arrays of one library. NumPy scores are in the scoring dtype of the rows.
    """
    dtype = scoring_dtype(rows.dtype)
    beside = RowsBeside(rows, class_function(head, dtype))
    for row_slice, scores in block_scores(beside):
        classes = beside.result
        if isinstance(scores, np.ndarray):
            # Thresholds are scores in this dtype, with which others would not tie.
            scores, classes = scores.astype(dtype, copy=False), to_numpy(classes)
        yield row_slice, scores, classes


def gathered_blocks(
    block_scores: BlockValues, head: LinearHead, rows: SlicedRows
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield the slice of each block, and its scores and predicted classes as two columns."""
    # float64 holds the scores of any dtype and the classes exactly.
    for row_slice, scores, classes in scores_and_classes(block_scores, head, rows):
        columns = [to_numpy(scores).astype(np.float64), to_numpy(classes).astype(np.float64)]
        yield row_slice, np.stack(columns, axis=1)


def decision_blocks(
    block_scores: BlockValues, head: LinearHead, offsets: NDArray[np.float64], rows: SlicedRows
) -> Iterator[tuple[slice, Any]]:
    """Yield the slice of each block, and its scores minus the thresholds of its classes."""
    for row_slice, scores, classes in scores_and_classes(block_scores, head, rows):
        if isinstance(scores, np.ndarray):
            yield row_slice, scores - offsets.astype(scores.dtype)[classes]
            continue
        namespace = Namespace(namespace_of(scores), device_of(scores))
        thresholds = namespace.xp.astype(from_numpy(offsets, namespace), scores.dtype)
        yield row_slice, scores - namespace.xp.take(thresholds, classes, axis=0)


def pvalue_blocks(
    block_scores: BlockValues,
    head: LinearHead,
    calibration: ClassScores,
    fallback: Classes,
    rows: SlicedRows,
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield the slice of each block, and the p-values of its rows among those of their class.

    A row of a class of `fallback` is compared with all calibration rows.
    """
    references = calibration.references(fallback)
    for row_slice, scores, classes in scores_and_classes(block_scores, head, rows):
        yield row_slice, class_pvalues(references, to_numpy(scores), to_numpy(classes))


def class_pvalues(
    references: list[FloatArray], scores: FloatArray, classes: Classes
) -> NDArray[np.float64]:
    """Return the p-value of each score among the calibration scores of its class."""
    values = np.empty(len(scores))
    for k in np.unique(classes):
        is_class = classes == k
        values[is_class] = conformal_pvalues(references[k], scores[is_class])
    return values
