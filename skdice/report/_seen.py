"""The rows that a detector has seen: checks of given rows, and a search for rows among them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._base import BaseDetector
from skdice._passes.threshold import digest_of_blocks
from skdice._rows.sources import FloatArray, RowSource, SlicedRows

# Names of these sets of rows in a report.
CALIBRATION, TRAINING = "calibration", "fit"
# The words of the warning about rows that come again.
REPEATED = "rows that the detector has seen"
# Scores that another machine computed agree to this part of the largest.
TOLERANCE = 1e-4
# Fewer rows or scores than these shares may come again by nature.
LEAST_SAME_ROWS, LEAST_SAME_SCORES = 0.01, 0.05
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


def row_keys(rows: RowSource) -> NDArray[np.uint64]:
    """Return a number for each row, which rows with the same numbers share and others do not.

    The dtype of the rows does not matter, as long as it holds the same numbers.
    """
    keys = [values for _, values in rows.iterate_values(_block_keys, np.uint64)]
    return np.concatenate([np.empty(0, np.uint64), *keys])


def _block_keys(rows: SlicedRows) -> Iterator[tuple[slice, NDArray[np.uint64]]]:
    n_features = rows.shape[1]
    factors = np.random.default_rng(0).integers(1 << 63, size=n_features, dtype=np.uint64)
    factors = 2 * factors + np.uint64(1)
    for row_slice, block in rows.iterate_blocks():
        bits = (block.astype(np.float64) + 0.0).view(np.uint64)  # -0.0 becomes 0.0
        # The lower bits of a number from single precision are zero; a product keeps them so.
        bits ^= bits >> np.uint64(32)
        yield row_slice, (bits * factors).sum(axis=1, dtype=np.uint64)


def n_same_rows(keys: NDArray[np.uint64], seen: NDArray[np.uint64]) -> int:
    """Return how many rows are among the seen rows, or 0 if there are fewer than one in 100."""
    n_same = int(np.isin(keys, seen).sum())
    return n_same if n_same >= max(1.0, LEAST_SAME_ROWS * len(keys)) else 0


def n_same_scores(scores: FloatArray, seen: FloatArray, unseen: FloatArray | None = None) -> int:
    """Return how many rows have the score of a seen row, or 0 if chance may explain as many.

    Only scores are known of the seen rows. Some scores agree by chance, because those of many rows
    lie close together, and because scores may have few values. Where more than one in 20 of the
    seen scores has another one beside it, the scores cannot tell one row from another.

    Parameters
    ----------
    scores, seen : ndarray of shape (n_samples,) and (n_seen,)
        Scores of the rows, and of the seen rows.
    unseen : ndarray of shape (n_unseen,), default=None
        Scores of rows that were not seen. Chance is at least how often these agree with `seen`.
    """
    precision = max(float(np.finfo(each.dtype).eps) for each in (scores, seen))
    own, ordered = scores.astype(np.float64), np.sort(seen.astype(np.float64))
    # A single far score must not make all others alike.
    tolerance = ROUNDINGS * precision * float(np.quantile(np.abs(ordered), 0.99))
    gaps = np.diff(ordered, prepend=-np.inf, append=np.inf)
    chance = float(np.mean(np.minimum(gaps[:-1], gaps[1:]) <= tolerance))
    if chance > LEAST_SAME_SCORES:
        return 0
    # The rows may lie where the seen scores are dense, which their neighbourhood tells.
    beside = [_share_near(ordered, own + n * tolerance, tolerance) for n in (-8, -4, 4, 8)]
    chance = max(chance, float(np.mean(beside)))
    if unseen is not None:
        chance = max(chance, _share_near(ordered, unseen.astype(np.float64), tolerance))
    expected, n_rows = chance * len(own), len(own)
    more = n_rows * _share_near(ordered, own, tolerance) - expected
    # Four standard deviations of a binomial number whose chance was estimated from the seen rows.
    variance = expected * (1 - chance) * (1 + 2 * n_rows / len(ordered))
    least = max(1.0, LEAST_SAME_SCORES * n_rows, 4 * variance**0.5)
    return round(more) if more > least else 0


def _share_near(
    ordered: NDArray[np.float64], values: NDArray[np.float64], tolerance: float
) -> float:
    """Return the share of values that lie within a distance of any of some ordered numbers."""
    first = np.searchsorted(ordered, values - tolerance, side="left")
    last = np.searchsorted(ordered, values + tolerance, side="right")
    return float(np.mean(last > first))
