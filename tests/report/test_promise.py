"""The words about a threshold say what the theory says."""

from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import beta

from skdice.report._promise import describe_promise


def promise_of(detector, **changes):
    """Return the promise of a detector whose record has other values."""
    classes = changes.pop("fallback_classes_", ())
    predicted = changes.pop("calibration_classes_", None)
    record = SimpleNamespace(**{**asdict(detector.calibration_), **changes})
    return describe_promise(
        SimpleNamespace(
            offset_=detector.offset_,
            contamination_=detector.contamination_,
            calibration_=record,
            fallback_classes_=np.array(classes, int),
            calibration_classes_=predicted,
        )
    )


def test_without_a_threshold(report_of):
    promise = report_of("no threshold").promise
    assert (promise.method, promise.threshold, promise.rate) == ("none", None, None)
    assert "flags none" in promise.statement


def test_a_threshold_of_fit(report_of, detector_of):
    promise = report_of("uncalibrated").promise
    assert promise.method == "fit"
    assert promise.statement == (
        "5 % of the 1,500 rows of fit have a score below the threshold. Nothing is promised about "
        "other rows."
    )
    assert promise.threshold == detector_of("uncalibrated").offset_


def test_a_quantile_promises_nothing(report_of):
    promise = report_of("quantile").promise
    assert promise.statement.startswith("10 % of the held-out calibration rows")
    assert promise.statement.endswith("no bound is promised.")
    assert promise.rank == 61  # 60 of 600 rows lie below


def test_a_conformal_threshold_promises_the_average(report_of):
    promise = report_of("conformal").promise
    assert promise.statement == (
        "Of future in-distribution rows, at most 5 % are flagged on average."
    )
    assert "exchangeable" in promise.assumption
    assert promise.rank == 30  # 0.05 * 601, rounded down
    low, high = beta.ppf([0.025, 0.975], 30, 571)
    told = f"between {100 * low:.1f} % and {100 * high:.1f} %"
    assert any(told in detail for detail in promise.details)


def test_with_confidence_it_promises_this_calibration(report_of, detector_of):
    promise = report_of("confidence").promise
    assert promise.statement == (
        "With a probability of 90 %, at most 5 % of future in-distribution rows are flagged."
    )
    assert "independent draws" in promise.assumption
    assert promise.rank < 30
    assert not any("The average is over calibrations" in detail for detail in promise.details)
    assert promise.digest == detector_of("confidence").calibration_.digest


@pytest.mark.parametrize("kind", ["conformal", "confidence", "quantile"])
def test_with_classes_it_promises_each_class_but_the_fallback(kind, detector_of):
    classes = np.arange(600) % 5
    promise = promise_of(
        detector_of(kind), by="prediction", fallback_classes_=[2, 4], calibration_classes_=classes
    )
    spread = "The class with the fewest calibration rows has 120. In 95 of 100 cases"
    assert any(spread in each for each in promise.details) == (promise.confidence is None)
    assert promise.statement.startswith("For each class with a threshold of its own: ")
    assert "this class" in promise.statement
    assert any("nothing is promised for each of them: 2, 4." in each for each in promise.details)
    assert not any("see the table" in each for each in promise.details)


@pytest.mark.parametrize("kind", ["conformal", "confidence", "quantile", "uncalibrated"])
def test_nothing_is_promised_about_outliers_or_after_a_change(kind, report_of):
    details = " ".join(report_of(kind).promise.details)
    assert "Nothing is promised about out-of-distribution inputs." in details
    assert "Nothing is promised after the inputs have changed" in details


def test_a_rate_keeps_its_digits(detector_of):
    detector = detector_of("conformal")
    record = replace(detector.calibration_)
    changed = SimpleNamespace(offset_=1.0, contamination_=0.0125, calibration_=record)
    assert "at most 1.25 % are" in describe_promise(changed).statement
