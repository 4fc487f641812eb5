"""The rows that a detector has seen: checks of given rows, and a search for rows among them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._base import BaseDetector
from skdice._passes.threshold import digest_of_blocks
from skdice._rows.sources import FloatArray

# Names of these sets of rows in a report.
CALIBRATION, TRAINING = "calibration", "fit"
# The words of the warning about rows that come again.
REPEATED = "so they are probably rows that the detector has seen"
# Scores that another machine computed agree to this part of the largest.
TOLERANCE = 1e-4
# Scores of the same rows on one machine agree to so many units of rounding of the largest.
ROUNDINGS = 8


def check_seen(detector: BaseDetector, name: str, scores: FloatArray) -> None:
    """Raise if rows are not those that a detector was fitted or calibrated on.

    For the rows of fit the number is compared. For a calibration the scores are compared as well,
    or only the threshold if the detector does not keep the scores.

    Raises
    ------
    ValueError
        The rows are others, or the detector was not calibrated.
    """
    record: Any = getattr(detector, "calibration_", None)
    if name == TRAINING:
        if len(scores) != detector.n_samples_seen_:
            raise ValueError(
                f"{len(scores):,} rows, expected the {detector.n_samples_seen_:,} that fit has "
                "seen: leave out rows that were labelled -1 or had the weight 0"
            )
        return
    if record is None:
        raise ValueError("the detector was not calibrated, so leave these rows out")
    if len(scores) != record.n_samples:
        raise ValueError(
            f"{len(scores):,} rows, expected the {record.n_samples:,} that the detector has seen"
        )
    if digest_of_blocks(iter([scores])) == record.digest:
        return
    found = np.sort(scores.astype(np.float64))
    scale = float(np.abs(found).max())
    expected = np.asarray(getattr(detector, "calibration_scores_", detector.offset_), np.float64)
    if expected.ndim == 0:
        found = found[record.rank - 1]
    if not np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE * scale):
        raise ValueError(
            "these are not the rows of the calibration: the scores differ by up to "
            f"{np.max(np.abs(found - expected)):.3g}"
        )


def n_repeated(scores: FloatArray, seen: FloatArray, unseen: FloatArray | None = None) -> int:
    """Return how many rows have the score of a seen row, or 0 if chance explains as many.

    Some scores agree by chance, because those of many rows lie close together, and because scores
    may have few values. Chance is how often the score of an unseen row agrees with that of a seen
    row, or without unseen rows how often those of two seen rows agree.
    """
    precision = max(float(np.finfo(each.dtype).eps) for each in (scores, seen))
    own, ordered = scores.astype(np.float64), np.sort(seen.astype(np.float64))
    tolerance = ROUNDINGS * precision * float(max(np.abs(ordered).max(), np.abs(own).max()))
    gaps = np.diff(ordered, prepend=-np.inf, append=np.inf)
    chance = float(np.mean(np.minimum(gaps[:-1], gaps[1:]) <= tolerance))
    if unseen is not None:
        chance = max(chance, _n_near(ordered, unseen.astype(np.float64), tolerance) / len(unseen))
    expected, n_rows = chance * len(own), len(own)
    more = _n_near(ordered, own, tolerance) - expected
    # Four standard deviations of a binomial number whose chance was estimated from the seen rows.
    variance = expected * (1 - chance) * (1 + 2 * n_rows / len(ordered))
    least = max(1.0, 0.05 * n_rows, 4 * variance**0.5)
    return round(more) if more > least else 0


def _n_near(ordered: NDArray[np.float64], values: NDArray[np.float64], tolerance: float) -> int:
    """Return how many values lie within a distance of any of some ordered numbers."""
    first = np.searchsorted(ordered, values - tolerance, side="left")
    last = np.searchsorted(ordered, values + tolerance, side="right")
    return int(np.count_nonzero(last > first))
