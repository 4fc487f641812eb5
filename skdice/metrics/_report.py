"""Reports: how well detectors tell in-distribution rows from sets of others."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from html import escape
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.pipeline import Pipeline
from sklearn.utils import column_or_1d
from sklearn.utils.validation import check_is_fitted

from skdice._base import BaseDetector
from skdice._compat.arrays import to_host
from skdice._dice import BaseDICE
from skdice._engines.layer import MaskedLayer
from skdice._rows.door import as_source
from skdice._rows.sources import RowSource
from skdice.metrics._rates import (
    aupr_in,
    aupr_out,
    auroc,
    detection_error,
    fpr_at_tpr_authors,
    labelled,
)

FloatArray = NDArray[np.floating[Any]]

CONVENTION = (
    "FPR95 / AUROC in percent; in-distribution is positive, a lower FPR95 and a higher AUROC\n"
    "are better"
)
MEAN = "mean"


@dataclass(frozen=True)
class SetResult:
    """Metrics of one detector on one out-of-distribution set, as fractions.

    Attributes
    ----------
    fpr95 : float
        False-positive rate at 95 % true positives, in-distribution positive, by the papers'
        rule (`skdice.metrics.fpr_at_tpr_authors`).
    auroc, aupr_in, aupr_out, detection_error : float
        The metrics of those names.
    flagged : float or None
        Share of the set's rows below the threshold; None without a threshold.
    """

    fpr95: float
    auroc: float
    aupr_in: float
    aupr_out: float
    detection_error: float
    flagged: float | None

    def __str__(self) -> str:
        return f"{100 * self.fpr95:5.1f} /{100 * self.auroc:6.1f}"


@dataclass(frozen=True)
class DetectorResult:
    """Results of one detector.

    Attributes
    ----------
    sets : dict of str to SetResult
        By the name of the set.
    id_flagged : float or None
        Share of the in-distribution rows below the threshold; None without a threshold.
    accuracy, masked_accuracy : float or None
        Share of the in-distribution rows whose largest logit is that of their label, with
        the full and with the masked layer; None without labels.
    """

    sets: dict[str, SetResult]
    id_flagged: float | None
    accuracy: float | None = None
    masked_accuracy: float | None = None

    @property
    def mean(self) -> SetResult:
        """Mean over the sets, each counting the same."""
        rows = [asdict(each) for each in self.sets.values()]
        means: dict[str, Any] = {
            name: None if rows[0][name] is None else float(np.mean([row[name] for row in rows]))
            for name in rows[0]
        }
        return SetResult(**means)


@dataclass(frozen=True, repr=False)
class OODReport:
    """What `evaluate` and `compare` return: a table when shown, in percent.

    Attributes
    ----------
    results : dict of str to DetectorResult
        By the label of the detector.

    Examples
    --------
    See `evaluate`.
    """

    results: dict[str, DetectorResult]

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and numbers: all metrics, and the mean over the sets."""
        return {
            label: {**asdict(result), "mean": asdict(result.mean)}
            for label, result in self.results.items()
        }

    def to_json(self, **options: Any) -> str:
        """Return `to_dict` as JSON text; options are those of `json.dumps`."""
        return json.dumps(self.to_dict(), **options)

    def to_frame(self) -> Any:
        """Return a pandas DataFrame: a row per detector and set, a column per metric.

        Raises
        ------
        ImportError
            pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ModuleNotFoundError as error:
            raise ImportError("pandas is not installed: run pip install pandas.") from error
        names = [field.name for field in fields(SetResult)]
        rows = {
            (label, name): list(asdict(each).values())
            for label, result in self.results.items()
            for name, each in {**result.sets, MEAN: result.mean}.items()
        }
        index = pandas.MultiIndex.from_tuples(rows, names=["detector", "set"])
        return pandas.DataFrame(list(rows.values()), index=index, columns=names)

    def to_markdown(self) -> str:
        """Return the table of FPR95 / AUROC in percent as Markdown."""
        header, *lines = [[cell.replace("|", "\\|") for cell in line] for line in self._table()]
        rule = ["---"] + ["---:"] * (len(header) - 1)
        return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))

    def __repr__(self) -> str:
        header, *lines = self._table()
        widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
        text = [
            line[0].ljust(widths[0])
            + "".join(
                f"  {cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True)
            )
            for line in (header, *lines)
        ]
        return "\n".join(line.rstrip() for line in text)

    def _repr_html_(self) -> str:
        header, *lines = self._table()
        rows = [
            "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in header) + "</tr>",
            *(
                f"<tr><th>{escape(line[0])}</th>"
                + "".join(f"<td>{escape(cell)}</td>" for cell in line[1:])
                + "</tr>"
                for line in lines
            ),
        ]
        return f"<table><caption>{escape(CONVENTION)}</caption>{''.join(rows)}</table>"

    def _table(self) -> list[list[str]]:
        """Return the cells of the table, row by row, the header first."""
        first = next(iter(self.results.values()))
        optional = {
            "ID flagged": [each.id_flagged for each in self.results.values()],
            "accuracy": [each.accuracy for each in self.results.values()],
            "masked": [each.masked_accuracy for each in self.results.values()],
        }
        shown = {
            name: values for name, values in optional.items() if any(v is not None for v in values)
        }
        table = [["", *first.sets, MEAN, *shown]]
        for n, (label, result) in enumerate(self.results.items()):
            cells = [str(each) for each in (*result.sets.values(), result.mean)]
            more = [values[n] for values in shown.values()]
            shares = ["" if each is None else f"{100 * each:.1f}" for each in more]
            table.append([label, *cells, *shares])
        return table


def evaluate(
    detector: Any, X_id: Any, ood: Mapping[str, Any], *, y_id: ArrayLike | None = None
) -> OODReport:
    """Measure a fitted detector on in-distribution rows and on named sets of others.

    Every row is scored once, in blocks; sources may be larger than memory.

    Parameters
    ----------
    detector : outlier detector
        Fitted: a `skdice.DICEDetector`, a Pipeline that ends in one, or any other with
        ``score_samples``.
    X_id : array-like or source of rows, of shape (n_samples, n_features)
        Features of in-distribution inputs that neither the network nor the detector has seen.
    ood : mapping of str to array-like or source of rows
        Features of out-of-distribution sets by name.
    y_id : array-like of shape (n_samples,), default=None
        Classes of the in-distribution inputs, as places among the head's rows from 0: adds
        the accuracy of the full and of the masked layer.

    Returns
    -------
    OODReport
        Per set and the mean over the sets.

    Raises
    ------
    ValueError
        No set is given, or labels do not match the rows or the head.

    Examples
    --------
    >>> from skdice import DICEDetector
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> from skdice.metrics import evaluate
    >>> data = load_fashion_mnist_ood()
    >>> detector = DICEDetector(data.head, sparsity=0.1).fit(data.id_train)
    >>> report = evaluate(detector, data.id_test, {"mnist": data.ood["mnist"]})
    >>> round(report.results["DICEDetector"].sets["mnist"].auroc, 2)
    0.98
    """
    return compare({type(detector).__name__: detector}, X_id, ood, y_id=y_id)


def compare(
    detectors: Mapping[str, Any],
    X_id: Any,
    ood: Mapping[str, Any],
    *,
    y_id: ArrayLike | None = None,
) -> OODReport:
    """Measure fitted detectors on the same rows; see `evaluate`.

    Parameters
    ----------
    detectors : mapping of str to outlier detector
        Fitted, by label, as in `evaluate`.
    X_id, ood, y_id
        As in `evaluate`.

    Returns
    -------
    OODReport
        A row per detector.
    """
    for what, given in (("ood", ood), ("detectors", detectors)):
        if not isinstance(given, Mapping) or not given:
            raise ValueError(
                f"{what} is {reprlib.repr(given)}, expected a mapping with at least one name"
            )
    if MEAN in ood:
        raise ValueError(f"an OOD set is named {MEAN!r}, which the report uses for the mean")
    return OODReport({label: _measure(each, X_id, ood, y_id) for label, each in detectors.items()})


def measure_scores(
    id_scores: FloatArray, ood_scores: Mapping[str, FloatArray], threshold: float | None
) -> DetectorResult:
    """Return the results that follow from scores alone.

    Parameters
    ----------
    id_scores : ndarray of shape (n_samples,)
        Scores of in-distribution rows.
    ood_scores : mapping of str to ndarray
        Scores of each set.
    threshold : float or None
        On the scores.
    """

    def flagged(scores: FloatArray) -> float | None:
        return None if threshold is None else float(np.mean(scores - threshold < 0))

    sets = {}
    for name, scores in ood_scores.items():
        y_true, y_score = labelled(id_scores, scores)
        sets[name] = SetResult(
            fpr95=fpr_at_tpr_authors(y_true, y_score),
            auroc=auroc(y_true, y_score),
            aupr_in=aupr_in(y_true, y_score),
            aupr_out=aupr_out(y_true, y_score),
            detection_error=detection_error(y_true, y_score),
            flagged=flagged(scores),
        )
    return DetectorResult(sets, flagged(id_scores))


def _measure(
    detector: Any, X_id: Any, ood: Mapping[str, Any], y_id: ArrayLike | None
) -> DetectorResult:
    check_is_fitted(detector)
    result = measure_scores(
        score_rows(detector, X_id),
        {name: score_rows(detector, rows) for name, rows in ood.items()},
        final_step(detector).__dict__.get("offset_"),
    )
    if y_id is None:
        return result
    if not isinstance(detector, BaseDICE):
        raise ValueError(f"y_id is given, but {detector!r} has no classes; leave it out")
    rows = as_source(X_id)
    labels = _class_labels(y_id, rows, len(detector.mask_))
    head = detector.head_
    layers = (MaskedLayer(head.weight, head.bias, None, None), detector._logits_layer())
    accuracies = [_accuracy(detector, layer, rows, labels) for layer in layers]
    return DetectorResult(result.sets, result.id_flagged, *accuracies)


def final_step(detector: Any) -> Any:
    """Return the detector that a pipeline ends in, or the detector itself."""
    return detector[-1] if isinstance(detector, Pipeline) else detector


def score_rows(detector: Any, X: Any) -> FloatArray:
    """Return the scores of rows as a NumPy array, wherever they are computed."""
    if not isinstance(detector, BaseDetector):
        return np.asarray(to_host(detector.score_samples(X)))
    dtype, blocks = detector._iterate_scores(X)
    return np.concatenate([np.empty(0, dtype), *blocks])


def _class_labels(y_id: ArrayLike, rows: RowSource, n_classes: int) -> NDArray[np.intp]:
    labels: NDArray[Any] = column_or_1d(to_host(y_id))
    if len(labels) != rows.shape[0]:
        raise ValueError(f"y_id has {len(labels)} labels, but X_id has {rows.shape[0]} rows")
    if labels.dtype.kind not in "iuf" or (labels != labels.astype(np.intp)).any():
        raise ValueError(f"y_id has dtype {labels.dtype}, expected places of classes from 0")
    places: NDArray[np.intp] = labels.astype(np.intp)
    wrong = np.flatnonzero((places < 0) | (places >= n_classes))
    if len(wrong):
        raise ValueError(
            f"y_id[{wrong[0]}] is {places[wrong[0]]}, expected a place from 0 to {n_classes - 1}"
        )
    return places


def _accuracy(
    detector: BaseDICE, layer: MaskedLayer, rows: RowSource, labels: NDArray[np.intp]
) -> float:
    right = 0
    blocks = rows.iterate_values(detector._run(layer), n_columns=len(layer.weight))
    for row_slice, logits in blocks:
        right += int((logits.argmax(axis=1) == labels[row_slice]).sum())
    return right / len(labels)
