"""A report warns of everything that a reader should know before trusting its figures."""

import warnings

import numpy as np
import pytest
from reported import KINDS

from skdice import DICEDetector, LinearHead
from skdice.report import OODReport


def warnings_with(report, text):
    return [each for each in report.warnings if text in each]


def test_thresholds_that_promise_nothing(report_of):
    assert warnings_with(report_of("uncalibrated"), "was not calibrated")
    assert warnings_with(report_of("no threshold"), "has no threshold")
    assert warnings_with(report_of("quantile"), "promises nothing about future rows")
    for kind in ("conformal", "confidence", "vim", "ensemble"):
        assert not warnings_with(report_of(kind), "calibrat")


def test_few_calibration_rows(fashion, rows):
    """With 19 rows at 5 %, the share flagged follows Beta(1, 19): 17.6 % is its 0.975 quantile."""
    detector = DICEDetector(fashion.head).fit(fashion.id_train[:500])
    detector.calibrate(fashion.id_test[:19], method="conformal")
    report = OODReport.from_detector(detector, *rows)
    assert warnings_with(report, "only 19 calibration rows")
    assert warnings_with(report, "up to 17.6 % of the in-distribution rows")


def test_few_rows_of_a_set(detector_of, rows):
    X_id, ood = rows
    report = OODReport.from_detector(
        detector_of("vim"), X_id[:99], {"many": ood["mnist"][:100], "few": ood["mnist"][100:199]}
    )
    assert warnings_with(report, "The set few has only 99 rows")
    assert warnings_with(report, "The set in-distribution has only 99 rows")
    assert not warnings_with(report, "The set many")


def test_rows_of_the_calibration_are_no_evidence(detector_of, rows, fashion):
    report = OODReport.from_detector(detector_of("conformal"), fashion.id_test[:600], rows[1])
    assert warnings_with(report, "are the rows of the calibration")


def test_rows_that_are_unlike_those_of_the_calibration(detector_of, rows):
    X_id, ood = rows
    mixed = np.concatenate([X_id, ood["mnist"][:100]])
    report = OODReport.from_detector(detector_of("conformal"), mixed, rows[1])
    assert report.inside.pvalue < 1e-6
    assert warnings_with(report, "probably not alike")
    assert not warnings_with(OODReport.from_detector(detector_of("conformal"), *rows), "alike")


def test_the_same_rows_under_two_names(detector_of, rows):
    X_id, ood = rows
    sets = {"a": ood["mnist"], "b": ood["mnist"].copy(), "c": ood["mnist"][1:]}
    report = OODReport.from_detector(detector_of("vim"), X_id, sets)
    assert warnings_with(report, "hold the same rows") == ["The sets a and b hold the same rows."]
    report = OODReport.from_detector(detector_of("vim"), X_id, {"a": X_id})
    assert warnings_with(report, "The sets in-distribution and a hold the same rows")


def test_worse_than_chance(detector_of, rows):
    X_id, ood = rows
    report = OODReport.from_detector(detector_of("vim"), ood["mnist"], {"clothes": X_id})
    assert warnings_with(report, "On the set clothes the detector is worse than chance")


def test_classes_that_are_flagged_often(detector_of, rows):
    report = OODReport.from_detector(detector_of("conformal"), *rows)
    uneven = [each for each in report.inside.classes if each.n_rows >= 100 and each.flagged > 0.1]
    assert bool(uneven) == bool(warnings_with(report, "more than twice as often"))
    X_id, ood = rows
    mixed = np.concatenate([X_id, *[ood["mnist"]] * 2])
    report = OODReport.from_detector(detector_of("conformal"), mixed, ood)
    (warning,) = warnings_with(report, "more than twice as often")
    often = [each for each in report.inside.classes if each.n_rows >= 100 and each.flagged > 0.1]
    worst = max(often, key=lambda each: each.flagged)
    assert warning.startswith(f"{len(often)} predicted classes")
    assert f"that of class {worst.predicted}, {worst.flagged:.1%}".replace("%", " %") in warning


def test_dead_units_and_classes_without_weights():
    rng = np.random.default_rng(0)
    X = np.maximum(rng.normal(size=(300, 8)), 0)
    X[:, [2, 5]] = 0
    weight = rng.normal(size=(3, 8))
    weight[1] = -np.abs(weight[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fit warns as well
        detector = DICEDetector(LinearHead(weight), sparsity=0.7).fit(X)
    report = OODReport.from_detector(detector, X, {"noise": rng.normal(size=(200, 8))})
    assert warnings_with(report, "2 of 8 features have a mean of exactly 0")
    assert warnings_with(report, "leaves 1 of 3 classes without any weight")


def test_a_masked_head_that_disagrees(detector_of, rows, monkeypatch):
    detector = detector_of("uncalibrated")
    monkeypatch.setattr(detector, "head_agreement_", 0.777, raising=False)
    report = OODReport.from_detector(detector, *rows)
    assert warnings_with(report, "gives only 77.7 % of the rows of fit the class")
    assert warnings_with(report, "Try a sparsity of 0.")
    assert report.detector.own.fitted["head agreement"] == "77.7 %"
    monkeypatch.setattr(detector, "head_agreement_", 0.95)
    assert not warnings_with(OODReport.from_detector(detector, *rows), "masked head")


def test_a_member_whose_masked_head_disagrees(detector_of, rows, monkeypatch):
    detector = detector_of("ensemble")
    monkeypatch.setattr(detector.named_estimators_["dice"], "head_agreement_", 0.9, raising=False)
    (warning,) = warnings_with(OODReport.from_detector(detector, *rows), "masked head")
    assert warning.startswith("The member dice prunes weights that decide")
    assert "Try a sparsity" not in warning


@pytest.mark.parametrize("kind", KINDS)
def test_warnings_are_sentences(kind, report_of):
    for warning in report_of(kind).warnings:
        assert warning.endswith(".")
        assert "None" not in warning
