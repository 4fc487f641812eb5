"""What the threshold of a detector promises, in words."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scipy.stats import beta

from skdice._base import BaseDetector
from skdice.monitoring._flags import ranks_of_classes
from skdice.report._numbers import percent, rate_percent

_HELD_OUT = (
    "The calibration rows had no part in the training of the network, in fit, or in a choice "
    "between detectors."
)
_ABOUT_OUTLIERS = (
    "Nothing is promised about out-of-distribution inputs. How many of them are flagged was "
    "measured on the sets of this report, and another kind of input may be flagged more or less "
    "often."
)
_ABOUT_CHANGE = (
    "Nothing is promised after the inputs have changed, for example with another camera or in "
    "another season. Watch the share of flagged inputs, and calibrate again."
)
_OF_FIT = (
    "A network is surer of rows that it was trained on than of new rows. So more of the new "
    "in-distribution rows are usually flagged."
)


@dataclass(frozen=True)
class Promise:
    """How a threshold was set, and what it promises."""

    # The threshold of all rows; None without a threshold.
    threshold: float | None
    # "none", "fit", "quantile" or "conformal".
    method: str
    # Share of in-distribution rows that may be flagged.
    rate: float | None
    # Probability with which the rate holds for this calibration.
    confidence: float | None
    # Number of calibration rows, and rank of the threshold among their scores.
    n_rows: int | None
    rank: int | None
    # Time of the calibration, and SHA-256 of its scores in the order of the rows.
    date: str | None
    digest: str | None
    # "prediction" if each predicted class has its threshold.
    by: str | None
    # Classes with too few calibration rows, which have the threshold of all rows.
    fallback_classes: tuple[int, ...]
    # Number of calibration rows that are probably rows of fit. With any, there is no promise.
    n_fitted: int
    statement: str
    # The condition under which the statement holds.
    assumption: str
    # How to read the statement, and what is not promised.
    details: tuple[str, ...]


def describe_promise(detector: BaseDetector, n_fitted: int = 0) -> Promise:
    """Return how the threshold of a fitted detector was set, and what it promises.

    `n_fitted` is the number of calibration rows that are probably rows of fit.
    """
    threshold = getattr(detector, "offset_", None)
    record = getattr(detector, "calibration_", None)
    by = getattr(record, "by", None)
    fallback = tuple(map(int, getattr(detector, "fallback_classes_", ())))
    statement, assumption, details = _words(detector, threshold, record, by, fallback)
    if record is not None and by is not None:
        counts = ranks_of_classes(detector).values()
        if not counts:
            statement = "Nothing is promised, because every class has too few calibration rows."
        elif record.confidence is None:
            details = [_of_smallest_class(*min(counts, key=lambda pair: pair[1])), *details]
    method = "fit" if record is None else record.method
    if n_fitted and record is not None:
        statement = (
            f"Nothing is promised: {n_fitted:,} of the {record.n_samples:,} calibration rows are "
            "probably rows of fit, of which a network is surer than of others."
        )
        assumption = f"The following assumption is not met. {assumption}"
    return Promise(
        threshold=None if threshold is None else float(threshold),
        method="none" if threshold is None else method,
        rate=None if threshold is None else float(detector.contamination_),
        n_rows=getattr(record, "n_samples", None),
        by=by,
        **{name: getattr(record, name, None) for name in ("confidence", "rank", "date", "digest")},
        fallback_classes=fallback,
        n_fitted=n_fitted,
        statement=statement,
        assumption=assumption,
        details=tuple(details),
    )


def _words(
    detector: BaseDetector, threshold: Any, record: Any, by: Any, fallback: tuple[int, ...]
) -> tuple[str, str, list[str]]:
    """Return the statement, the assumption and the details."""
    if threshold is None:
        return (
            "The detector has no threshold. It orders inputs by their scores and flags none.",
            "Nothing is promised.",
            [],
        )
    rate = rate_percent(detector.contamination_)
    if record is None:
        statement = (
            f"{rate} of the {detector.n_samples_seen_:,} rows of fit have a score below the "
            "threshold. Nothing is promised about other rows."
        )
        assumption = "None, because there is no promise."
        return statement, assumption, [_OF_FIT, _ABOUT_OUTLIERS, _ABOUT_CHANGE]
    whose = (
        "future in-distribution rows"
        if by is None
        else "future in-distribution rows to which the network gives this class"
    )
    each = "" if by is None else "For each class with a threshold of its own: "
    if record.method == "quantile":
        held_out = "" if by is None else " with that predicted class"
        statement = (
            f"{each}{rate} of the held-out calibration rows{held_out} have a score below the "
            f"threshold. About the same share of {whose} is flagged, but no bound is promised."
        )
        assumption = f"The future rows are drawn in the same way as these rows. {_HELD_OUT}"
    elif record.confidence is None:
        statement = f"{each}of {whose}, at most {rate} are flagged on average."
        assumption = (
            "The calibration rows and the future in-distribution rows are exchangeable: they are "
            f"drawn in the same way, and their order does not matter. {_HELD_OUT}"
        )
    else:
        statement = (
            f"{each}with a probability of {rate_percent(record.confidence)}, at most {rate} of "
            f"{whose} are flagged."
        )
        assumption = (
            "The calibration rows and the future in-distribution rows are independent draws from "
            f"one distribution. {_HELD_OUT}"
        )
    statement = statement[0].upper() + statement[1:]
    return statement, assumption, list(_details(record, by, fallback))


def _details(record: Any, by: Any, fallback: tuple[int, ...]) -> Iterator[str]:
    if by is None:
        yield (
            f"The threshold is the score of rank {record.rank:,} among the scores of the "
            f"{record.n_samples:,} calibration rows, counted from the lowest."
        )
        if record.method == "conformal":
            yield (
                f"A row is flagged if its p-value is at most {record.rank:,} / "
                f"{record.n_samples + 1:,}, about {record.rank / (record.n_samples + 1):.3g}."
                + (" The confidence makes it less than the rate." if record.confidence else "")
            )
        if record.method == "conformal" and record.confidence is None:
            low, high = range_of_share(record.rank, record.n_samples)
            yield (
                "The average is over calibrations. In 95 of 100 cases, a single calibration with "
                f"so many rows flags between {percent(low)} and {percent(high)} of the future "
                "in-distribution rows, if the rows are independent and the scores have no ties."
            )
        yield (
            "The share is that of all in-distribution rows. One predicted class may be flagged "
            "more often than another: see the table of predicted classes."
        )
    else:
        yield (
            f"Each predicted class{' but those below' if fallback else ''} has the threshold of "
            f"its own rows among the {record.n_samples:,} calibration rows. The class is that of "
            "the full head."
        )
    if fallback:
        shown = ", ".join(map(str, fallback[:20])) + (", ..." if len(fallback) > 20 else "")
        yield (
            f"{len(fallback):,} classes had too few rows and have the threshold of all rows, so "
            f"nothing is promised for each of them: {shown}."
        )
    if record.method == "conformal" and record.confidence is not None:
        yield "The probability is over the draw of the calibration rows."
    yield from (_ABOUT_OUTLIERS, _ABOUT_CHANGE)


def _of_smallest_class(rank: int, n_rows: int) -> str:
    """Tell by how much the share of the class with the fewest calibration rows may differ."""
    low, high = range_of_share(rank, n_rows)
    return (
        f"The class with the fewest calibration rows has {n_rows:,}. In 95 of 100 cases, a single "
        f"calibration with so many rows flags between {percent(low)} and {percent(high)} of the "
        "future in-distribution rows of the class, if the rows are independent and the scores have "
        "no ties. A monitor takes a rate that all classes keep at once, which is above the rate."
    )


def range_of_share(rank: int, n_rows: int) -> tuple[float, float]:
    """Return the share of future rows below the threshold that 95 % of calibrations give."""
    law = beta(rank, n_rows + 1 - rank)
    return float(law.ppf(0.025)), float(law.ppf(0.975))
