"""Calibration: the threshold, its guarantee for future rows, its record, and p-values."""

import pickle
import warnings
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime
from hashlib import sha256

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.exceptions import NotFittedError

import skdice
from skdice import (
    ConformalEnsemble,
    DICEDetector,
    DICEDetectorCV,
    FDBDDetector,
    LinearHead,
    ViMDetector,
    make_ensemble,
)


@pytest.fixture
def detector():
    # One logit, so that the score is the feature itself.
    return DICEDetector("identity", sparsity=0).fit(np.zeros((1, 1)))


@pytest.mark.parametrize(("n", "contamination"), [(19, 0.05), (57, 0.05), (33, 0.2), (9, 0.1)])
def test_the_share_of_future_rows_flagged_is_guaranteed(detector, n, contamination):
    rng = np.random.default_rng(n)
    shares, small = [], []
    for _ in range(600):
        rows = rng.standard_t(3, size=(n + 200, 1))
        detector.calibrate(rows[:n], contamination, method="conformal")
        shares.append(np.mean(detector.predict(rows[n:]) == -1))
        small.append(np.mean(detector.pvalues(rows[n:]) <= contamination))
    error = np.std(shares) / np.sqrt(len(shares))
    # The guarantee, and that it is not bought by flagging much less.
    assert np.mean(shares) <= contamination + 3 * error
    assert np.mean(shares) >= contamination - 1 / (n + 1) - 3 * error
    np.testing.assert_allclose(shares, small)


@pytest.mark.parametrize(("n", "rank"), [(100, 2), (500, 17), (1000, 39), (1500, 61), (5000, 225)])
def test_the_rank_that_keeps_the_rate_with_confidence(detector, n, rank):
    detector.calibrate(np.arange(n)[:, None], method="conformal", confidence=0.95)
    assert (detector.calibration_.rank, detector.offset_) == (rank, rank - 1)
    # At least `rank` of n scores lie in the lowest 5 % with probability 0.95, rank + 1 do not.
    assert binom.sf(rank - 1, n, 0.05) >= 0.95 > binom.sf(rank, n, 0.05)


@pytest.mark.parametrize(("n", "contamination", "confidence"), [(100, 0.05, 0.95), (300, 0.2, 0.8)])
def test_this_calibration_keeps_the_rate_with_confidence(detector, n, contamination, confidence):
    rng = np.random.default_rng(n)

    def shares_above_the_rate(**options):
        # Scores are uniform, so that the share of future rows below a threshold is the threshold.
        offsets = [
            detector.calibrate(
                rng.uniform(size=(n, 1)), contamination, method="conformal", **options
            ).offset_
            for _ in range(2000)
        ]
        return np.mean(np.array(offsets) > contamination)

    error = np.sqrt(confidence * (1 - confidence) / 2000)
    assert shares_above_the_rate(confidence=confidence) <= 1 - confidence + 3 * error
    # A calibration without a confidence exceeds the rate about every other time.
    assert shares_above_the_rate() > 0.35


@pytest.mark.parametrize("kind", [DICEDetector, FDBDDetector, ViMDetector, make_ensemble])
def test_every_detector_calibrates_with_a_confidence(fashion, tmp_path, kind):
    detector = kind(fashion.head).fit(fashion.id_train)
    detector.calibrate(fashion.id_test[:1000], method="conformal", confidence=0.95)
    assert (detector.calibration_.rank, detector.calibration_.confidence) == (39, 0.95)
    assert detector.offset_ == np.sort(detector.score_samples(fashion.id_test[:1000]))[38]
    skdice.save(detector, tmp_path / "d.safetensors")
    assert skdice.load(tmp_path / "d.safetensors").calibration_ == detector.calibration_


@pytest.mark.parametrize(("contamination", "confidence", "n"), [(0.05, 0.95, 59), (0.5, 0.5, 1)])
def test_the_fewest_rows_of_a_confidence(detector, contamination, confidence, n):
    rows = np.arange(n)[:, None]
    detector.calibrate(rows, contamination, method="conformal", confidence=confidence)
    assert detector.calibration_.rank == 1
    if n > 1:
        with pytest.raises(ValueError, match=f"58 rows are too few .* 0.95: give at least {n}"):
            detector.calibrate(rows[1:], contamination, method="conformal", confidence=confidence)


def test_the_quantile_gives_no_such_guarantee(detector):
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(600):
        rows = rng.normal(size=(229, 1))
        shares.append(np.mean(detector.calibrate(rows[:29]).predict(rows[29:]) == -1))
    assert np.mean(shares) > 0.06


def test_by_hand(detector):
    rows = np.arange(19.0)[::-1, None]
    detector.calibrate(rows, 0.1, method="conformal")
    # The second smallest of 19: 2 / 20 of all places lie at or below it.
    assert detector.offset_ == 1
    np.testing.assert_allclose(
        detector.pvalues([[-1.0], [0.0], [0.5], [18.0], [99.0]]), [0.05, 0.1, 0.1, 1.0, 1.0]
    )
    assert list(detector.predict([[0.5], [1.0]])) == [-1, 1]


def test_p_values_of_a_tensor(detector):
    torch = pytest.importorskip("torch")
    detector.calibrate(np.arange(19.0)[:, None], 0.1, method="conformal")
    assert detector.pvalues(torch.tensor([[0.5]])).tolist() == [0.1]


def test_ties_are_not_flagged(detector):
    detector.calibrate(np.ones((40, 1)), 0.1, method="conformal")
    assert (detector.predict(np.ones((5, 1))) == 1).all()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"method": "exact"}, "method is 'exact', expected 'quantile' or 'conformal'"),
        ({"method": "conformal"}, "18 rows are too few .* of 0.05: give at least 19"),
        ({"method": "conformal", "contamination": 0.6}, "contamination is 0.6"),
        ({"confidence": 0.9}, "confidence is 0.9 and method is 'quantile': .*'conformal'"),
        (
            {"method": "conformal", "confidence": 1},
            r"confidence is 1, expected None or .* \(0, 1\)",
        ),
        ({"method": "conformal", "confidence": "high"}, "confidence is 'high', expected"),
        ({"method": "conformal", "confidence": float("nan")}, "confidence is nan, expected"),
    ],
)
def test_what_cannot_be_guaranteed(detector, options, reason):
    before = vars(detector).copy()
    with pytest.raises(ValueError, match=reason):
        detector.calibrate(np.ones((18, 1)), **options)
    assert vars(detector) == before


def test_scores_are_kept_with_the_detector_and_dropped_with_the_threshold(fashion, tmp_path):
    detector = DICEDetector(fashion.head, sparsity=0.1).fit(fashion.id_train)
    with pytest.raises(NotFittedError, match="method='conformal'"):
        detector.pvalues(fashion.id_test)
    detector.calibrate(fashion.id_test[:1000], method="conformal")
    expected = detector.pvalues(fashion.id_test)
    skdice.save(detector, tmp_path / "d.safetensors")
    for copy in (skdice.load(tmp_path / "d.safetensors"), pickle.loads(pickle.dumps(detector))):
        np.testing.assert_array_equal(copy.pvalues(fashion.id_test), expected)
    for change in (
        lambda detector: detector.calibrate(fashion.id_test),
        lambda detector: detector.fit(fashion.id_train),
        lambda detector: detector.partial_fit(fashion.id_train),
    ):
        changed = change(skdice.load(tmp_path / "d.safetensors"))
        assert not hasattr(changed, "calibration_scores_")


def test_after_a_search(fashion):
    detector = DICEDetectorCV(fashion.head, sparsities=[0, 0.1], cv=2)
    outliers = fashion.ood["mnist"][:300]
    detector.fit(fashion.id_train[:500], outliers=outliers)
    detector.calibrate(fashion.id_test[:500], method="conformal")
    assert detector.pvalues(fashion.id_test[500:]).shape == (2500,)
    detector.fit(fashion.id_train[:500], outliers=outliers)
    assert not hasattr(detector, "calibration_scores_")


def test_calibrate_on_held_out_rows(small):
    head, X = small
    detector = DICEDetector(head).fit(X[:100])
    mask = detector.mask_.copy()
    detector.calibrate(X[100:], contamination=0.25)
    assert (detector.predict(X[100:]) == -1).sum() == 25
    np.testing.assert_array_equal(detector.mask_, mask)
    assert detector.get_params()["contamination"] == 0.05
    detector.calibrate(X[100:])
    assert (detector.predict(X[100:]) == -1).sum() == 5


@pytest.mark.parametrize("share", [0, -0.1, 0.51, float("nan"), "many"])
def test_bad_contamination_of_calibrate_is_named(small, share):
    head, X = small
    detector = DICEDetector(head).fit(X)
    with pytest.raises(ValueError, match=f"contamination is {share!r}"):
        detector.calibrate(X, share)


def test_a_dask_array_calibrates_as_its_rows_in_memory_do(small):
    da = pytest.importorskip("dask.array")
    head, X = small
    array = da.from_array(X, chunks=(33, 12))
    expected = DICEDetector(head).fit(X).calibrate(X, method="conformal")
    detector = DICEDetector(head).fit(X).calibrate(array, method="conformal")
    np.testing.assert_allclose(detector.calibration_scores_, expected.calibration_scores_)
    assert isinstance(detector.calibration_scores_, np.ndarray)
    values = expected.pvalues(array)
    assert values.dtype == np.float64
    assert values.chunks == (array.chunks[0],)
    np.testing.assert_allclose(values.compute(), expected.pvalues(X), atol=1 / 200)


def test_fit_states_its_contamination_and_no_calibration(detector):
    detector.set_params(contamination=0.2).fit(np.arange(20.0)[:, None])
    assert detector.contamination_ == 0.2
    assert detector.offset_ == 4
    assert not hasattr(detector, "calibration_")
    detector.set_params(contamination=0.4)
    assert detector.contamination_ == 0.2  # the parameter waits for the next fit


@pytest.mark.parametrize(
    ("method", "contamination", "confidence", "rank"),
    # 20 rows: floor(0.2 * 20) rows below the threshold, or floor(0.2 * 21) with a guarantee.
    # At least 2 of 20 scores lie in the lowest fifth with probability 0.93, and 3 with 0.79.
    [
        ("quantile", 0.2, None, 5),
        ("conformal", 0.2, None, 4),
        ("quantile", None, None, 2),
        ("conformal", None, None, 1),
        ("conformal", 0.2, 0.9, 2),
    ],
)
def test_the_record_of_a_calibration(detector, method, contamination, confidence, rank, tmp_path):
    rows = np.random.default_rng(0).permutation(np.arange(20.0))[:, None]
    start = datetime.now(UTC).replace(microsecond=0)
    detector.calibrate(rows, contamination, method=method, confidence=confidence)
    record = detector.calibration_
    assert record.method == method
    assert record.contamination == detector.contamination_ == (contamination or 0.05)
    assert record.confidence == confidence
    assert record.n_samples == 20
    assert record.rank == rank
    assert detector.offset_ == np.sort(rows.ravel())[rank - 1]
    assert start <= datetime.fromisoformat(record.date) <= datetime.now(UTC)
    assert record.digest == sha256(rows.astype("<f8").tobytes()).hexdigest()
    with pytest.raises(FrozenInstanceError):
        record.rank = 1
    skdice.save(detector, tmp_path / "d.safetensors")
    for copy in (skdice.load(tmp_path / "d.safetensors"), pickle.loads(pickle.dumps(detector))):
        assert copy.calibration_ == record
        assert copy.contamination_ == detector.contamination_


@pytest.mark.parametrize("method", ["quantile", "conformal"])
def test_the_record_goes_with_its_threshold(detector, method):
    rows = np.arange(40.0)[:, None]
    record = detector.calibrate(rows, 0.2, method=method).calibration_
    with pytest.raises(ValueError, match="contamination is 2"):
        detector.calibrate(rows, 2, method=method)
    assert detector.calibration_ is record
    detector.partial_fit(rows)
    for name in ("offset_", "contamination_", "calibration_", "calibration_scores_"):
        assert not hasattr(detector, name)
    detector.calibrate(rows, 0.2, method=method).fit(rows)
    assert detector.contamination_ == 0.05
    assert not hasattr(detector, "calibration_")


@pytest.mark.parametrize("method", ["quantile", "conformal"])
@pytest.mark.parametrize("kind", ["tensor", "Dask", "Dask of unknown sizes", "blocks"])
def test_the_digest_is_the_same_for_every_source(detector, kind, method):
    rows = np.random.default_rng(1).normal(size=(300, 1))
    expected = detector.calibrate(rows, method=method).calibration_
    if kind == "tensor":
        source = pytest.importorskip("torch").from_numpy(rows)
    elif kind == "blocks":
        source = rows
        detector.set_params(batch_size=7, n_jobs=2)
    else:
        source = pytest.importorskip("dask.array").from_array(rows, chunks=(70, 1))
        if kind == "Dask of unknown sizes":
            source = source[source[:, 0] > -np.inf]
    found = detector.calibrate(source, method=method).calibration_
    assert replace(found, date=expected.date) == expected
    # Another order of the rows is another calibration.
    assert detector.calibrate(rows[::-1], method=method).calibration_.digest != expected.digest


def test_scores_in_single_precision_have_a_digest_of_their_own(detector):
    rows = np.arange(30, dtype=np.float32)[:, None]
    record = detector.calibrate(rows).calibration_
    assert record.digest == sha256(rows.astype("<f4").tobytes()).hexdigest()


@pytest.mark.parametrize("kind", ["array", "dask"])
@pytest.mark.parametrize("make", [DICEDetector, ViMDetector, make_ensemble])
@pytest.mark.parametrize("method", ["quantile", "conformal"])
def test_rows_of_fit_are_no_calibration(fashion, make, method, kind):
    """The warning comes once a threshold of fit is replaced by that of the same rows."""
    given = {"rows of fit": fashion.id_train[:1500], "other rows": fashion.id_test[:1500]}
    if kind == "dask":
        da = pytest.importorskip("dask.array")
        given = {name: da.from_array(X, chunks=(500, -1)) for name, X in given.items()}
    detector = make(fashion.head).fit(given["rows of fit"])
    with pytest.warns(UserWarning, match="the 1,500 rows given.*than the contamination of 0.1"):
        detector.calibrate(given["rows of fit"], 0.1, method=method)
    if make is make_ensemble:  # its members keep the thresholds of fit
        with pytest.warns(UserWarning, match="the 1,500 rows given"):
            detector.calibrate(given["rows of fit"], method=method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(fashion.head).fit(given["rows of fit"]).calibrate(given["other rows"], method=method)


def test_thresholds_that_agree_by_chance_are_no_rows_of_fit(fashion):
    """Saturated probabilities, and ensembles of few members, have few values."""
    sharp = LinearHead(fashion.head.weight * 8, fashion.head.bias * 8)
    members = [("dice", DICEDetector(fashion.head)), ("fdbd", FDBDDetector(fashion.head))]
    for n in (40, 200):
        for start in range(0, 1000, n):
            for make in (
                lambda: DICEDetector(sharp, score_func="msp", contamination=0.4),
                lambda: ConformalEnsemble(members[:1]),
                lambda: ConformalEnsemble(members[1:]),
                lambda: ConformalEnsemble(members, combination="min"),
            ):
                detector = make().fit(fashion.id_train[start : start + n])
                with warnings.catch_warnings():
                    warnings.filterwarnings("error", "the .* rows given to calibrate")
                    detector.calibrate(fashion.id_test[start : start + n])


@pytest.mark.parametrize("combination", ["fisher", "min"])
def test_rows_of_fit_are_recognised_in_other_blocks_and_as_tensors(fashion, combination):
    torch = pytest.importorskip("torch")
    X = fashion.id_train[:2000].astype("f4")
    members = [("dice", DICEDetector(fashion.head)), ("fdbd", FDBDDetector(fashion.head))]
    for given, options in ((X, {"batch_size": 100}), (torch.from_numpy(X), {})):
        ensemble = ConformalEnsemble(members, combination=combination).fit(X)
        with pytest.warns(UserWarning, match="probably the rows of fit"):
            ensemble.set_params(**options).calibrate(given, method="conformal")
