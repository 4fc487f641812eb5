"""What is measured on the rows of a report, from their scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import roc_curve

from skdice._base import BaseDetector
from skdice._calibration.by_prediction import ClassScores, class_pvalues
from skdice._engines.layer import MaskedLayer
from skdice._engines.run import Options, run
from skdice._passes.threshold import conformal_pvalues
from skdice._rows.sources import FloatArray, RowSource
from skdice.metrics import confidence_interval
from skdice.metrics._counts import metric_on_counts
from skdice.metrics._intervals import interval_of_mean
from skdice.metrics._rates import count_scores, labelled
from skdice.monitoring import batch_pvalue
from skdice.monitoring._batch import batch_test_by_class

Interval = tuple[float, float]

N_EXTREME = 10
N_BINS = 40
# A picture of a curve needs no more points than this.
N_CURVE = 150
# The shares of in-distribution rows flagged at which the share of outliers flagged is told.
OPERATING_RATES = (0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Metric:
    """A metric as a fraction, with its interval at 95 %; None where there is none."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class ExtremeRow:
    """One of the most or the least typical rows of a set, by its number from 0."""

    row: int
    score: float
    # None without a conformal threshold of all rows.
    pvalue: float | None
    # The class by the full head; None if it was not computed.
    predicted: int | None
    # None without a threshold.
    flagged: bool | None


@dataclass(frozen=True)
class ScoredSet:
    """What is known of any set of rows from its scores alone."""

    name: str
    n_rows: int
    # None without a threshold.
    n_flagged: int | None
    # At most ten rows with the lowest scores, and as many with the highest.
    least_typical: tuple[ExtremeRow, ...]
    most_typical: tuple[ExtremeRow, ...]

    @property
    def flagged(self) -> float | None:
        """Share of the rows that the detector flags."""
        return None if self.n_flagged is None else self.n_flagged / self.n_rows

    @property
    def flagged_interval(self) -> Interval | None:
        """Interval of this share at 95 %, by Clopper and Pearson."""
        if self.n_flagged is None:
            return None
        found = binomtest(self.n_flagged, self.n_rows).proportion_ci(0.95, "exact")
        return float(found.low), float(found.high)


@dataclass(frozen=True)
class ClassRow:
    """The in-distribution rows to which the full head gives one class."""

    predicted: int
    n_rows: int
    n_flagged: int
    threshold: float

    @property
    def flagged(self) -> float:
        """Share of the rows that the detector flags."""
        return self.n_flagged / self.n_rows


@dataclass(frozen=True)
class InDistribution(ScoredSet):
    """The in-distribution rows."""

    # Probability that rows like those of the calibration give as many flagged rows or more; None
    # without a calibration. With a threshold for each class, rows of classes without one of their
    # own are not tested.
    pvalue: float | None
    n_tested: int
    n_tested_flagged: int
    # Empty without a head or a threshold.
    classes: tuple[ClassRow, ...]


@dataclass(frozen=True)
class Histogram:
    """Shares of the in-distribution rows and of the rows of a set by score.

    The first and the last bin also hold all rows beyond their edges.
    """

    edges: tuple[float, ...]
    inside: tuple[float, ...]
    outside: tuple[float, ...]


@dataclass(frozen=True)
class OutlierSet(ScoredSet):
    """One set of out-of-distribution rows."""

    fpr95: Metric
    auroc: Metric
    histogram: Histogram
    # False-positive and true-positive rates.
    roc: tuple[tuple[float, float], ...]
    # Share of the set flagged where each of `OPERATING_RATES` of the in-distribution rows is.
    operating: tuple[float, ...]


@dataclass(frozen=True)
class Scored:
    """The scores of a set, and what the detector decides."""

    name: str
    scores: FloatArray
    # Which rows the detector flags; None without a threshold.
    flags: NDArray[np.bool_] | None
    # The class of each row by the full head.
    classes: NDArray[np.intp] | None


def predicted_classes(detector: BaseDetector, rows: RowSource) -> NDArray[np.intp] | None:
    """Return the class of each row by the full head; None for a detector without a head."""
    head = detector.head_
    if head is None:
        return None
    layer = MaskedLayer(head.weight, head.bias, None, None)
    options = Options(detector.device, detector.batch_size, detector.n_jobs, detector.verbose)
    blocks = rows.iterate_values(partial(run, layer, options=options), n_columns=head.n_classes)
    return np.concatenate([logits.argmax(axis=1) for _, logits in blocks])


def measure_inside(detector: BaseDetector, inside: Scored) -> InDistribution:
    """Return what is measured on the in-distribution rows."""
    record = getattr(detector, "calibration_", None)
    pvalue, n_tested, n_flagged = None, 0, 0
    if inside.flags is not None and record is not None:
        n_tested, n_flagged = len(inside.flags), int(inside.flags.sum())
        if inside.classes is not None and hasattr(detector, "class_offsets_"):
            test = batch_test_by_class(detector, inside.flags, inside.classes)
            pvalue, n_tested, n_flagged = test.pvalue, test.n_rows, test.n_flagged
        else:
            pvalue = float(batch_pvalue(n_flagged, n_tested, record.rank, record.n_samples))
    return InDistribution(
        **_scored_set(detector, inside),
        pvalue=pvalue,
        n_tested=n_tested,
        n_tested_flagged=n_flagged,
        classes=_by_class(detector, inside),
    )


def measure_outside(
    detector: BaseDetector, inside: Scored, outside: Scored, rule: str
) -> OutlierSet:
    """Return what is measured on one set of out-of-distribution rows."""
    pair = labelled(inside.scores, outside.scores)
    counts = count_scores(*pair)
    few = min(len(inside.scores), len(outside.scores)) < 2
    metrics = {
        name: Metric(
            float(metric_on_counts(name, rule=rule)(*counts)),
            None if few else confidence_interval(*pair, metric=name, rule=rule),
        )
        for name in ("fpr_at_tpr", "auroc")
    }
    fpr, tpr, _ = roc_curve(*pair, pos_label=1)
    ordered = np.sort(inside.scores)
    # As a threshold does: the rows below the score of this rank are flagged.
    ranks = [int(rate * len(ordered)) for rate in OPERATING_RATES]
    return OutlierSet(
        **_scored_set(detector, outside),
        fpr95=metrics["fpr_at_tpr"],
        auroc=metrics["auroc"],
        histogram=_histogram(inside.scores, outside.scores),
        roc=_thinned(fpr, tpr),
        operating=tuple(float(np.mean(outside.scores < ordered[rank])) for rank in ranks),
    )


def mean_metrics(
    inside: Scored, outside: Sequence[Scored], measured: Sequence[OutlierSet], rule: str
) -> tuple[Metric, Metric]:
    """Return the means of FPR95 and AUROC over the sets, in which each set counts the same."""
    means = []
    for name, metrics in (
        ("fpr_at_tpr", [each.fpr95 for each in measured]),
        ("auroc", [each.auroc for each in measured]),
    ):
        interval = None
        if all(metric.interval is not None for metric in metrics):
            scores = [each.scores for each in outside]
            interval = interval_of_mean(inside.scores, scores, metric=name, rule=rule)
        means.append(Metric(float(np.mean([metric.value for metric in metrics])), interval))
    return means[0], means[1]


def _scored_set(detector: BaseDetector, scored: Scored) -> dict[str, Any]:
    order = np.argsort(scored.scores, kind="stable")
    n_shown = min(N_EXTREME, len(order))
    return {
        "name": scored.name,
        "n_rows": len(scored.scores),
        "n_flagged": None if scored.flags is None else int(scored.flags.sum()),
        "least_typical": _extreme_rows(detector, scored, order[:n_shown]),
        "most_typical": _extreme_rows(detector, scored, order[::-1][:n_shown]),
    }


def _extreme_rows(
    detector: BaseDetector, scored: Scored, rows: NDArray[np.intp]
) -> tuple[ExtremeRow, ...]:
    calibration: Any = getattr(detector, "calibration_scores_", None)
    pvalues = [None] * len(rows)
    if hasattr(detector, "class_offsets_") and scored.classes is not None:
        by_class = ClassScores(calibration, detector.calibration_classes_, detector.head_.n_classes)
        references = by_class.references(detector.fallback_classes_)
        pvalues = class_pvalues(references, scored.scores[rows], scored.classes[rows]).tolist()
    elif calibration is not None:
        pvalues = conformal_pvalues(calibration, scored.scores[rows]).tolist()
    return tuple(
        ExtremeRow(
            row=int(row),
            score=float(scored.scores[row]),
            pvalue=pvalue,
            predicted=None if scored.classes is None else int(scored.classes[row]),
            flagged=None if scored.flags is None else bool(scored.flags[row]),
        )
        for row, pvalue in zip(rows, pvalues, strict=True)
    )


def _by_class(detector: BaseDetector, inside: Scored) -> tuple[ClassRow, ...]:
    if inside.classes is None or inside.flags is None:
        return ()
    n_classes = detector.head_.n_classes
    n_rows = np.bincount(inside.classes, minlength=n_classes)
    n_flagged = np.bincount(inside.classes[inside.flags], minlength=n_classes)
    thresholds = getattr(detector, "class_offsets_", np.full(n_classes, detector.offset_))
    return tuple(
        ClassRow(int(each), int(n_rows[each]), int(n_flagged[each]), float(thresholds[each]))
        for each in np.flatnonzero(n_rows)
    )


def _histogram(inside: FloatArray, outside: FloatArray) -> Histogram:
    """Return the shares of rows in bins over the bulk of both sets."""
    # A few far scores must not squeeze all others into one bin.
    ends = np.array([np.quantile(scores, [0.005, 0.995]) for scores in (inside, outside)], float)
    low, high = float(ends.min()), float(ends.max())
    # Two edges of narrower bins would be the same number in float64.
    narrowest = 1e-9 * max(abs(low), abs(high), 1e-9)
    if high - low < narrowest:
        low, high = low - narrowest, high + narrowest
    edges = np.linspace(low, high, N_BINS + 1)
    shares = [
        np.histogram(np.clip(scores.astype(np.float64), low, high), edges)[0] / len(scores)
        for scores in (inside, outside)
    ]
    return Histogram(*(tuple(map(float, values)) for values in (edges, *shares)))


def _thinned(fpr: FloatArray, tpr: FloatArray) -> tuple[tuple[float, float], ...]:
    """Return points of a curve that lie about equally far apart along it, its ends included."""
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(fpr)) + np.abs(np.diff(tpr)))])
    wanted = np.linspace(0, length[-1], N_CURVE)
    places = np.unique(np.searchsorted(length, wanted).clip(0, len(length) - 1))
    return tuple((float(fpr[place]), float(tpr[place])) for place in places)
