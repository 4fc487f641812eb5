"""Reports: how well detectors tell in-distribution rows from sets of others."""

import json
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from html import escape
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.pipeline import Pipeline
from sklearn.utils import column_or_1d
from sklearn.utils.validation import check_is_fitted

from skdice._base import BaseDetector
from skdice._compat.arrays import is_dask, to_host, to_numpy
from skdice._dice import LEAST_AGREEMENT, BaseDICE
from skdice._engines.layer import MaskedLayer
from skdice._engines.run import Options, run
from skdice._rows.door import as_source
from skdice._rows.sources import FloatArray, RowSource
from skdice.metrics._counts import METRICS, fpr_name, metric_on_counts
from skdice.metrics._rates import count_scores, labelled

# The names in a report of the in-distribution rows and of the mean over the other sets.
ID_NAME = "in-distribution"
MEAN = "mean"


@dataclass(frozen=True)
class SetResult:
    """Metrics of one detector on one out-of-distribution set, as fractions."""

    # In-distribution is positive. The rule is that of the report.
    fpr95: float
    auroc: float
    aupr_in: float
    aupr_out: float
    detection_error: float
    # The share of the set's rows below the threshold; None without a threshold.
    flagged: float | None

    def __str__(self) -> str:
        return f"{100 * self.fpr95:5.1f} /{100 * self.auroc:6.1f}"


@dataclass(frozen=True)
class DetectorResult:
    """Results of one detector."""

    sets: dict[str, SetResult]
    # The share of the in-distribution rows below the threshold; None without a threshold.
    id_flagged: float | None
    # The shares of the in-distribution rows whose largest logit is that of their label, with the
    # full and with the masked layer; None without labels, or without a mask.
    accuracy: float | None = None
    masked_accuracy: float | None = None
    # The `head_agreement_` of a DICE detector; None for others and after `partial_fit`.
    head_agreement: float | None = None

    @property
    def mean(self) -> SetResult:
        """Mean over the sets, in which each set counts the same."""
        rows = [asdict(result) for result in self.sets.values()]
        means: dict[str, Any] = {
            name: None if rows[0][name] is None else float(np.mean([row[name] for row in rows]))
            for name in rows[0]
        }
        return SetResult(**means)

    @property
    def ood_flagged(self) -> float | None:
        """Share of the OOD rows below the threshold, a mean over the sets; None without one."""
        return self.mean.flagged


@dataclass(frozen=True, repr=False)
class MetricsTable:
    """Metrics of detectors on OOD sets, shown as a table in percent.

    `evaluate` and `compare` return it. Where the `head_agreement_` of a detector is below 95 %,
    so that pruning harms its head, the table has a column "agreement".

    Parameters
    ----------
    results : dict of str to DetectorResult
        The results by the label of the detector.
    rule : {"paper", "roc_curve"}
        The rule of the FPR95 (see `skdice.metrics.fpr_at_tpr`).

    See Also
    --------
    skdice.report.OODReport : The evidence on one detector, as a page to sign.

    Examples
    --------
    See `evaluate`.
    """

    results: dict[str, DetectorResult]
    rule: str = "paper"

    @property
    def caption(self) -> str:
        """What the numbers of the table are."""
        return (
            f"{fpr_name(0.95, self.rule)} / AUROC in percent; in-distribution is positive,\n"
            "a lower FPR95 and a higher AUROC are better"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and numbers: all metrics, and the mean over the sets.

        Returns
        -------
        dict of str to dict
            By the label of the detector: the fields of `DetectorResult`, the mean over the sets
            and the rule of the FPR95.
        """
        return {
            label: {**asdict(result), "mean": asdict(result.mean), "fpr95_rule": self.rule}
            for label, result in self.results.items()
        }

    def to_json(self, **options: Any) -> str:
        """Return `to_dict` as JSON text.

        Parameters
        ----------
        **options
            The options of `json.dumps`.

        Returns
        -------
        str
            The text.
        """
        return json.dumps(self.to_dict(), **options)

    def to_frame(self) -> Any:
        """Return a pandas DataFrame.

        Returns
        -------
        pandas.DataFrame
            One row per detector and set, one column per metric. Its ``attrs`` name the rule of
            the FPR95.

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
            (label, name): list(asdict(set_result).values())
            for label, result in self.results.items()
            for name, set_result in {**result.sets, MEAN: result.mean}.items()
        }
        index = pandas.MultiIndex.from_tuples(rows, names=["detector", "set"])
        frame = pandas.DataFrame(list(rows.values()), index=index, columns=names)
        frame.attrs["fpr95_rule"] = self.rule
        return frame

    def to_markdown(self) -> str:
        """Return the table of FPR95 and AUROC as Markdown.

        Returns
        -------
        str
            The table, and its caption above it.
        """
        header, *lines = self._table()
        rule = ["---"] + ["---:"] * (len(header) - 1)
        text = [self.caption.replace("\n", " "), ""]
        for cells in (header, rule, *lines):
            text.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        return "\n".join(text)

    def __repr__(self) -> str:
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        text = [self.caption, ""]
        for label, *cells in table:
            line = [label.ljust(widths[0])]
            line += [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
            text.append("  ".join(line).rstrip())
        return "\n".join(text)

    def _repr_html_(self) -> str:
        rows = []
        for number, (label, *cells) in enumerate(self._table()):
            tag = "td" if number else "th"
            marked = [f"<{tag}>{escape(cell)}</{tag}>" for cell in cells]
            rows.append(f"<tr><th>{escape(label)}</th>{''.join(marked)}</tr>")
        return f"<table><caption>{escape(self.caption)}</caption>{''.join(rows)}</table>"

    def _table(self) -> list[list[str]]:
        """Return the cells of the table, row by row, the header first."""
        first = next(iter(self.results.values()))
        optional = {
            "ID flagged": "id_flagged",
            "OOD flagged": "ood_flagged",
            "accuracy": "accuracy",
            "masked": "masked_accuracy",
        }
        shown = {
            title: name
            for title, name in optional.items()
            if any(getattr(result, name) is not None for result in self.results.values())
        }
        agreements = [result.head_agreement for result in self.results.values()]
        if min((each for each in agreements if each is not None), default=1) < LEAST_AGREEMENT:
            shown["agreement"] = "head_agreement"
        table = [["", *first.sets, MEAN, *shown]]
        for label, result in self.results.items():
            cells = [str(set_result) for set_result in (*result.sets.values(), result.mean)]
            shares = [getattr(result, name) for name in shown.values()]
            cells += ["" if share is None else f"{100 * share:.1f}" for share in shares]
            table.append([label, *cells])
        return table


def evaluate(
    detector: Any,
    X_id: Any,
    ood: Mapping[str, Any],
    *,
    y_id: ArrayLike | None = None,
    rule: str = "paper",
) -> MetricsTable:
    """Measure a fitted detector on in-distribution rows and on named sets of others.

    Every row is scored once, in blocks; sources may be larger than memory.

    Parameters
    ----------
    detector : outlier detector
        A fitted `skdice.DICEDetector`, a fitted Pipeline that ends in one, or any other fitted
        detector with ``score_samples``.
    X_id : array-like or source of rows, of shape (n_samples, n_features)
        Features of in-distribution inputs that neither the network nor the detector has seen.
    ood : mapping of str to array-like or source of rows
        Features of out-of-distribution sets by name.
    y_id : array-like of shape (n_samples,), default=None
        Classes of the in-distribution inputs, as places among the head's rows from 0. With
        them the report has the accuracy of the full head, and of the masked one where a detector
        masks it. The detector needs a head: DICE, fDBD, ViM, or an ensemble of these.
    rule : {"paper", "roc_curve"}, default="paper"
        The rule of the FPR95 (see `fpr_at_tpr`).

    Returns
    -------
    MetricsTable
        The metrics of each set and their mean over the sets.

    Raises
    ------
    ValueError
        No set is given, labels do not match the rows or the head, or the rule is unknown.

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
    return compare({type(detector).__name__: detector}, X_id, ood, y_id=y_id, rule=rule)


def compare(
    detectors: Mapping[str, Any],
    X_id: Any,
    ood: Mapping[str, Any],
    *,
    y_id: ArrayLike | None = None,
    rule: str = "paper",
) -> MetricsTable:
    """Measure fitted detectors on the same rows.

    Parameters
    ----------
    detectors : mapping of str to outlier detector
        Fitted detectors by their label in the report.
    X_id : array-like or source of rows, of shape (n_samples, n_features)
        Features of in-distribution inputs that neither the network nor a detector has seen.
    ood : mapping of str to array-like or source of rows
        Features of out-of-distribution sets by name.
    y_id : array-like of shape (n_samples,), default=None
        Classes of the in-distribution inputs, as places among the head's rows from 0. With
        them the report has the accuracy of the full head, and of the masked one where a detector
        masks it. The detector needs a head: DICE, fDBD, ViM, or an ensemble of these.
    rule : {"paper", "roc_curve"}, default="paper"
        The rule of the FPR95 (see `fpr_at_tpr`).

    Returns
    -------
    MetricsTable
        The metrics, one row per detector.

    Raises
    ------
    ValueError
        No set or no detector is given, labels do not match the rows or the head, or the rule
        is unknown.

    See Also
    --------
    evaluate : Measures one detector.
    """
    for name, given in (("ood", ood), ("detectors", detectors)):
        if not isinstance(given, Mapping) or not given:
            raise ValueError(
                f"{name} is {reprlib.repr(given)}, expected a mapping with at least one name"
            )
    if MEAN in ood:
        raise ValueError(f"an OOD set is named {MEAN!r}, which the report uses for the mean")
    metric_on_counts("fpr_at_tpr", rule=rule)  # raises before any work if the rule is unknown
    results = {
        label: _measure(detector, X_id, ood, y_id, rule) for label, detector in detectors.items()
    }
    return MetricsTable(results, rule)


def measure_scores(
    id_scores: FloatArray,
    ood_scores: Mapping[str, FloatArray],
    threshold: float | None,
    *,
    rule: str = "paper",
) -> DetectorResult:
    """Return the results that follow from scores alone; a row below the threshold is flagged."""

    def flagged(scores: FloatArray) -> float | None:
        return None if threshold is None else float(np.mean(scores - threshold < 0))

    sets = {}
    for set_name, scores in ood_scores.items():
        counts = count_scores(*labelled(id_scores, scores))
        found = {name: float(metric_on_counts(name, rule=rule)(*counts)) for name in METRICS}
        found["fpr95"] = found.pop("fpr_at_tpr")
        sets[set_name] = SetResult(**found, flagged=flagged(scores))
    return DetectorResult(sets, flagged(id_scores))


def _measure(
    detector: Any, X_id: Any, ood: Mapping[str, Any], y_id: ArrayLike | None, rule: str
) -> DetectorResult:
    check_is_fitted(detector)
    id_scores = score_rows(detector, X_id)
    ood_scores = {name: score_rows(detector, X) for name, X in ood.items()}
    result = measure_detector(detector, X_id, id_scores, ood, ood_scores, rule=rule)
    if y_id is None:
        return result
    head = getattr(detector, "head_", None)
    if not isinstance(detector, BaseDetector) or head is None:
        raise ValueError(
            f"y_id is given, but this {type(detector).__name__} has no head that could predict a "
            "class; leave it out"
        )
    rows = as_source(X_id)
    labels = _class_labels(y_id, rows, head.n_classes)
    full = MaskedLayer(head.weight, head.bias, None, None)
    result = replace(result, accuracy=_accuracy(detector, full, rows, labels))
    if isinstance(detector, BaseDICE):
        masked = _accuracy(detector, detector._logits_layer(), rows, labels)
        result = replace(result, masked_accuracy=masked)
    return result


def measure_detector(
    detector: Any,
    X_id: Any,
    id_scores: FloatArray,
    ood: Mapping[str, Any],
    ood_scores: Mapping[str, FloatArray],
    *,
    rule: str = "paper",
) -> DetectorResult:
    """Return the results of a fitted detector whose scores of the rows are known."""
    final = final_step(detector)
    result = measure_scores(id_scores, ood_scores, final.__dict__.get("offset_"), rule=rule)
    if hasattr(final, "class_offsets_"):
        # The scores alone do not give the shares that the thresholds of the predicted classes
        # flag, so that the rows are read once more.
        def flagged(X: Any) -> float:
            decision = detector.decision_function(X)
            decision = decision.compute() if is_dask(decision) else to_numpy(decision)
            return float(np.mean(decision < 0))

        sets = {
            name: replace(each, flagged=flagged(ood[name])) for name, each in result.sets.items()
        }
        result = replace(result, sets=sets, id_flagged=flagged(X_id))
    return replace(result, head_agreement=getattr(final, "head_agreement_", None))


def final_step(detector: Any) -> Any:
    """Return the detector that a pipeline ends in, or the detector itself."""
    return detector[-1] if isinstance(detector, Pipeline) else detector


@contextmanager
def error_prefix(name: Any) -> Iterator[None]:
    """Put the name of a set before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def score_rows(detector: Any, X: Any) -> FloatArray:
    """Return the scores of rows as a NumPy array, on whichever device they are computed."""
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
    detector: BaseDetector, layer: MaskedLayer, rows: RowSource, labels: NDArray[np.intp]
) -> float:
    right = 0
    options = Options(detector.device, detector.batch_size, detector.n_jobs, detector.verbose)
    blocks = rows.iterate_values(partial(run, layer, options=options), n_columns=len(layer.weight))
    for row_slice, logits in blocks:
        right += int((logits.argmax(axis=1) == labels[row_slice]).sum())
    return right / len(labels)
