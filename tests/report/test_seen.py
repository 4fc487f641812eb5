"""A report names and checks the rows that a detector has seen, and warns if they come again."""

import numpy as np
import pytest
from scipy.stats import binomtest

from skdice import ConformalEnsemble, DICEDetector, FDBDDetector, LinearHead, make_ensemble
from skdice.report import OODReport
from skdice.report._seen import n_same_scores


def warnings_of_repetition(report):
    return [each for each in report.warnings if "rows that the detector has seen" in each]


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
    pytest.importorskip("jinja2")
    assert ", calibration=..., training=...)" in report.to_markdown()


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
        assert "probably rows of calibration" in warning
        again = np.concatenate([fresh, seen["training"][:500]])
        report = OODReport.from_detector(detector, again, rows[1], training=seen["training"])
        (warning,) = warnings_of_repetition(report)
        assert "500 of the" in warning
        assert "probably rows of fit" in warning


@pytest.mark.parametrize("seen_dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_repeated_rows_are_found_in_every_precision(fashion, rows, dtype, seen_dtype):
    detector = DICEDetector(fashion.head).fit(fashion.id_train)
    seen = fashion.id_test[:600].astype(np.float16)  # the same values in every precision
    detector.calibrate(seen.astype(seen_dtype), method="conformal")
    again = np.concatenate([seen[100:], fashion.id_test[600:700].astype(np.float16)])
    report = OODReport.from_detector(detector, again.astype(dtype), rows[1])
    assert len(warnings_of_repetition(report)) == 1


@pytest.mark.parametrize("n_rows", [5, 10, 50, 500])
@pytest.mark.parametrize("n_seen", [1000, 50_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_that_agree_by_chance_are_not_told(dtype, n_seen, n_rows):
    rng = np.random.default_rng(0)
    seen = rng.normal(10, 3, n_seen).astype(dtype)
    for _ in range(100):
        scores = rng.normal(10, 3, n_rows).astype(dtype)
        assert n_same_scores(scores, seen) == 0
    half = n_rows // 2
    scores[:half] = rng.choice(seen, half, replace=False)
    if dtype == np.float32 and n_seen == 50_000:
        assert n_same_scores(scores, seen) == 0  # too many scores have a neighbour
    elif n_rows >= 50:
        assert n_same_scores(scores, seen) == pytest.approx(half, rel=0.3)


@pytest.mark.parametrize("levels", [1, 20, 500])
def test_scores_of_few_values_are_not_told(levels):
    """A saturated probability, or an ensemble of one member, has ties."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        scores, seen = (rng.integers(levels, size=n) / 7 for n in (300, 900))
        assert n_same_scores(scores, seen) == 0


@pytest.mark.parametrize("scale", [2, 4])
def test_unseen_rows_of_a_saturated_score_or_a_small_ensemble_are_not_told(fashion, scale):
    X_id, ood = fashion.id_test[1000:], {"mnist": fashion.ood["mnist"]}
    sharp = LinearHead(fashion.head.weight * scale, fashion.head.bias * scale)
    members = [("dice", DICEDetector(fashion.head)), ("fdbd", FDBDDetector(fashion.head))]
    for detector in (
        DICEDetector(sharp, score_func="msp"),
        ConformalEnsemble(members[:1]),
        ConformalEnsemble(members, combination="min"),
    ):
        train = fashion.id_train[:300]
        detector.fit(train).calibrate(fashion.id_test[:1000], method="conformal")
        report = OODReport.from_detector(detector, X_id, ood, training=train)
        assert warnings_of_repetition(report) == []
        assert report.promise.n_fitted == 0


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


@pytest.mark.parametrize("make", [DICEDetector, make_ensemble])
@pytest.mark.parametrize("n_fresh", [0, 100, 500])
def test_a_calibration_on_rows_of_fit_promises_nothing(fashion, rows, n_fresh, make):
    """It is seen as soon as the rows of fit are given, those of the calibration or not."""
    train = fashion.id_train[:1000]
    leaked = np.concatenate([fashion.id_test[:n_fresh], train[:500]])
    detector = make(fashion.head).fit(train)
    detector.calibrate(leaked, method="conformal", confidence=0.95)
    for seen in ({"training": train}, {"training": train, "calibration": leaked}):
        report = OODReport.from_detector(detector, *rows, **seen)
        assert report.promise.n_fitted == pytest.approx(500, abs=10)
        assert report.promise.statement.startswith(
            f"Nothing is promised: {report.promise.n_fitted}"
        )
        assert any("the promise does not hold" in each for each in report.warnings)
    clean = make(fashion.head).fit(train)
    clean.calibrate(fashion.id_test[:600], method="conformal")
    promise = OODReport.from_detector(clean, *rows, training=train).promise
    assert promise.n_fitted == 0
    assert promise.statement.startswith("Of future in-distribution rows")


def test_a_quantile_threshold_near_zero_is_that_of_the_same_rows_in_another_precision(
    fashion, rows
):
    calibration = fashion.id_test[:600].astype(np.float16)
    plain = DICEDetector(fashion.head).fit(fashion.id_train).calibrate(calibration)
    shifted = LinearHead(fashion.head.weight, fashion.head.bias - plain.offset_)
    detector = DICEDetector(shifted).fit(fashion.id_train).calibrate(calibration)
    assert abs(detector.offset_) < 1e-5
    same = calibration.astype(np.float64)
    OODReport.from_detector(detector, *rows, calibration=same)
    with pytest.raises(ValueError, match="not the rows"):
        OODReport.from_detector(detector, *rows, calibration=fashion.id_test[600:1200])


def test_rows_that_are_surer_than_the_seen_rows_are_not_told(fashion):
    """They lie where a saturated score has many seen values, which are no sign of the same row."""
    X, ood = fashion.id_test, {"mnist": fashion.ood["mnist"][:100]}
    detector = DICEDetector(fashion.head, score_func="msp").fit(fashion.id_train)
    order = np.argsort(detector.score_samples(X))
    predicted = (X.astype("f4") @ fashion.head.weight.T + fashion.head.bias).argmax(axis=1)
    detector.calibrate(X[::2], method="conformal")
    for inside in (X[1::2][predicted[1::2] == 5], X[order[-750:][order[-750:] % 2 == 1]]):
        report = OODReport.from_detector(detector, inside, ood, training=fashion.id_train)
        assert warnings_of_repetition(report) == []
    detector.calibrate(X[order[-1000:]], method="conformal")
    for seen in ({}, {"calibration": X[order[-1000:]]}):
        report = OODReport.from_detector(
            detector, X[order[:-1000]], ood, training=fashion.id_train, **seen
        )
        assert report.promise.n_fitted == 0


def test_repeated_rows_of_fit_hide_nothing(fashion, rows):
    """A training set that was balanced by repetition has many rows twice."""
    train = np.concatenate([fashion.id_train[:1000]] * 2)
    detector = DICEDetector(fashion.head).fit(train)
    with pytest.warns(UserWarning, match="probably the rows of fit"):
        detector.calibrate(train, method="conformal")
    detector.calibrate(train[:600], method="conformal")
    seen = {"training": train, "calibration": train[:600]}
    assert OODReport.from_detector(detector, *rows, **seen).promise.n_fitted == 600


def test_a_row_with_a_huge_score_hides_nothing(fashion, rows):
    detector = DICEDetector(fashion.head).fit(fashion.id_train)
    detector.calibrate(fashion.id_test[:600].astype("f4"), method="conformal")
    again = fashion.id_test[:500].astype("f4")
    again[0] *= 1000
    report = OODReport.from_detector(detector, again, rows[1])
    assert len(warnings_of_repetition(report)) == 1


@pytest.mark.parametrize("leaks", [False, True])
def test_an_ensemble_of_ensembles_accuses_no_unseen_rows(fashion, leaks):
    inner = ConformalEnsemble([("dice", DICEDetector(fashion.head))])
    ensemble = ConformalEnsemble([("inner", inner), ("fdbd", FDBDDetector(fashion.head))])
    train = fashion.id_train[:1000]
    for detector in (ensemble, inner):
        detector.fit(train).calibrate(fashion.id_test[:1000], method="conformal")
        inside = np.concatenate([fashion.id_test[1000:1500], train[: 60 * leaks]])
        ood = {"mnist": fashion.ood["mnist"]}
        report = OODReport.from_detector(detector, inside, ood, training=train)
        assert len(warnings_of_repetition(report)) == leaks
        assert report.promise.n_fitted == 0


def test_no_class_with_a_threshold_of_its_own(fashion, rows):
    detector = DICEDetector(fashion.head).fit(fashion.id_train)
    with pytest.warns(UserWarning, match="10 of 10 predicted classes have too few"):
        detector.calibrate(fashion.id_test[:25], method="conformal", by="prediction")
    report = OODReport.from_detector(detector, *rows)
    assert report.promise.statement.startswith("Nothing is promised, because every class")
