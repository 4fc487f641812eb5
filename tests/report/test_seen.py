"""A report names and checks the rows that a detector has seen, and warns if they come again."""

import numpy as np
import pytest
from scipy.stats import binomtest

from skdice import DICEDetector, make_ensemble
from skdice.report import OODReport
from skdice.report._seen import repeated_rows


def warnings_of_repetition(report):
    return [each for each in report.warnings if "probably rows that the detector has seen" in each]


@pytest.fixture(scope="module", params=["conformal", "quantile"])
def detector(request, fashion):
    return (
        DICEDetector(fashion.head)
        .fit(fashion.id_train)
        .calibrate(fashion.id_test[:600], method=request.param)
    )


@pytest.fixture
def seen(fashion):
    return {"calibration": fashion.id_test[:600], "training": fashion.id_train}


def test_seen_rows_are_named_with_their_digests(detector, rows, seen):
    report = OODReport.from_detector(detector, *rows, **seen)
    assert [each.name for each in report.data][-2:] == ["calibration", "fit"]
    assert [each.n_rows for each in report.data][-2:] == [600, len(seen["training"])]
    assert all(each.digest.sha256 for each in report.data)
    assert warnings_of_repetition(report) == []


@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_other_rows_are_refused(detector, rows, seen, precision, fashion):
    """The same rows in another precision are the same rows."""
    same = {"calibration": seen["calibration"].astype(precision)}
    OODReport.from_detector(detector, *rows, **same)
    with pytest.raises(ValueError, match="calibration: 599 rows, expected the 600"):
        OODReport.from_detector(detector, *rows, calibration=seen["calibration"][1:])
    with pytest.raises(ValueError, match="calibration: these are not the rows"):
        OODReport.from_detector(detector, *rows, calibration=fashion.id_test[700:1300])
    with pytest.raises(ValueError, match="fit: 3,999 rows, expected the 4,000"):
        OODReport.from_detector(detector, *rows, training=seen["training"][1:])
    bare = DICEDetector(fashion.head).fit(fashion.id_train)
    with pytest.raises(ValueError, match="calibration: the detector was not calibrated"):
        OODReport.from_detector(bare, *rows, **same)
    with pytest.raises(ValueError, match="named 'fit', expected text other than"):
        OODReport.from_detector(bare, rows[0], {"fit": rows[1]["mnist"]})


@pytest.mark.parametrize("n_fresh", [0, 100, 1000])
def test_rows_that_come_again_are_told(rows, seen, n_fresh, fashion):
    """They may stand in any order, among other rows."""
    fresh = fashion.id_test[600 : 600 + n_fresh]
    for make in (DICEDetector, make_ensemble):
        detector = make(fashion.head).fit(fashion.id_train)
        detector.calibrate(seen["calibration"], method="conformal")
        again = np.concatenate([fresh, seen["calibration"][:0:-2]])
        report = OODReport.from_detector(detector, again, rows[1])
        (warning,) = warnings_of_repetition(report)
        assert "the score of a row of calibration" in warning
        again = np.concatenate([fresh, seen["training"][:500]])
        report = OODReport.from_detector(detector, again, rows[1], training=seen["training"])
        (warning,) = warnings_of_repetition(report)
        assert "of a row of fit" in warning


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_that_agree_by_chance_are_not_told(dtype):
    rng = np.random.default_rng(0)
    seen = {"calibration": rng.normal(10, 3, 20_000).astype(dtype)}
    for seed in range(20):
        scores = np.random.default_rng(1 + seed).normal(10, 3, 500).astype(dtype)
        assert repeated_rows(scores, seen) == {}
        scores[:50] = seen["calibration"][:50]
        assert 25 <= repeated_rows(scores, seen)["calibration"] <= 75


def test_the_interval_of_flagged_rows(detector, rows):
    report = OODReport.from_detector(detector, *rows)
    for measured in (report.inside, *report.sets):
        expected = binomtest(measured.n_flagged, measured.n_rows).proportion_ci()
        assert measured.flagged_interval == (expected.low, expected.high)


def test_a_report_names_what_the_detector_saw_in_its_command(fashion, rows, tmp_path):
    import skdice

    detector = DICEDetector(fashion.head).fit(fashion.id_train)
    detector.calibrate(fashion.id_test[:600], method="conformal")
    skdice.save(detector, tmp_path / "detector.safetensors")
    arrays = {"heldout": fashion.id_test[:600], "train": fashion.id_train, "test": rows[0]}
    for name, X in {**arrays, "mnist": rows[1]["mnist"]}.items():
        np.save(tmp_path / f"{name}.npy", X)
    paths = {name: tmp_path / f"{name}.npy" for name in (*arrays, "mnist")}
    report = OODReport.from_detector(
        tmp_path / "detector.safetensors",
        paths["test"],
        {"mnist": paths["mnist"]},
        calibration=paths["heldout"],
        training=paths["train"],
    )
    assert report.command[-4:] == (
        *("--calibration", str(paths["heldout"])),
        *("--training", str(paths["train"])),
    )
