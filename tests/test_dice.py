import pickle
import sys
import threading
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pandas as pd
import pytest
from reference import dice_scores
from scipy.special import logsumexp
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skdice import DICEDetector, FeatureStatistics, LinearHead
from skdice.shaping import ASH, ReAct


@pytest.mark.parametrize("sparsity", [0, 0.1, 0.5, 0.7])
@pytest.mark.parametrize("clip", [np.inf, 0.8])
def test_scores_equal_the_papers_formula(small, sparsity, clip):
    head, X = small
    detector = DICEDetector(head, sparsity=sparsity, shaping=ReAct(threshold=clip)).fit(X)
    expected = dice_scores(head.weight, head.bias, X.mean(axis=0), X, 100 * sparsity, clip)
    np.testing.assert_allclose(detector.score_samples(X), expected, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:1 of 2 classes")
def test_fitted_by_hand():
    head = LinearHead([[1.0, -2.0], [3.0, 4.0]], [0.5, -0.5])
    detector = DICEDetector(head, sparsity=0.5).fit([[1.0, 2.0], [3.0, 0.0]])
    # Mean activation (2, 1); contributions 2, -2, 6, 4, whose median is 3.
    np.testing.assert_array_equal(detector.mean_activation_, [2, 1])
    assert detector.contribution_threshold_ == 3
    np.testing.assert_array_equal(detector.mask_, [[False, False], [True, True]])
    np.testing.assert_array_equal(detector.coef_, [[0, 0], [3, 4]])
    np.testing.assert_array_equal(detector.intercept_, [0.5, -0.5])
    np.testing.assert_array_equal(detector.logits([[1.0, 1.0]]), [[0.5, 6.5]])
    assert detector.n_samples_seen_ == 2
    assert isinstance(detector.offset_, float)


def test_signs_and_threshold(small):
    head, X = small
    detector = DICEDetector(head, contamination=0.1).fit(X)
    decision = detector.decision_function(X)
    np.testing.assert_array_equal(decision, detector.score_samples(X) - detector.offset_)
    np.testing.assert_array_equal(detector.predict(X), np.where(decision >= 0, 1, -1))
    assert (detector.predict(X) == -1).sum() == 20
    assert detector.predict(X).dtype.kind == "i"
    np.testing.assert_array_equal(clone(detector).fit_predict(X), detector.predict(X))


def test_identity_head_scores_logits(small):
    _, X = small
    detector = DICEDetector("identity", sparsity=0).fit(X)
    np.testing.assert_allclose(detector.score_samples(X), logsumexp(X, axis=1), rtol=1e-12)


def as_tensors(head):
    torch = pytest.importorskip("torch")
    return torch.tensor(head.weight), torch.tensor(head.bias)


@pytest.mark.parametrize(
    "form",
    [
        lambda head: (head.weight, head.bias),
        lambda head: (head.weight.tolist(), head.bias.tolist()),
        as_tensors,
    ],
    ids=["pair", "pair of lists", "pair of tensors"],
)
def test_a_pair_is_a_head(small, form):
    head, X = small
    expected = DICEDetector(head).fit(X)
    for method in ("fit", "partial_fit"):
        detector = getattr(DICEDetector(form(head)), method)(X)
        assert detector.head_ == head
        np.testing.assert_array_equal(detector.score_samples(X), expected.score_samples(X))
    with pytest.raises(ValueError, match=r"tuple of 3, expected \(weight, bias\)"):
        DICEDetector((1, 2, 3)).fit(X)


@pytest.mark.parametrize(
    "form", [lambda w: w, lambda w: w.tolist(), lambda w: (w, None)], ids=["array", "list", "pair"]
)
def test_a_weight_alone_has_no_bias(small, form):
    head, X = small
    expected = DICEDetector(LinearHead(head.weight)).fit(X)
    detector = clone(DICEDetector(form(head.weight))).fit(X)
    assert detector.head_ == LinearHead(head.weight)
    np.testing.assert_array_equal(detector.score_samples(X), expected.score_samples(X))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (None, "head is None, expected the classifier's last linear layer"),
        ("fc", "head is 'fc', expected the classifier's last linear layer"),
        (np.ones(12), "weight"),
        (np.ones((12, 5)), r"the head expects 5: .* transpose the weight"),
    ],
    ids=["None", "name", "vector", "transposed"],
)
def test_what_is_not_a_head_is_refused_at_fit(small, head, message):
    _, X = small
    if isinstance(head, np.ndarray) and head.ndim == 2:
        head = np.ones((X.shape[1], 5))
    detector = DICEDetector(head)
    for method in ("fit", "partial_fit"):
        with pytest.raises(ValueError, match=message):
            getattr(detector, method)(X)
    assert not hasattr(detector, "head_")


def test_the_head_is_required():
    with pytest.raises(TypeError, match="head"):
        DICEDetector()


@pytest.fixture
def contaminated(small):
    """Return the features with 50 outliers among them, whose scores are far lower, and labels."""
    head, X = small
    outliers = np.full((50, X.shape[1]), 3.0) * -np.sign(head.weight.mean(axis=0))
    order = np.random.default_rng(0).permutation(250)
    y = np.repeat([1, -1], [200, 50])[order]
    return head, np.concatenate([X, outliers])[order], y


@pytest.mark.parametrize("kind", [int, float, object])
def test_rows_labelled_minus_one_are_left_out(contaminated, kind):
    head, X, y = contaminated
    shaping = ReAct(quantile=0.5)
    fitted = DICEDetector(head, shaping=shaping, batch_size=32).fit(X, y.astype(kind))
    expected = DICEDetector(head, shaping=shaping).fit(X[y == 1])
    assert fitted.n_samples_seen_ == expected.n_samples_seen_ == 200
    np.testing.assert_allclose(fitted.mean_activation_, expected.mean_activation_, rtol=1e-12)
    assert fitted.shaping_.threshold_ == expected.shaping_.threshold_
    np.testing.assert_allclose(fitted.offset_, expected.offset_, rtol=1e-12)
    everything = DICEDetector(head, shaping=shaping).fit(X)
    assert everything.offset_ < expected.offset_ - 0.01


def test_bad_rows_among_labelled_ones_are_named_by_their_own_number(contaminated):
    head, X, y = contaminated
    row = np.flatnonzero(y == 1)[150]
    bad, huge = X.copy(), X.copy()
    bad[row, 2], huge[row] = np.nan, 1e300
    with pytest.raises(ValueError, match=f"NaN in row {row}, column 2"):
        DICEDetector(head).fit(bad, y)
    with pytest.raises(ValueError, match=f"score of row {row} is"):
        DICEDetector((head.weight * 1e10, None), sparsity=0).fit(huge, y)


def test_rows_labelled_minus_one_are_not_even_scored(contaminated):
    head, X, y = contaminated
    seen = []

    def score(logits):
        seen.append(len(logits))
        return logits.max(axis=1)

    DICEDetector(head, score_func=score).fit(X, y)
    assert sum(seen) == 200


def test_a_block_of_outliers_alone_adds_nothing(contaminated):
    head, X, y = contaminated
    order = np.argsort(y, kind="stable")
    parts = DICEDetector(head).partial_fit(X[order][:50], y[order][:50])
    with pytest.raises(NotFittedError):
        parts.score_samples(X)
    parts.partial_fit(X[order][50:], y[order][50:])
    whole = DICEDetector(head).fit(X, y)
    np.testing.assert_allclose(parts.mean_activation_, whole.mean_activation_, rtol=1e-12)


@pytest.mark.parametrize("y", [[0, 1, 2, 3] * 50, ["cat", "dog"] * 100, [1.0] * 200])
def test_other_labels_are_ignored(small, y):
    head, X = small
    assert DICEDetector(head).fit(X, y).offset_ == DICEDetector(head).fit(X).offset_


@pytest.mark.parametrize("shaping", [None, ReAct(threshold=0.7), ASH(quantile=0.5)])
def test_partial_fit_then_calibrate_equals_fit(small, shaping):
    head, X = small
    whole = DICEDetector(head, shaping=shaping).fit(X)
    parts = DICEDetector(head, shaping=shaping)
    for block in np.array_split(X, [3, 4, 90]):
        parts.partial_fit(block)
    np.testing.assert_allclose(parts.mean_activation_, whole.mean_activation_, rtol=1e-12)
    np.testing.assert_array_equal(parts.mask_, whole.mask_)
    np.testing.assert_array_equal(parts.score_samples(X), whole.score_samples(X))
    assert parts.n_samples_seen_ == len(X)
    assert parts.calibrate(X).offset_ == whole.offset_


def test_a_precomputed_mean_is_enough(small):
    head, X = small
    detector = DICEDetector(head).partial_fit(X.mean(axis=0, keepdims=True))
    np.testing.assert_array_equal(detector.mask_, DICEDetector(head).fit(X).mask_)


def test_predict_after_partial_fit_says_to_calibrate(small):
    head, X = small
    detector = DICEDetector(head).partial_fit(X)
    for method in (detector.predict, detector.decision_function):
        with pytest.raises(NotFittedError, match="call calibrate with held-out"):
            method(X)
    # The threshold of an earlier call belongs to an earlier mask, so it is removed.
    detector.calibrate(X).partial_fit(X[:5])
    assert not hasattr(detector, "offset_")


def test_partial_fit_refuses_a_shaping_that_needs_all_rows(small):
    head, X = small
    assert not hasattr(DICEDetector(head, shaping=ReAct()), "partial_fit")
    with pytest.raises(AttributeError) as raised:
        DICEDetector(head, shaping=ReAct()).partial_fit(X)
    assert "partial_fit cannot fit ReAct()" in str(raised.value.__cause__)
    # For scikit-learn a pipeline is fitted if its last step is.
    pipeline = make_pipeline(ReAct(), ASH(quantile=0.5))
    assert not hasattr(DICEDetector(head, shaping=pipeline), "partial_fit")
    frozen = DICEDetector(head, shaping=FrozenEstimator(ReAct(quantile=0.5).fit(X)))
    expected = DICEDetector(head, shaping=ReAct(quantile=0.5)).fit(X)
    frozen.partial_fit(X[:50]).partial_fit(X[50:])
    np.testing.assert_allclose(frozen.score_samples(X), expected.score_samples(X), rtol=1e-12)


def test_a_refused_block_leaves_the_detector_as_it_was(small):
    head, X = small
    detector = DICEDetector(head, batch_size=2).partial_fit(X)
    before = pickle.dumps(detector)
    bad = X[:7].copy()
    bad[6, 1] = np.nan
    with pytest.raises(ValueError, match="row 6, column 1"):
        detector.partial_fit(bad)
    assert pickle.dumps(detector) == before


@pytest.mark.parametrize(
    "spoil",
    [
        lambda detector, X: detector.fit(X[:, :7]),
        lambda detector, X: detector.fit(np.where(X.max() == X, np.nan, X)),
        lambda detector, X: detector.set_params(score_func=lambda z: z[:, 0] / 0.0).fit(X / 2),
        lambda detector, X: detector.partial_fit(X[:, :7]),
        lambda detector, X: detector.calibrate(X + np.inf),
    ],
    ids=["width", "nan", "score", "partial width", "calibrate"],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_failed_refit_leaves_the_detector_as_it_was(small, spoil):
    head, X = small
    detector = DICEDetector(head).fit(X + 1)
    parameters, expected = detector.get_params(), detector.decision_function(X)
    with pytest.raises(ValueError, match=r".+"):
        spoil(detector, X)
    np.testing.assert_array_equal(detector.set_params(**parameters).decision_function(X), expected)


def test_a_failed_first_fit_leaves_nothing(small):
    head, X = small
    for method in ("fit", "partial_fit"):
        detector = DICEDetector(head)
        before = set(vars(detector))
        with pytest.raises(ValueError, match="head expects 12"):
            getattr(detector, method)(X[:, :7])
        assert set(vars(detector)) == before


def test_partial_fit_follows_a_changed_shaping(small):
    head, X = small
    detector = DICEDetector(head).partial_fit(X)
    detector.set_params(shaping=ReAct(threshold=0.01)).partial_fit(X)
    expected = DICEDetector(head, shaping=ReAct(threshold=0.01)).fit(X)
    np.testing.assert_allclose(detector.score_samples(X), expected.score_samples(X), rtol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "scored"),
    [
        ("float16", "float32"),
        ("float32", "float32"),
        (">f4", "float32"),
        ("float64", "float64"),
        ("int32", "float64"),
        ("bool", "float64"),
    ],
)
def test_scoring_dtype_follows_the_features(small, dtype, scored):
    head, X = small
    features = (3 * X).astype(dtype)
    detector = DICEDetector(head, sparsity=0.3, shaping=ReAct(threshold=2)).fit(features)
    for result in (
        detector.score_samples(features),
        detector.decision_function(features),
        detector.logits(features),
    ):
        assert result.dtype == scored
    expected = dice_scores(
        head.weight, head.bias, features.mean(axis=0, dtype=float), features, 30, 2
    )
    tolerance = 1e-5 if scored == "float32" else 1e-12
    np.testing.assert_allclose(detector.score_samples(features), expected, rtol=tolerance)
    assert isinstance(detector.offset_, float)


def test_a_layer_in_place_of_a_head_is_refused(small):
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"got Linear; .*from_torch"):
        DICEDetector(torch.nn.Linear(12, 5)).fit(small[1])


def test_data_frames_keep_their_column_names(small):
    head, X = small
    frame = pd.DataFrame(X, columns=[f"unit{i}" for i in range(X.shape[1])])
    detector = DICEDetector(head).fit(frame)
    assert list(detector.feature_names_in_) == list(frame.columns)
    np.testing.assert_array_equal(
        detector.score_samples(frame), DICEDetector(head).fit(X).score_samples(X)
    )
    with pytest.raises(ValueError, match="feature names should match"):
        detector.score_samples(frame[frame.columns[::-1]])


def test_a_labelled_memmap_is_not_copied_as_a_whole(tmp_path):
    X = np.abs(np.random.default_rng(0).normal(size=(160_000, 256))).astype(np.float32)
    np.save(tmp_path / "features.npy", X)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    y = np.where(np.arange(len(X)) % 1000 == 3, -1, 1)
    detector = DICEDetector(LinearHead(np.eye(4, 256)), sparsity=0, shaping=ReAct())
    tracemalloc.start()
    detector.fit(mapped, y).predict(mapped)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The features take 164 MB. A few blocks of 8 MB and the counts of a quantile are allowed.
    assert peak < 80e6
    assert detector.shaping_.threshold_ == np.quantile(X[y == 1].ravel(), 0.99)


def test_a_memmap_is_scored_in_blocks(small, tmp_path):
    head, X = small
    path = tmp_path / "features.npy"
    np.save(path, X)
    mapped = np.load(path, mmap_mode="r")
    seen = []

    def score(logits):
        seen.append(len(logits))
        return logits.max(axis=1)

    detector = DICEDetector(head, score_func=score, batch_size=64).fit(mapped)
    assert seen == [64, 64, 64, 8]
    np.testing.assert_array_equal(detector.score_samples(mapped), detector.score_samples(X))


@pytest.mark.parametrize("score_func", ["energy", "max_logit", "msp", "gen"])
def test_named_scores_and_callables_agree(small, score_func):
    from skdice._scores import SCORES

    head, X = small
    named = DICEDetector(head, score_func=score_func).fit(X)
    given = DICEDetector(head, score_func=SCORES[score_func]).fit(X)
    np.testing.assert_array_equal(named.score_samples(X), given.score_samples(X))


def test_any_transformer_that_keeps_the_shape_is_a_shaping(small):
    head, X = small
    halved = DICEDetector(head, sparsity=0, shaping=FunctionTransformer(np.sqrt)).fit(X)
    expected = DICEDetector(head, sparsity=0).fit(X).score_samples(np.sqrt(X))
    np.testing.assert_allclose(halved.score_samples(X), expected, rtol=1e-12)
    with pytest.raises(ValueError, match=r"turned features of shape \(200, 12\) into \(200, 2\)"):
        DICEDetector(head, shaping=FunctionTransformer(lambda h: h[:, :2])).fit(X)


def test_a_global_output_configuration_does_not_reach_inside(small):
    head, X = small
    detector = DICEDetector(head, shaping=ReAct()).fit(X)
    with config_context(transform_output="pandas"):
        np.testing.assert_array_equal(
            detector.score_samples(X),
            DICEDetector(head, shaping=ReAct()).fit(X).score_samples(X),
        )
        assert isinstance(detector.score_samples(X), np.ndarray)


def test_contribution_is_measured_on_the_raw_features(small):
    head, X = small
    clipped = DICEDetector(head, shaping=ReAct(threshold=0.01)).fit(X)
    np.testing.assert_array_equal(clipped.mask_, DICEDetector(head).fit(X).mask_)


@pytest.mark.parametrize("n_jobs", [1, 2, 3])
def test_threads_change_nothing(small, n_jobs):
    head, X = small
    one = DICEDetector(head, batch_size=17).fit(X)
    many = DICEDetector(head, batch_size=17, n_jobs=n_jobs).fit(X)
    np.testing.assert_array_equal(many.score_samples(X), one.score_samples(X))
    np.testing.assert_array_equal(many.logits(X), one.logits(X))


@pytest.mark.parametrize("n_jobs", [1, 4])
def test_the_first_bad_row_is_named_whatever_the_threads(small, n_jobs):
    head, X = small
    detector = DICEDetector(head, batch_size=10, n_jobs=n_jobs).fit(X)
    bad = X.copy()
    bad[[57, 58, 190], 3] = np.nan
    bad[57, 2] = np.inf
    with pytest.raises(ValueError, match=r"infinity \(inf\) in row 57, column 2"):
        detector.score_samples(bad)


def test_scoring_from_many_threads_leaves_the_estimator_alone(small):
    head, X = small
    detector = DICEDetector(head, shaping=ReAct()).fit(X)
    before = pickle.dumps(detector)
    expected = detector.score_samples(X)
    results = [None] * 8

    def work(i):
        results[i] = detector.score_samples(X)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        np.testing.assert_array_equal(result, expected)
    assert pickle.dumps(detector) == before


@pytest.mark.parametrize("kind", ["rows", "statistics"])
def test_partial_fit_from_many_threads_loses_no_row(kind):
    rng = np.random.default_rng(0)
    # Whole numbers, and as many rows as a power of two: the sum and the mean are exact.
    X = rng.integers(-1000, 1000, size=(2048, 3)).astype(float)
    blocks = np.split(X, 256)
    if kind == "statistics":
        blocks = [FeatureStatistics().add(block) for block in blocks]
    detector = DICEDetector("identity", sparsity=0)
    together = threading.Barrier(8)

    def work(i):
        together.wait(10)
        for block in blocks[i::8]:
            detector.partial_fit(block)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
    finally:
        sys.setswitchinterval(interval)
    assert detector.n_samples_seen_ == 2048
    np.testing.assert_array_equal(detector.mean_activation_ * 2048, X.sum(axis=0))


def test_verbose_shows_progress_on_stderr(small, capsys):
    head, X = small
    DICEDetector(head, verbose=1).fit(X)
    assert "200/200" in capsys.readouterr().err
    DICEDetector(head, verbose=1, shaping=ReAct(quantile=0.5), batch_size=50).fit(X)
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("mean activation", "quantile", "scores"))
    DICEDetector(head).fit(X)
    assert capsys.readouterr() == ("", "")


def test_pickle_and_joblib_keep_every_bit(small, tmp_path):
    head, X = small
    detector = DICEDetector(head, shaping=ReAct()).fit(X)
    path = tmp_path / "detector.joblib"
    joblib.dump(detector, path)
    for copy in (
        pickle.loads(pickle.dumps(detector)),
        joblib.load(path),
        joblib.load(path, mmap_mode="r"),
    ):
        np.testing.assert_array_equal(copy.decision_function(X), detector.decision_function(X))
        assert copy.head == head
    assert isinstance(joblib.load(path, mmap_mode="r").head.weight, np.memmap)


def test_a_class_without_any_weight_is_a_warning():
    head = LinearHead([[1.0, 2.0], [3.0, 4.0], [-1.0, -1.0]])
    X = [[1.0, 1.0], [2.0, 1.0]]
    with pytest.warns(UserWarning, match=r"1 of 3 classes .* sparsity=0.4 .*class 2"):
        DICEDetector(head, sparsity=0.4).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DICEDetector(head, sparsity=0.1).fit(X)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"head": None}, ValueError, r"LinearHead\.from_torch\(model\.fc\)"),
        ({"head": "logits"}, ValueError, "head is 'logits', expected"),
        ({"head": [[1.0]]}, ValueError, r"X has 12 features, but the head expects 1"),
        ({"contamination": 5}, ValueError, r"did you mean 0\.05\?"),
        ({"sparsity": 90}, ValueError, r"Got 90 instead.*did you mean 0\.9\?"),
        ({"sparsity": 1.5}, ValueError, r"Got 1\.5 instead"),
        ({"sparsity": -0.1}, ValueError, r"Got -0\.1 instead"),
        ({"sparsity": 1}, ValueError, r"Got 1 instead"),
        ({"sparsity": float("nan")}, ValueError, "Got nan instead"),
        ({"sparsity": "0.9"}, ValueError, r"Got '0\.9' instead"),
        ({"contamination": 0}, ValueError, "Got 0 instead"),
        ({"contamination": 0.6}, ValueError, r"Got 0\.6 instead"),
        ({"contamination": float("nan")}, ValueError, "Got nan instead"),
        ({"score_func": "softmax"}, ValueError, "Got 'softmax' instead"),
        ({"shaping": "react"}, ValueError, "Got 'react' instead"),
        ({"batch_size": 0}, ValueError, "Got 0 instead"),
        ({"score_func": lambda logits: logits}, ValueError, r"returned shape \(200, 5\)"),
        ({"score_func": lambda logits: logits[:, 0] * np.nan}, ValueError, "score of row 0 is nan"),
    ],
)
def test_bad_parameters_are_named_at_fit(small, parameters, error, message):
    head, X = small
    with pytest.raises(error, match=message):
        DICEDetector(**{"head": head} | parameters).fit(X)


def _with(X, row, column, value):
    X = X.copy()
    X[row, column] = value
    return X


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: _with(X, 17, 3, np.nan), "NaN in row 17, column 3"),
        (lambda X: _with(X, 199, 0, -np.inf), r"infinity \(-inf\) in row 199, column 0"),
        (lambda X: X[:0], "0 sample"),
        (lambda X: X[:, :0], "0 feature"),
        (lambda X: X[0], "Expected 2D array, got 1D array"),
        (lambda X: X[:, :7], "X has 7 features, but the head expects 12"),
        (lambda X: [["a"] * 12], "strings"),
    ],
)
def test_bad_features_are_named_at_fit(small, change, message):
    head, X = small
    for method in ("fit", "partial_fit"):
        with pytest.raises(ValueError, match=message):
            getattr(DICEDetector(head), method)(change(X))


def test_only_outliers_is_an_error_that_says_why(small):
    head, X = small
    with pytest.raises(ValueError, match="all 200 rows are labelled -1"):
        DICEDetector(head).fit(X, -np.ones(len(X)))


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_logits_beyond_the_dtype_are_an_error(small, n_jobs):
    head, X = small
    detector = DICEDetector(head, n_jobs=n_jobs, batch_size=9).fit(X.astype(np.float32))
    huge = _with(X, 100, slice(None), 3e38).astype(np.float32)
    with pytest.raises(ValueError, match=r"score of row 100 .*too large for float32"):
        detector.score_samples(huge)
    with pytest.raises(ValueError, match=r"logits of row 100 "):
        detector.logits(huge)


def test_a_mean_beyond_float64_is_an_error():
    with pytest.raises(ValueError, match="mean activation of feature 1 is"):
        DICEDetector((np.full((2, 2), 1e-300), None), sparsity=0).fit([[1.0, 1.5e308]] * 3)


@pytest.mark.parametrize(
    "method", ["calibrate", "logits", "score_samples", "decision_function", "predict"]
)
def test_methods_before_fit(small, method):
    head, X = small
    with pytest.raises(NotFittedError):
        getattr(DICEDetector(head), method)(X)


def test_rows_that_need_no_conversion_are_checked_no_less(fashion):
    """A floating-point ndarray is spared scikit-learn's validation, not what that finds."""
    detector = DICEDetector(fashion.head, sparsity=0.1).fit(fashion.id_train)
    row = fashion.id_test[:1].astype(np.float32)
    assert detector.score_samples(row) == pytest.approx(detector.score_samples(row.tolist()))
    with pytest.raises(ValueError, match="X has 127 features, but DICEDetector is expecting 128"):
        detector.predict(row[:, 1:])
    with pytest.raises(ValueError, match="Found array with 0 sample"):
        detector.predict(row[:0])
    with pytest.raises(ValueError, match="Expected 2D array, got 1D array"):
        detector.predict(row[0])
    row[0, 3] = np.nan
    with pytest.raises(ValueError, match="contains NaN in row 0, column 3"):
        detector.predict(row)
    named = DICEDetector(fashion.head).fit(pd.DataFrame(fashion.id_train).add_prefix("unit"))
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        named.predict(fashion.id_test[:1])
