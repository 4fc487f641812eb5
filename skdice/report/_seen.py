"""The rows that a detector has seen: checks of given rows, and a search for rows among them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._base import BaseDetector
from skdice._rows.sources import FloatArray

# Names of these sets of rows in a report.
CALIBRATION, TRAINING = "calibration", "fit"
# Scores that another machine computed agree to this part of the largest.
TOLERANCE = 1e-4
# Scores of the same rows on one machine agree to so many units of rounding of the largest.
ROUNDINGS = 8


def check_seen(detector: BaseDetector, name: str, scores: FloatArray) -> None:
    """Raise if rows are not those that a detector was fitted or calibrated on.

    The number of rows is compared, and for a calibration the scores, or the threshold if the
    detector does not keep the scores.

    Raises
    ------
    ValueError
        The rows are others, or the detector was not calibrated.
    """
    record: Any = getattr(detector, "calibration_", None)
    if name == TRAINING:
        n_expected = detector.n_samples_seen_
    elif record is None:
        raise ValueError("the detector was not calibrated, so leave these rows out")
    else:
        n_expected = record.n_samples
    if len(scores) != n_expected:
        raise ValueError(
            f"{len(scores):,} rows, expected the {n_expected:,} that the detector has seen"
        )
    if name == TRAINING:
        return
    found = np.sort(scores.astype(np.float64))
    expected = np.asarray(getattr(detector, "calibration_scores_", detector.offset_), np.float64)
    if expected.ndim == 0:
        found = found[record.rank - 1]
    scale = float(np.abs(expected).max())
    if not np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE * scale):
        raise ValueError(
            "these are not the rows of the calibration: the scores differ by up to "
            f"{np.max(np.abs(found - expected)):.3g}"
        )


def repeated_rows(scores: FloatArray, seen: Mapping[str, FloatArray]) -> dict[str, int]:
    """Return how many rows have the score of a seen row, for each name with more than chance.

    Scores of many rows lie close together, so some agree by chance. As many agree by chance with
    scores a little above them, and this number is subtracted.
    """
    repeated = {}
    for name, others in seen.items():
        ordered = np.sort(others.astype(np.float64))
        precision = np.finfo(np.result_type(scores, others)).eps
        largest = float(max(np.abs(ordered).max(), np.abs(scores).max()))
        tolerance = ROUNDINGS * float(precision) * largest
        own = scores.astype(np.float64)
        by_chance = _n_near(ordered, own + 4 * tolerance, tolerance)
        n_equal = _n_near(ordered, own, tolerance) - by_chance
        if n_equal > 0.05 * len(scores):
            repeated[name] = n_equal
    return repeated


def _n_near(ordered: NDArray[np.float64], values: NDArray[np.float64], tolerance: float) -> int:
    """Return how many values lie within a distance of any of some ordered numbers."""
    first = np.searchsorted(ordered, values - tolerance, side="left")
    last = np.searchsorted(ordered, values + tolerance, side="right")
    return int(np.count_nonzero(last > first))
