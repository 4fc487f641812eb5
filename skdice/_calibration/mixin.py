"""Calibration: the threshold of a fitted detector, its record, and its p-values."""

import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from math import isclose
from numbers import Real
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import NotFittedError

from skdice._calibration.by_prediction import (
    ClassScores,
    gathered_blocks,
    pvalue_blocks,
    warn_of_fallback,
)
from skdice._compat.arrays import is_dask, to_numpy
from skdice._compat.sklearn import Interval
from skdice._head import LinearHead
from skdice._passes.mean import weights_of
from skdice._passes.threshold import (
    Calibration,
    conformal_pvalues,
    conformal_rank,
    digest_of_blocks,
    rows_below,
    score_threshold,
    weighted_threshold,
)
from skdice._rows.dask import in_order
from skdice._rows.sources import BlockValues, RowSource, SlicedRows, scoring_dtype

FloatArray = NDArray[np.floating[Any]]


class CalibrationMixin:
    """Mixin of the detectors that sets, describes and forgets their threshold.

    The detector opens rows, and returns the function from rows to the scores of each block.
    """

    contamination: float
    head_: LinearHead
    offset_: float
    contamination_: float
    calibration_: Calibration
    calibration_scores_: FloatArray
    n_samples_seen_: int
    # These three exist only after ``calibrate(..., by="prediction")``.
    class_offsets_: NDArray[np.float64]
    fallback_classes_: NDArray[np.intp]
    calibration_classes_: NDArray[np.intp]

    def _open(self, X: Any, method: str = "", *, reset: bool = False) -> RowSource:
        raise NotImplementedError

    def _block_values(self, layer: Any = None) -> BlockValues:
        raise NotImplementedError

    @staticmethod
    def _no_rows(n_given: float, *, labelled: bool, weighted: bool = False) -> ValueError:
        raise NotImplementedError

    def calibrate(
        self,
        X: ArrayLike,
        contamination: float | None = None,
        *,
        method: Literal["quantile", "conformal"] = "quantile",
        confidence: float | None = None,
        by: Literal["prediction"] | None = None,
    ) -> Self:
        """Set the threshold from held-out in-distribution rows. Nothing is refitted.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Features of in-distribution inputs that `fit` has not seen.
        contamination : float in (0, 0.5], default=None
            Share of these rows that falls below the threshold; None takes the
            parameter of the detector.
        method : {"quantile", "conformal"}, default="quantile"
            ``"quantile"`` takes the share of the rows given. ``"conformal"`` guarantees that
            of future in-distribution rows, exchangeable with these, the expected share below
            the threshold is at most the contamination, for any number of rows. It keeps
            their scores for `pvalues`. Without `confidence` the two thresholds differ by one
            row at most.
        confidence : float in (0, 1), default=None
            Only for ``"conformal"``: the probability, over the draw of these rows, that the
            share of future in-distribution rows below the threshold is at most the
            contamination. It holds for independent rows. None guarantees the share on average
            over draws.
        by : {None, "prediction"}, default=None
            Only for ``"conformal"``: ``"prediction"`` gives each predicted class a threshold of
            its own, so that the guarantee holds for the rows of every class, and `pvalues`
            compares a row with the calibration rows of its class. The class is that of the
            largest logit of the unmasked `head_`. Classes with too few rows take the threshold of
            all rows, which promises nothing for one class; the fitted attribute `fallback_classes_`
            lists them, and `class_offsets_` has the threshold of each class. With
            `confidence` the probability is that of each class by itself.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            `contamination` or `confidence` is out of its range, `confidence` or `by` is given for
            a quantile, `by` is given for a detector without a head, or ``"conformal"`` has too
            few rows for any guarantee: fewer than ``1 / contamination - 1``, or with
            `confidence` fewer than ``log(1 - confidence) / log(1 - contamination)``.

        Warns
        -----
        UserWarning
            With ``by="prediction"``, some classes have fewer rows than that. Or X are probably the
            rows of `fit`: as many, with scores that give the threshold that `fit` set.

        References
        ----------
        Bates, Candes, Lei, Romano & Sesia, "Testing for outliers with conformal p-values",
        Annals of Statistics 2023, arXiv:2104.08279.

        Vovk, "Conditional validity of inductive conformal predictors", ACML 2012,
        arXiv:1209.2673.
        """
        rows = self._open(X, "calibrate")
        if method not in ("quantile", "conformal"):
            raise ValueError(f"method is {method!r}, expected 'quantile' or 'conformal'")
        share = self.contamination if contamination is None else contamination
        if not Interval(Real, 0, 0.5, closed="right").is_satisfied_by(share):
            raise ValueError(f"contamination is {share!r}, expected a float in (0, 0.5]")
        if confidence is not None:
            if not Interval(Real, 0, 1, closed="neither").is_satisfied_by(confidence):
                raise ValueError(
                    f"confidence is {confidence!r}, expected None or a float in (0, 1)"
                )
            if method != "conformal":
                raise ValueError(
                    f"confidence is {confidence!r} and method is {method!r}: a quantile promises "
                    "nothing about future rows, so give method='conformal'"
                )
            confidence = float(confidence)
        self._check_by(by, method)
        classes = None
        if by is None:
            scores = rows.collect(self._block_values())
        else:
            scores, classes = self._scores_and_classes(rows)
        if is_dask(scores):
            # Conformal scores are kept with the detector. Other scores stay in the memory of the
            # workers, because several passes read them.
            scores = scores.compute() if method == "conformal" else scores.persist()
        else:
            scores = to_numpy(scores)
        blocks = in_order(scores) if is_dask(scores) else iter([scores])
        sizes: list[int] = []
        digest = digest_of_blocks(_counted(blocks, sizes))
        n_rows = sum(sizes)
        if n_rows == 0:  # chunks of unknown sizes may all be empty
            raise self._no_rows(0, labelled=False)
        self._warn_of_fitted_rows(X, n_rows, scores, share)
        if method == "conformal":
            rank = conformal_rank(n_rows, share, confidence)
            # Equal scores are in the order of their rows, so that their classes are, too.
            order = np.argsort(scores, kind="stable")
            ordered = scores[order]
            offset = float(ordered[rank - 1])
        else:
            rank = rows_below(n_rows, share) + 1
            offset = score_threshold(scores, share)
        self._forget_threshold()
        self.offset_, self.contamination_ = offset, float(share)
        self.calibration_ = Calibration(
            method=method,
            contamination=float(share),
            confidence=confidence,
            n_samples=n_rows,
            rank=rank,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            digest=digest,
            by=by,
        )
        if method == "conformal":
            self.calibration_scores_ = ordered
        if classes is not None:
            self._set_class_offsets(classes[order])
            warn_of_fallback(
                self.fallback_classes_, self.head_.n_classes, self.contamination_, confidence
            )
        return self

    def _warn_of_fitted_rows(self, X: Any, n_rows: int, scores: Any, share: float) -> None:
        """Warn if rows are probably those of `fit`: as many, and with the threshold that it set."""
        if n_rows == self.n_samples_seen_ and self._has_threshold_of_fit(X, scores):
            warnings.warn(
                f"the {n_rows:,} rows given to calibrate are probably the rows of fit: they are as "
                "many, and their scores give the same threshold. A network is surer of its "
                "training rows than of others, so more good rows will be flagged than the "
                f"contamination of {share:g}. Calibrate with rows that neither the network nor fit "
                "has seen.",
                stacklevel=3,
            )

    def _has_threshold_of_fit(self, X: Any, scores: Any) -> bool:
        """Return whether scores give the threshold that `fit` set, if it is still in force.

        A score that many rows have, such as a saturated probability, tells nothing about them.
        """
        if not hasattr(self, "offset_") or hasattr(self, "calibration_"):
            return False
        threshold = score_threshold(scores, self.contamination_)
        n_tied, n_rows = int((scores == threshold).sum()), self.n_samples_seen_
        return isclose(threshold, self.offset_, rel_tol=1e-5) and n_tied <= 1 + 0.01 * n_rows

    def _scores_and_classes(self, rows: RowSource) -> tuple[FloatArray, NDArray[np.intp]]:
        """Return the score and the predicted class of each row as NumPy arrays."""
        function = partial(gathered_blocks, self._block_values(), self.head_)
        columns = rows.collect(function, np.float64, 2)
        columns = columns.compute() if is_dask(columns) else to_numpy(columns)
        return columns[:, 0].astype(scoring_dtype(rows.dtype)), columns[:, 1].astype(np.intp)

    def _decisions_and_classes(self, X: Any) -> tuple[FloatArray, NDArray[np.intp]]:
        """Return the decision and the predicted class of each row as NumPy arrays."""
        scores, classes = self._scores_and_classes(self._open(X, "decision_function"))
        return scores - self.class_offsets_.astype(scores.dtype)[classes], classes

    def _check_by(self, by: Any, method: str) -> None:
        """Raise if `calibrate` cannot set thresholds by `by`."""
        if by is None:
            return
        if by != "prediction":
            raise ValueError(f"by is {by!r}, expected None or 'prediction'")
        if method != "conformal":
            raise ValueError(
                f"by is {by!r} and method is {method!r}: only conformal thresholds promise a rate "
                "for each class, so give method='conformal'"
            )
        if self.head_ is None:
            raise ValueError(
                f"by is {by!r}, but this {type(self).__name__} has no head that could predict a "
                "class: its members are all of other libraries"
            )

    def _set_class_offsets(self, classes: NDArray[np.intp]) -> None:
        """Set the threshold of each class from the calibration and the classes of its scores."""
        record = self.calibration_
        by_class = ClassScores(self.calibration_scores_, classes, self.head_.n_classes)
        promise = record.contamination, record.confidence
        self.calibration_classes_ = classes
        self.class_offsets_ = by_class.offsets(self.offset_, *promise)
        self.fallback_classes_ = by_class.fallback(*promise)

    def pvalues(self, X: ArrayLike) -> Any:
        """Return the conformal p-value of each row: small = out-of-distribution.

        The p-value is the share of the calibration rows, and the row itself, whose score is at
        most that of the row. For an in-distribution row exchangeable with the calibration rows,
        the probability that its p-value is at most a is at most a, for every a. After
        ``calibrate(..., by="prediction")`` the calibration rows are those of the predicted class
        of the row, so that this holds within every class; a row of `fallback_classes_` is compared
        with all calibration rows.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features.

        Returns
        -------
        array of the kind of X, of shape (n_samples,), float64
            Values in (0, 1].

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The detector is not fitted, or not calibrated with ``method="conformal"``.
        """
        rows = self._open(X, "pvalues")
        if not hasattr(self, "calibration_scores_"):
            raise NotFittedError(
                f"This {type(self).__name__} has no scores to compare with: call calibrate with "
                "held-out in-distribution rows and method='conformal' first."
            )
        function: BlockValues
        if hasattr(self, "class_offsets_"):
            by_class = ClassScores(
                self.calibration_scores_, self.calibration_classes_, self.head_.n_classes
            )
            function = partial(
                pvalue_blocks, self._block_values(), self.head_, by_class, self.fallback_classes_
            )
        else:
            function = partial(_block_pvalues, self._block_values(), self.calibration_scores_)
        return rows.collect(function, np.float64)

    def _set_threshold(self, rows: RowSource, scores: Any = None) -> None:
        """Set the threshold from the rows of `fit`, with their weights if they have some.

        Their scores are computed here unless they are given.
        """
        if scores is None:
            scores = rows.collect(self._block_values())
        self._forget_threshold()
        if rows.weights is None:
            self.offset_ = score_threshold(scores, self.contamination)
        else:
            # Weighted scores of a Dask array come to the client, 16 bytes for a row.
            scores = scores.compute() if is_dask(scores) else to_numpy(scores)
            self.offset_ = weighted_threshold(scores, weights_of(rows), self.contamination)
        self.contamination_ = float(self.contamination)

    def _forget_threshold(self) -> None:
        """Remove everything that belongs to a threshold."""
        for name in (
            "offset_",
            "contamination_",
            "calibration_",
            "calibration_scores_",
            "class_offsets_",
            "fallback_classes_",
            "calibration_classes_",
        ):
            self.__dict__.pop(name, None)


def _block_pvalues(
    block_scores: BlockValues, calibration_scores: FloatArray, rows: SlicedRows
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield the slice and the conformal p-values of each block of rows."""
    for row_slice, scores in block_scores(rows):
        yield row_slice, conformal_pvalues(calibration_scores, to_numpy(scores))


def _counted(blocks: Iterator[FloatArray], sizes: list[int]) -> Iterator[FloatArray]:
    """Yield the blocks, and append the number of rows of every block to `sizes`."""
    for block in blocks:
        sizes.append(len(block))
        yield block
