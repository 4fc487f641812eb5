"""Calibration by predicted class: its thresholds, its promise for every class, and its p-values."""

import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import skdice
from skdice import (
    ConformalEnsemble,
    DICEDetector,
    FDBDDetector,
    LinearHead,
    ViMDetector,
    make_ensemble,
)
from skdice._calibration.by_prediction import ClassScores
from skdice._passes.threshold import conformal_rank, fewest_rows
from skdice.metrics import evaluate

KINDS = [DICEDetector, FDBDDetector, ViMDetector, make_ensemble]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def calibrated(request, fashion):
    detector = request.param(fashion.head).fit(fashion.id_train)
    return detector.calibrate(fashion.id_test[:1500], method="conformal", by="prediction")


@pytest.fixture
def identity():
    """A detector of three classes whose score is the largest of three features."""
    return DICEDetector("identity", sparsity=0, score_func="max_logit").fit(np.eye(3))


def drawn(rng, n, shares=(0.6, 0.3, 0.1), scales=(1.0, 3.0, 0.1)):
    """Rows of three classes whose scores have different laws: (rows, classes)."""
    classes = rng.choice(3, n, p=shares)
    rows = np.zeros((n, 3))
    # Exponential scores, so that the share of future rows below a threshold is known.
    rows[np.arange(n), classes] = 1e-9 + rng.exponential(size=n) * np.array(scales)[classes]
    return rows, classes


def classes_of(head, X):
    return np.argmax(X @ head.weight.T + head.bias, axis=1)


# The thresholds


def test_each_class_has_the_threshold_of_its_rows(calibrated, fashion):
    X, scores = fashion.id_test[:1500], calibrated.score_samples(fashion.id_test[:1500])
    classes = classes_of(fashion.head, X)
    assert calibrated.class_offsets_.dtype == np.float64
    assert calibrated.class_offsets_.shape == (10,)
    for k in range(10):
        own = np.sort(scores[classes == k])
        expected = own[conformal_rank(len(own), 0.05) - 1]
        # Scores that are computed in blocks of another size differ by rounding.
        assert calibrated.class_offsets_[k] == pytest.approx(expected, rel=1e-5)
    assert calibrated.offset_ == pytest.approx(np.sort(scores)[74], rel=1e-5)
    assert calibrated.fallback_classes_.tolist() == []
    order = np.argsort(scores, kind="stable")
    np.testing.assert_allclose(calibrated.calibration_scores_, scores[order], rtol=1e-5)
    assert (calibrated.calibration_classes_ == classes[order]).mean() > 0.99
    assert np.issubdtype(calibrated.calibration_classes_.dtype, np.integer)
    assert "by predicted class" in str(calibrated.calibration_)
    assert "by='prediction'" in repr(calibrated.calibration_)


def test_by_hand(identity):
    # Class 0 has the scores 1 to 19, class 1 has 101 to 139, class 2 has none.
    rows = np.zeros((58, 3))
    rows[:19, 0], rows[19:, 1] = np.arange(1, 20), np.arange(101, 140)
    with pytest.warns(UserWarning, match=r"1 of 3 .* \(the first is class 2\).* needs 19 rows"):
        identity.calibrate(rows, 0.05, method="conformal", by="prediction")
    # The first of 19, the second of 39; the second of all 58 for class 2.
    assert identity.class_offsets_.tolist() == [1.0, 102.0, 2.0]
    assert identity.offset_ == 2.0
    assert identity.fallback_classes_.tolist() == [2]
    asked = np.array([[0.5, 0, 0], [1, 0, 0], [0, 101, 0], [0, 102, 0], [0, 0, 1.5], [0, 0, 3]])
    assert identity.decision_function(asked).tolist() == [-0.5, 0, -1, 0, -0.5, 1]
    assert identity.predict(asked).tolist() == [-1, 1, -1, 1, -1, 1]
    expected = [1 / 20, 2 / 20, 2 / 40, 3 / 40, 2 / 59, 4 / 59]
    np.testing.assert_allclose(identity.pvalues(asked), expected)


def test_the_first_of_several_equal_logits_is_the_class(identity):
    rows = np.repeat(np.arange(1.0, 20)[:, None], 3, axis=1)
    with pytest.warns(UserWarning, match="2 of 3"):
        identity.calibrate(rows, method="conformal", by="prediction")
    assert identity.calibration_classes_.tolist() == [0] * 19


@pytest.mark.parametrize("confidence", [None, 0.95])
def test_the_number_of_rows_that_a_class_needs(identity, confidence):
    least = fewest_rows(0.1, confidence)
    rows = np.zeros((3 * least - 1, 3))
    for k, own in enumerate(np.array_split(np.arange(len(rows)), [least, 2 * least])):
        rows[own, k] = 1 + np.arange(len(own))
    options = {"method": "conformal", "confidence": confidence, "by": "prediction"}
    with pytest.warns(UserWarning, match=rf"class 2\).* a class needs {least} rows"):
        identity.calibrate(rows, 0.1, **options)
    assert identity.fallback_classes_.tolist() == [2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        identity.calibrate(np.vstack([rows, [[0, 0, 99]]]), 0.1, **options)
    assert identity.fallback_classes_.tolist() == []


@given(st.floats(1e-4, 0.5), st.none() | st.floats(0.01, 0.999))
@settings(max_examples=300)
def test_the_fewest_rows_are_the_fewest(contamination, confidence):
    n = fewest_rows(contamination, confidence)
    assert conformal_rank(n, contamination, confidence) >= 1
    if n > 1:
        with pytest.raises(ValueError, match="too few"):
            conformal_rank(n - 1, contamination, confidence)


@given(
    st.lists(st.floats(-100, 100, width=16), min_size=9, max_size=60),
    st.sampled_from([None, 0.5]),
    st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=10),
)
@settings(max_examples=50)
def test_one_class_has_the_threshold_of_all_rows(scores, confidence, asked):
    detector = DICEDetector("identity", sparsity=0).fit(np.zeros((1, 1)))
    rows, asked = np.array(scores)[:, None], np.array(asked)[:, None]
    options = {"contamination": 0.1, "method": "conformal", "confidence": confidence}
    detector.calibrate(rows, **options)
    expected = detector.decision_function(asked), detector.predict(asked), detector.pvalues(asked)
    offset = detector.offset_
    detector.calibrate(rows, **options, by="prediction")
    assert detector.class_offsets_.tolist() == [offset] == [detector.offset_]
    found = detector.decision_function(asked), detector.predict(asked), detector.pvalues(asked)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


# What is promised


def test_every_class_keeps_the_rate_on_average(identity):
    rng = np.random.default_rng(0)
    flagged = [[], [], []]
    small = [[], [], []]
    for _ in range(600):
        rows, classes = drawn(rng, 600)
        identity.calibrate(rows[:400], 0.1, method="conformal", by="prediction")
        out, pvalues = identity.predict(rows[400:]) == -1, identity.pvalues(rows[400:])
        for k in range(3):
            if (classes[400:] == k).any():
                flagged[k].append(out[classes[400:] == k].mean())
                small[k].append((pvalues[classes[400:] == k] <= 0.1).mean())
    for k in range(3):
        error = np.std(flagged[k]) / np.sqrt(len(flagged[k]))
        assert 0.1 - 1 / 30 - 3 * error <= np.mean(flagged[k]) <= 0.1 + 3 * error
        np.testing.assert_allclose(flagged[k], small[k])


def test_one_threshold_does_not_keep_the_rate_of_every_class(identity):
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(100):
        rows, classes = drawn(rng, 1000)
        out = identity.calibrate(rows[:500], 0.1, method="conformal").predict(rows[500:]) == -1
        rates.append([out[classes[500:] == k].mean() for k in range(3)])
    assert np.max(np.mean(rates, axis=0)) > 0.3
    assert np.min(np.mean(rates, axis=0)) < 0.06


def test_with_confidence_each_class_keeps_the_rate_in_most_calibrations(identity):
    rng = np.random.default_rng(1)
    scales = np.array([1.0, 3.0, 0.1])
    above = []
    for _ in range(1000):
        rows, _ = drawn(rng, 500, shares=(0.4, 0.4, 0.2))
        identity.calibrate(rows, 0.1, method="conformal", confidence=0.9, by="prediction")
        assert identity.fallback_classes_.tolist() == []
        above.append(-np.expm1(-identity.class_offsets_ / scales) > 0.1)
    shares, error = np.mean(above, axis=0), np.sqrt(0.1 * 0.9 / 1000)
    assert (shares <= 0.1 + 3 * error).all()
    # The promise is not kept by flagging much less.
    assert (shares >= 0.02).all()


# Sources


@pytest.mark.parametrize("kind", ["memmap", "tensor", "dask", "float64", "blocks"])
def test_every_source_gives_the_same(calibrated, fashion, tmp_path, kind):
    X = fashion.id_test[1500:2500]
    expected = calibrated.decision_function(X), calibrated.pvalues(X), calibrated.predict(X)
    detector = calibrated
    if kind == "memmap":
        np.save(tmp_path / "x.npy", X)
        given = np.load(tmp_path / "x.npy", mmap_mode="r")
    elif kind == "tensor":
        given = pytest.importorskip("torch").tensor(X)
    elif kind == "dask":
        given = pytest.importorskip("dask.array").from_array(X, chunks=(300, -1))
    elif kind == "float64":
        given = X.astype(np.float64)
    else:
        given, detector = X, pickle.loads(pickle.dumps(calibrated))
        detector.set_params(batch_size=64)
    found = detector.decision_function(given), detector.pvalues(given), detector.predict(given)
    if kind in ("tensor", "dask"):
        assert {type(values) for values in found} == {type(given)}
    if kind == "dask":
        found = [values.compute() for values in found]
    found = [np.asarray(values) for values in found]
    assert found[0].dtype == (np.float64 if kind == "float64" else np.float32)
    assert found[1].dtype == np.float64
    for one, other, atol in zip(expected, found, (1e-3, 0.01, 0), strict=True):
        np.testing.assert_allclose(other, one, atol=atol)


@pytest.mark.parametrize("kind", ["dask", "tensor"])
def test_every_source_calibrates_alike(calibrated, fashion, kind):
    X = fashion.id_test[:1500]
    if kind == "dask":
        chunks = (700, 800, 0), (X.shape[1],)  # the last chunk is empty
        given = pytest.importorskip("dask.array").from_array(X, chunks=chunks)
    else:
        given = pytest.importorskip("torch").tensor(X)
    copy = pickle.loads(pickle.dumps(calibrated))
    copy.calibrate(given, method="conformal", by="prediction")
    np.testing.assert_allclose(copy.class_offsets_, calibrated.class_offsets_, rtol=1e-4)
    assert copy.calibration_.n_samples == 1500


def test_the_array_api(fashion):
    xp = pytest.importorskip("array_api_strict")
    from sklearn import config_context

    with config_context(array_api_dispatch=True):
        train, test = fashion.id_train, fashion.id_test[:1500]
        X = xp.asarray(test.astype(np.float32))  # the standard has no float16
        detector = DICEDetector(fashion.head).fit(xp.asarray(train.astype(np.float32)))
        detector.calibrate(X, method="conformal", by="prediction")
        for values in (detector.decision_function(X), detector.predict(X), detector.pvalues(X)):
            assert type(values) is type(X)
        decisions = np.from_dlpack(detector.decision_function(X))
    plain = DICEDetector(fashion.head).fit(fashion.id_train)
    plain.calibrate(fashion.id_test[:1500], method="conformal", by="prediction")
    expected = plain.decision_function(fashion.id_test[:1500])
    np.testing.assert_allclose(decisions, expected, atol=1e-4)


class CountedRows:
    """Rows that count how often each of them is read."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.counts = np.zeros(len(array), int)

    def __getitem__(self, rows):
        self.counts[rows] += 1
        return self.array[rows]


@pytest.mark.parametrize("method", ["calibrate", "decision_function", "pvalues"])
def test_every_row_is_read_once(calibrated, fashion, method):
    rows = CountedRows(np.tile(fashion.id_test, (3, 1)))
    detector = pickle.loads(pickle.dumps(calibrated)).set_params(batch_size=500)
    options = {"method": "conformal", "by": "prediction"} if method == "calibrate" else {}
    getattr(detector, method)(rows, **options)
    assert set(rows.counts.tolist()) == {1}


def test_a_row_that_is_not_finite_is_named(calibrated, fashion):
    rows = fashion.id_test[:2000].copy()
    rows[1234, 3] = np.nan
    for call in (calibrated.decision_function, calibrated.pvalues, calibrated.predict):
        with pytest.raises(ValueError, match="NaN in row 1234, column 3"):
            call(rows)


# The record, and what forgets it


def test_the_calibration_goes_with_its_threshold(fashion):
    names = ("class_offsets_", "fallback_classes_", "calibration_classes_")
    rows = fashion.id_test[:1500]
    for change in (
        lambda detector: detector.fit(fashion.id_train),
        lambda detector: detector.partial_fit(fashion.id_train),
        lambda detector: detector.calibrate(rows),
        lambda detector: detector.calibrate(rows, method="conformal"),
    ):
        detector = DICEDetector(fashion.head).fit(fashion.id_train)
        detector.calibrate(rows, method="conformal", by="prediction")
        assert all(hasattr(detector, name) for name in names)
        assert not any(hasattr(clone(detector), name) for name in names)
        change(detector)
        assert not any(hasattr(detector, name) for name in names)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"by": "prediction"}, "by is 'prediction' and method is 'quantile': .* method='conform"),
        ({"by": "label", "method": "conformal"}, "by is 'label', expected None or 'prediction'"),
        ({"by": "prediction", "method": "conformal"}, "18 rows are too few .* at least 19"),
    ],
)
def test_what_cannot_be_promised_changes_nothing(identity, options, reason):
    before = vars(identity).copy()
    with pytest.raises(ValueError, match=reason):
        identity.calibrate(np.ones((18, 3)), **options)
    assert vars(identity) == before


def test_without_a_head_there_are_no_classes(fashion):
    forests = [(name, IsolationForest(n_estimators=10, random_state=0)) for name in "ab"]
    ensemble = ConformalEnsemble(forests).fit(fashion.id_train)
    with pytest.raises(ValueError, match="has no head that could predict a class"):
        ensemble.calibrate(fashion.id_test, method="conformal", by="prediction")


def test_an_ensemble_with_a_member_of_another_library(fashion):
    members = [("dice", DICEDetector(fashion.head)), ("forest", IsolationForest(n_estimators=10))]
    ensemble = ConformalEnsemble(members).fit(fashion.id_train)
    ensemble.calibrate(fashion.id_test[:1500], method="conformal", by="prediction")
    decisions = ensemble.decision_function(fashion.id_test[1500:])
    classes = classes_of(fashion.head, fashion.id_test[1500:])
    scores = ensemble.score_samples(fashion.id_test[1500:])
    expected = scores - ensemble.class_offsets_.astype(np.float32)[classes]
    np.testing.assert_allclose(decisions, expected, atol=1e-5)


def test_a_file_and_a_pickle_hold_everything(calibrated, fashion, tmp_path):
    X = fashion.id_test[1500:]
    expected = calibrated.decision_function(X), calibrated.pvalues(X)
    skdice.save(calibrated, tmp_path / "d.safetensors")
    for copy in (skdice.load(tmp_path / "d.safetensors"), pickle.loads(pickle.dumps(calibrated))):
        assert copy.calibration_ == calibrated.calibration_
        for name in ("class_offsets_", "fallback_classes_", "calibration_classes_"):
            np.testing.assert_array_equal(getattr(copy, name), getattr(calibrated, name))
        for one, other in zip(expected, (copy.decision_function(X), copy.pvalues(X)), strict=True):
            np.testing.assert_array_equal(one, other)


# Other parts of the package


@pytest.mark.filterwarnings("ignore:.*torch.jit.script", "ignore::DeprecationWarning")
def test_a_torch_module_decides_and_gives_p_values(fashion):
    torch = pytest.importorskip("torch")
    X, tensor = fashion.id_test[1500:], torch.tensor(fashion.id_test[1500:])
    for kind in KINDS:
        detector = kind(fashion.head).fit(fashion.id_train)
        for rows, by in ((180, "prediction"), (1500, "prediction"), (1500, None)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # classes with too few of 180 rows
                detector.calibrate(fashion.id_test[:rows], method="conformal", by=by)
            for module in (detector.to_torch(), torch.jit.script(detector.to_torch())):
                is_ood, pvalues = module.is_ood(tensor).numpy(), module.pvalue(tensor).numpy()
                assert (is_ood == (detector.predict(X) == -1)).mean() > 0.999
                np.testing.assert_allclose(pvalues, detector.pvalues(X), atol=2 / 18)
                assert (np.abs(pvalues - detector.pvalues(X)) < 1e-6).mean() > 0.999
            bad = tensor[:1].clone()
            bad[0, 0] = torch.nan
            assert module.is_ood(bad).all()
            assert float(module.pvalue(bad)) == pytest.approx(1 / (rows + 1))
    assert DICEDetector(fashion.head).fit(X).to_torch().pvalue(tensor).isnan().all()


def test_an_attached_model_decides_by_class(fashion):
    torch = pytest.importorskip("torch")
    from skdice.extraction import attach

    layer = torch.nn.Linear(fashion.head.n_features, 10)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(fashion.head.weight))
        layer.bias.copy_(torch.tensor(fashion.head.bias))
    detector = DICEDetector(fashion.head).fit(fashion.id_train)
    detector.calibrate(fashion.id_test[:1500], method="conformal", by="prediction")
    X = fashion.id_test[1500:]
    model = attach(torch.nn.Sequential(layer), detector)
    logits, scores, is_ood, pvalues = model.decide(torch.tensor(X).float())
    assert logits.shape == (1500, 10)
    np.testing.assert_allclose(scores.detach(), detector.score_samples(X), rtol=1e-4)
    assert (is_ood.numpy() == (detector.predict(X) == -1)).mean() > 0.999
    assert (np.abs(pvalues.detach().numpy() - detector.pvalues(X)) < 1e-6).mean() > 0.999


def test_reports_count_the_flags_of_the_classes(fashion):
    X, ood = fashion.id_test[1500:], {"mnist": fashion.ood["mnist"]}
    detector = DICEDetector(fashion.head).fit(fashion.id_train)
    detector.calibrate(fashion.id_test[:1500], method="conformal", by="prediction")
    (result,) = evaluate(detector, X, ood).results.values()
    assert result.id_flagged == np.mean(detector.predict(X) == -1)
    assert result.sets["mnist"].flagged == np.mean(detector.predict(ood["mnist"]) == -1)


def test_no_single_line_is_drawn_for_the_thresholds(fashion):
    plt = pytest.importorskip("matplotlib.pyplot")
    from skdice.plotting import ScoreHistogramDisplay

    detector = DICEDetector(fashion.head).fit(fashion.id_train)
    detector.calibrate(fashion.id_test[:1500], method="conformal", by="prediction")
    display = ScoreHistogramDisplay.from_estimator(detector, fashion.id_test, fashion.ood)
    assert display.threshold is None
    plt.close(display.figure_)


# A pipeline


def test_a_pipeline_is_calibrated_through_its_steps(fashion):
    # The scaler is undone by a head that expects scaled features, and so it matters.
    pipeline = make_pipeline(StandardScaler(), DICEDetector(fashion.head)).fit(fashion.id_train)
    found = skdice.calibrate(
        pipeline,
        fashion.id_test[:1500],
        0.1,
        method="conformal",
        confidence=0.9,
        by="prediction",
    )
    assert found is pipeline
    scaled = pipeline[0].transform(fashion.id_test[:1500])
    detector = DICEDetector(fashion.head).fit(pipeline[0].transform(fashion.id_train))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector.calibrate(scaled, 0.1, method="conformal", confidence=0.9, by="prediction")
    np.testing.assert_array_equal(pipeline[-1].class_offsets_, detector.class_offsets_)
    assert pipeline[-1].calibration_.confidence == 0.9


def test_a_pipeline_of_one_step_and_a_detector_alone(fashion):
    for estimator in (
        make_pipeline(DICEDetector(fashion.head)).fit(fashion.id_train),
        DICEDetector(fashion.head).fit(fashion.id_train),
    ):
        skdice.calibrate(estimator, fashion.id_test[:500], 0.2)
        assert (estimator.predict(fashion.id_test[:500]) == -1).mean() == pytest.approx(0.2)


def test_what_ends_in_no_detector_is_refused(fashion):
    for estimator, name in (
        (
            make_pipeline(StandardScaler(), IsolationForest()),
            "the last step of the pipeline is Iso",
        ),
        (IsolationForest(), "estimator is IsolationForest"),
    ):
        with pytest.raises(TypeError, match=f"{name}.* expected an outlier detector of skdice"):
            skdice.calibrate(estimator, fashion.id_test)
    unfitted = make_pipeline(FunctionTransformer(), DICEDetector(fashion.head))
    with pytest.raises(NotFittedError):
        skdice.calibrate(unfitted, fashion.id_test)


def test_scores_of_classes_by_hand():
    scores = ClassScores(np.array([1.0, 2.0, 3.0, 4.0]), np.array([2, 0, 2, 0]), 4)
    assert scores.counts.tolist() == [2, 0, 2, 0]
    assert [part.tolist() for part in scores.parts()] == [[2, 4], [], [1, 3], []]
    assert [part.tolist() for part in scores.references(np.array([1]))][1] == [1, 2, 3, 4]
    assert scores.fallback(0.4, None).tolist() == [1, 3]
    assert scores.offsets(9.0, 0.4, None).tolist() == [2, 9, 1, 9]


def test_the_law_of_a_class_is_the_beta_law(identity):
    # The share of future rows of a class below its threshold, given the number of its rows.
    rng = np.random.default_rng(3)
    shares = []
    for _ in range(800):
        rows, _ = drawn(rng, 100, shares=(0.5, 0.5, 0.0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # class 2 has no rows
            identity.calibrate(rows, 0.1, method="conformal", by="prediction")
        n = int((identity.calibration_classes_ == 0).sum())
        rank = conformal_rank(n, 0.1)
        shares.append(beta.cdf(-np.expm1(-identity.class_offsets_[0]), rank, n + 1 - rank))
    for level in (0.1, 0.5, 0.9):
        assert np.mean(np.array(shares) <= level) == pytest.approx(
            level, abs=3 * np.sqrt(level * (1 - level) / 800)
        )


def test_a_head_whose_classes_are_far_more_than_those_of_the_rows():
    rng = np.random.default_rng(0)
    head = LinearHead(rng.normal(size=(500, 8)))
    X = rng.normal(size=(300, 8))
    detector = DICEDetector(head, sparsity=0).fit(X)
    with pytest.warns(UserWarning, match="of 500 predicted classes have too few"):
        detector.calibrate(X, method="conformal", by="prediction")
    assert (detector.class_offsets_[detector.fallback_classes_] == detector.offset_).all()
