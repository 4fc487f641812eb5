"""What counts as a flag, and what a detector knows of its calibration."""

from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline

from skdice._compat.arrays import is_dask, to_numpy
from skdice._passes.threshold import conformal_rank

EXPECTED_FLAGS = "expected booleans (True = flagged) or predictions (-1 = flagged, +1 = good)"


def calibration_of(detector: Any) -> Any:
    """Return the record of a detector's calibration, that of the last step for a Pipeline.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        The detector has no such record.
    """
    last = last_step(detector)
    calibration = getattr(last, "calibration_", None)
    if calibration is None:
        raise NotFittedError(
            f"This {type(last).__name__} is not calibrated, so nothing is promised about the rate "
            "of its false alarms: call calibrate with held-out in-distribution rows first. For a "
            "detector of another library use batch_pvalue(n_flagged, n_rows, rank, n_calibration) "
            "and FlagMonitor(rate)."
        )
    return calibration


def last_step(detector: Any) -> Any:
    """Return the detector that a pipeline ends in, or the detector itself."""
    return detector.steps[-1][1] if isinstance(detector, Pipeline) else detector


def ranks_of_classes(detector: Any) -> dict[int, tuple[int, int]]:
    """Return the rank and the number of calibration rows of each class with its own threshold.

    The detector was calibrated with ``by="prediction"``.
    """
    last = last_step(detector)
    record, counts = last.calibration_, np.bincount(last.calibration_classes_)
    own = set(range(len(counts))) - set(map(int, last.fallback_classes_))
    return {
        k: (conformal_rank(int(counts[k]), record.contamination, record.confidence), int(counts[k]))
        for k in sorted(own)
    }


def flagged_rows(detector: Any, X: Any) -> NDArray[np.bool_]:
    """Return which rows a detector flags; a row whose decision is not finite is flagged."""
    decision = detector.decision_function(X)
    values = np.asarray(decision.compute() if is_dask(decision) else to_numpy(decision))
    # Not `values < 0`: a comparison with NaN is false, and NaN counts as out-of-distribution.
    flags: NDArray[np.bool_] = ~((values >= 0) & np.isfinite(values))
    return flags


def flagged_rows_and_classes(detector: Any, X: Any) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Return which rows a detector flags, and the class that its head predicts for each row."""
    if isinstance(detector, Pipeline):
        X, detector = detector[:-1].transform(X), last_step(detector)
    decisions, classes = detector._decisions_and_classes(X)
    return ~((decisions >= 0) & np.isfinite(decisions)), classes


def as_flags(flags: Any) -> NDArray[np.bool_]:
    """Return booleans or predictions as an array of booleans, True = flagged.

    Raises
    ------
    ValueError
        A value is neither a boolean nor +1 or -1, or there is more than one axis.
    """
    if isinstance(flags, list | tuple) and len({isinstance(f, bool | np.bool_) for f in flags}) > 1:
        # NumPy would turn True into the prediction +1, which means the opposite.
        raise ValueError(f"flags mixes booleans with other values; {EXPECTED_FLAGS}")
    if is_dask(flags):
        flags = flags.compute()
    values = np.asarray(flags) if np.isscalar(flags) else to_numpy(flags)
    if values.ndim > 1:
        raise ValueError(
            f"flags has shape {values.shape}; {EXPECTED_FLAGS}, of shape (n_samples,). Only a "
            "monitor that knows its detector takes features: make it by FlagMonitor.from_detector"
        )
    values = values.reshape(-1)
    if values.dtype == np.bool_:
        return values
    if not len(values):
        return np.zeros(0, np.bool_)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"flags has dtype {values.dtype}; {EXPECTED_FLAGS}")
    flagged: NDArray[np.bool_] = values == -1
    wrong = np.flatnonzero(~flagged & (values != 1))
    if len(wrong):
        raise ValueError(f"flags has {values[wrong[0]]} in row {wrong[0]}; {EXPECTED_FLAGS}")
    return flagged


def check_fraction(value: Any, name: str) -> float:
    """Return a number strictly between 0 and 1 as a float, or raise."""
    is_number = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    if not is_number or not 0 < value < 1:
        hint = f"; did you mean {value / 100:g}?" if is_number and 1 <= value < 100 else ""
        raise ValueError(f"{name} is {value!r}, expected a number between 0 and 1{hint}")
    return float(value)


def check_count(value: Any, name: str, *, least: int, most: int | None = None) -> int:
    """Return a whole number within bounds as an int, or raise."""
    is_int = isinstance(value, Integral) and not isinstance(value, bool | np.bool_)
    if not is_int or value < least or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} is {value!r}, expected a whole number {limits}")
    return int(value)
