"""What a detector says of each row: score, p-value, whether it is OOD, and which member objects.

Everything follows from one pass over the rows. The workers of a cluster compute what needs the
features, and the rest is computed from these few numbers where the verdicts are asked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._calibration.by_prediction import class_pvalues, scores_and_classes
from skdice._compat.arrays import to_numpy
from skdice._head import LinearHead
from skdice._passes.threshold import conformal_pvalues
from skdice._rows.sources import BlockValues, SlicedRows

FloatArray = NDArray[np.floating[Any]]


def judged_blocks(
    block_values: BlockValues, head: LinearHead | None, rows: SlicedRows
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield the slice of each block, and a column for each number that `Verdicts` needs.

    Parameters
    ----------
    block_values : callable
        Function from rows to the scores of each block, which may have a second column.
    head : LinearHead or None
        The head that predicts the class of a row, which is the last column; None leaves it out.
    rows : SlicedRows
        The rows.
    """
    if head is None:
        for row_slice, values in block_values(rows):
            yield row_slice, np.column_stack([to_numpy(values)]).astype(np.float64)
        return
    for row_slice, values, classes in scores_and_classes(block_values, head, rows):
        yield row_slice, np.column_stack([to_numpy(values), to_numpy(classes)]).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Verdicts:
    """The rule from the columns of `judged_blocks` to the verdicts.

    Parameters
    ----------
    dtype : dtype
        Dtype of the scores.
    offset : float, ndarray of shape (n_classes,), or None
        The threshold, or that of each predicted class; None if there is none.
    references : ndarray, list of ndarray, or None
        The calibration scores in ascending order, or those of each predicted class; None if the
        detector has no conformal calibration.
    members : tuple of str
        Names of the members of an ensemble; empty for other detectors.
    """

    dtype: np.dtype[Any]
    offset: float | FloatArray | None
    references: FloatArray | list[FloatArray] | None
    members: tuple[str, ...]

    @property
    def dtypes(self) -> dict[str, np.dtype[Any]]:
        """The dtype of each column of the verdicts, in their order."""
        columns = {"score": self.dtype}
        if self.references is not None:
            columns["pvalue"] = np.dtype(np.float64)
        if self.offset is not None:
            columns["is_ood"] = np.dtype(np.bool_)
        if self.members:
            columns["member"] = np.array(self.members).dtype
        return columns

    def of(self, values: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
        """Return the columns of the verdicts on a block, by their names."""
        scores, classes = values[:, 0].astype(self.dtype), values[:, -1].astype(np.intp)
        verdicts: dict[str, NDArray[Any]] = {"score": scores}
        if isinstance(self.references, list):
            verdicts["pvalue"] = class_pvalues(self.references, scores, classes)
        elif self.references is not None:
            verdicts["pvalue"] = conformal_pvalues(self.references, scores)
        if isinstance(self.offset, np.ndarray):
            # In the dtype of the scores, as `decision_function` computes.
            verdicts["is_ood"] = ~(scores - self.offset.astype(self.dtype)[classes] >= 0)
        elif self.offset is not None:
            verdicts["is_ood"] = ~(scores - self.offset >= 0)
        if self.members:
            verdicts["member"] = np.array(self.members)[values[:, 1].astype(np.intp)]
        return verdicts
