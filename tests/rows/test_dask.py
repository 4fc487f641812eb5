"""Dask collections under the threaded scheduler; see test_dask_cluster.py for real workers."""

import sys

import numpy as np
import pytest
from joblib import parallel_config

from skdice import (
    DICEDetector,
    DICEDetectorCV,
    FeatureStatistics,
    LinearHead,
    sparsity_path,
)
from skdice.io import save_scores
from skdice.metrics import evaluate
from skdice.shaping import ASH, VRA, ReAct, Scale

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
dd = pytest.importorskip("dask.dataframe")
pd = pytest.importorskip("pandas")

SHAPINGS = [None, ReAct(0.8), VRA(), ASH(0.5), Scale()]
CHUNKS = {
    "one": (1000, 12),
    "even": (100, 12),
    "uneven, columns split": ((0, 1, 399, 600), (5, 7)),
    "empty ones": ((0, 0, 500, 0, 500, 0), 12),
}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    head = LinearHead(rng.normal(size=(5, 12)), rng.normal(size=5))
    X = np.maximum(rng.normal(size=(1000, 12)) * 10.0 ** rng.integers(-2, 3, 12), 0)
    return head, X, np.where(rng.random(1000) < 0.1, -1, 4)


@pytest.fixture(autouse=True)
def no_matrix_on_the_client(monkeypatch):
    """No Dask array is turned into NumPy's behind the user's back."""

    def refuse(*_, **__):
        raise AssertionError("a Dask array was pulled into the memory of the client")

    monkeypatch.setattr(da.Array, "__array__", refuse)


def unknown(X, n_chunks=3):
    """Return a Dask array whose chunk sizes are not known."""
    array = da.from_array(X, chunks=(len(X) // n_chunks, *X.shape[1:]))
    array._chunks = ((np.nan,) * array.numblocks[0], *array.chunks[1:])
    return array


def assert_same(detector, expected, X, array):
    np.testing.assert_allclose(
        detector.mean_activation_, expected.mean_activation_, rtol=1e-12, atol=0
    )
    np.testing.assert_array_equal(detector.mask_, expected.mask_)
    assert detector.n_samples_seen_ == expected.n_samples_seen_
    double = X.dtype not in (np.float16, np.float32)
    tolerance = {"rtol": 1e-12 if double else 1e-5, "atol": 1e-12 if double else 1e-5}
    np.testing.assert_allclose(detector.offset_, expected.offset_, **tolerance)
    for method in ("score_samples", "decision_function", "logits", "predict"):
        lazy, whole = getattr(detector, method)(array), getattr(expected, method)(X)
        assert isinstance(lazy, da.Array)
        assert lazy.chunks[0] == array.chunks[0] or np.isnan(array.shape[0])
        assert lazy.dtype == whole.dtype == lazy._meta.dtype
        assert lazy.ndim == whole.ndim == lazy._meta.ndim
        computed = lazy.compute()
        assert computed.dtype == whole.dtype
        if method == "predict":
            clear = np.abs(expected.decision_function(X)) > 1e-4
            np.testing.assert_array_equal(computed[clear], whole[clear])
        else:
            np.testing.assert_allclose(computed, whole, **tolerance)


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("shaping", SHAPINGS, ids=repr)
def test_everything_equals_the_result_in_memory(data, chunks, shaping):
    head, X, y = data
    expected = DICEDetector(head, shaping=shaping).fit(X, y)
    array = da.from_array(X, chunks=chunks)
    detector = DICEDetector(head, shaping=shaping).fit(array, y)
    assert_same(detector, expected, X, array)
    if shaping is not None and shaping.__sklearn_tags__().requires_fit:
        assert vars(detector.shaping_) == vars(expected.shaping_)  # to the last bit
    assert_same(detector.calibrate(array, 0.2), expected.calibrate(X, 0.2), X, array)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int16, np.uint8, np.bool_, ">f4"])
def test_every_dtype(data, dtype):
    head, X, _ = data
    X = X.clip(0, 250).astype(dtype)
    expected = DICEDetector(head, shaping=ReAct(0.7)).fit(X)
    array = da.from_array(X, chunks=(170, 12))
    assert_same(DICEDetector(head, shaping=ReAct(0.7)).fit(array), expected, X, array)


@pytest.mark.parametrize("score_func", ["max_logit", "msp", "gen", lambda logits: logits[:, 0]])
def test_every_score(data, score_func):
    head, X, _ = data
    expected = DICEDetector(head, score_func=score_func, batch_size=64).fit(X)
    array = da.from_array(X, chunks=(170, 12))
    detector = DICEDetector(head, score_func=score_func, batch_size=64).fit(array)
    assert_same(detector, expected, X, array)


def test_unknown_chunk_sizes(data):
    head, X, y = data
    expected = DICEDetector(head, shaping=ReAct(0.8)).fit(X, y)
    array = unknown(X)
    detector = DICEDetector(head, shaping=ReAct(0.8)).fit(array, unknown(y))
    assert_same(detector, expected, X, array)
    with pytest.raises(ValueError, match=r"call X.compute_chunk_sizes\(\) first"):
        DICEDetector(head).fit(array, y)
    with pytest.raises(ValueError, match="y has 5 chunks, but X has 4"):
        DICEDetector(head).fit(array, unknown(y, 5))
    with pytest.raises(ValueError, match=r"chunk of y has \d+ labels for \d+ rows"):
        DICEDetector(head).fit(array, unknown(np.concatenate([y[1:], y[:1]] * 2)[: len(y) - 2]))


@pytest.mark.parametrize(("declared", "actual"), [("f8", "f4"), ("f4", "f8"), ("f4", "u1")])
def test_chunks_of_another_dtype_than_was_declared(data, declared, actual):
    head, X, _ = data
    X = X.clip(0, 250).astype(actual)
    # map_blocks(function, dtype=float) declares float64 even if the function returns float32.
    array = da.from_array(X, chunks=(170, 12)).map_blocks(
        lambda block: block, dtype=declared, meta=np.empty((0, 0), declared)
    )
    X = X.astype(declared)
    expected = DICEDetector(head, shaping=ReAct(0.7)).fit(X)
    assert_same(DICEDetector(head, shaping=ReAct(0.7)).fit(array), expected, X, array)


def test_a_collection_that_turns_out_to_be_empty_is_refused(data):
    head, X, _ = data
    empty = unknown(X)[unknown(X)[:, 0] < 0]
    detector = DICEDetector(head).fit(X)
    before = detector.offset_
    for use in (DICEDetector(head).fit, detector.calibrate, ReAct().fit):
        with pytest.raises(ValueError, match=r"Found array with 0 sample\(s\)"):
            use(empty)
    assert detector.offset_ == before
    with pytest.raises(ValueError, match=r"^all rows are labelled -1"):
        DICEDetector(head).fit(unknown(X), unknown(np.full(len(X), -1)))


@pytest.mark.slow
def test_thousands_of_chunks_of_one_row(data):
    head, X, _ = data
    expected = DICEDetector(head, shaping=ReAct(0.8)).fit(X)
    array = da.from_array(X, chunks=(1, 12))
    detector = DICEDetector(head, shaping=ReAct(0.8)).fit(array)
    np.testing.assert_allclose(detector.mean_activation_, expected.mean_activation_, rtol=1e-12)
    assert detector.offset_ == pytest.approx(expected.offset_, rel=1e-12)


def test_the_threshold_flags_exactly_the_share(data):
    head, X, _ = data
    array = da.from_array(X.astype(np.float32), chunks=(130, 12))
    for share in (0.05, 0.29, 0.5, 1e-9):
        detector = DICEDetector(head, contamination=share).fit(array)
        scores = detector.score_samples(array).compute()
        assert detector.offset_ == np.sort(scores)[int(round(share * len(X), 6))]


@pytest.mark.parametrize("kind", ["array", "dask", "other chunks", "series"])
def test_labels_of_every_kind(data, kind):
    head, X, y = data
    labels = {
        "array": y,
        "dask": da.from_array(y, chunks=300),
        "other chunks": da.from_array(y, chunks=77),
        "series": dd.from_pandas(pd.Series(y), npartitions=4).to_dask_array(lengths=True),
    }[kind]
    detector = DICEDetector(head).fit(da.from_array(X, chunks=(300, 12)), labels)
    np.testing.assert_allclose(detector.mean_activation_, X[y != -1].mean(axis=0), rtol=1e-12)
    assert detector.n_samples_seen_ == (y != -1).sum()


def test_labels_that_do_not_fit_are_refused_before_anything_is_computed(data):
    head, X, y = data
    array = da.from_array(X, chunks=(300, 12)).map_blocks(fail, dtype=X.dtype, meta=X[:0])
    for labels in (y[:10], da.from_array(y[:10]), np.full(10, "cat")):
        with pytest.raises(ValueError, match="y has 10 labels, but X has 1000 rows"):
            DICEDetector(head).fit(array, labels)
    with pytest.raises(ValueError, match=r"y has shape \(1000, 1\)"):
        DICEDetector(head).fit(array, y[:, None])
    # Labels of type string mark no outliers.
    strings = DICEDetector(head).partial_fit(da.from_array(X), np.full(1000, "cat"))
    assert strings.n_samples_seen_ == 1000
    with pytest.raises(ValueError, match="all 1000 rows are labelled -1"):
        DICEDetector(head).fit(da.from_array(X), np.full(1000, -1))


def fail(block):
    raise AssertionError("computed")


def test_scoring_is_lazy_and_its_keys_are_deterministic(data):
    head, X, _ = data
    array = da.from_array(X, chunks=(300, 12), name="features")
    never = array.map_blocks(fail, dtype=X.dtype, meta=X[:0])
    detector = DICEDetector(head).fit(X)
    for method in ("score_samples", "decision_function", "predict", "logits"):
        lazy = getattr(detector, method)(never)
        assert lazy.shape[0] == 1000
        assert lazy.name == getattr(detector, method)(never).name
    assert detector.score_samples(array).name == DICEDetector(head).fit(X).score_samples(array).name


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (da.zeros((10, 3)), "X has 3 features, but DICEDetector is expecting 12"),
        (da.zeros(10), r"X has shape \(10,\), expected"),
        (da.zeros((0, 12)), r"Found array with 0 sample\(s\)"),
        (da.zeros((10, 0)), r"Found array with 0 feature\(s\)"),
        (da.zeros((10, 12), dtype=complex), "dtype complex128, expected real numbers"),
        (da.zeros((10, 12), dtype=object, chunks=5), "dtype object, expected real numbers"),
    ],
)
def test_bad_shapes_and_dtypes_are_refused_at_the_call(data, X, message):
    head, rows, _ = data
    detector = DICEDetector(head).fit(rows)
    with pytest.raises(ValueError, match=message):
        detector.score_samples(X)


def test_a_series_and_sparse_chunks_are_refused(data):
    head, rows, _ = data
    detector = DICEDetector(head).fit(rows)
    with pytest.raises(ValueError, match="expected"):
        detector.predict(dd.from_pandas(pd.Series([1.0, 2.0]), npartitions=1))
    with pytest.raises(TypeError, match=r"X is a Delayed.*, expected a Dask array or DataFrame"):
        detector.predict(dask.delayed(rows))
    import scipy.sparse

    sparse = da.zeros((10, 12)).map_blocks(scipy.sparse.csr_matrix)
    with pytest.raises(TypeError, match="expected NumPy arrays"):
        detector.predict(sparse)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_value_is_named_by_its_row_in_the_whole(data, bad):
    head, X, y = data
    detector = DICEDetector(head).fit(X)
    X, y = X.copy(), y.copy()
    X[777, 3], y[777] = bad, 1
    array = da.from_array(X, chunks=(250, 12))
    message = r"Input X contains (NaN|infinity).* in row 777, column 3"
    with pytest.raises(ValueError, match=message):
        DICEDetector(head).fit(array)
    with pytest.raises(ValueError, match=message):
        DICEDetector(head).fit(array, y)
    lazy = detector.score_samples(array)
    with pytest.raises(ValueError, match=message):
        lazy.compute()
    with pytest.raises(ValueError, match="in row 27 of chunk 3, column 3"):
        detector.score_samples(unknown(X, 4)).compute()
    # A bad row that is left out does not matter.
    y[777] = -1
    assert DICEDetector(head).partial_fit(array, y).n_samples_seen_ == (y != -1).sum()


def test_a_failed_fit_leaves_the_detector_as_it_was(data):
    head, X, _ = data
    detector = DICEDetector(head).fit(X)
    before = detector.offset_
    bad = X.copy()
    bad[5, 5] = np.nan
    with pytest.raises(ValueError, match="NaN in row 5"):
        detector.fit(da.from_array(bad))
    assert detector.offset_ == before


def test_data_frames_keep_their_column_names(data):
    head, X, y = data
    frame = pd.DataFrame(X, columns=[f"unit{n}" for n in range(12)])
    lazy = dd.from_pandas(frame, npartitions=3)
    expected = DICEDetector(head).fit(frame, y)
    detector = DICEDetector(head).fit(lazy, dd.from_pandas(pd.Series(y), npartitions=3))
    assert list(detector.feature_names_in_) == list(frame.columns)
    assert detector.offset_ == pytest.approx(expected.offset_, rel=1e-12)
    assert repr(FeatureStatistics().add(lazy)) == "FeatureStatistics(n_samples=1000, n_features=12)"
    scores = detector.score_samples(lazy)
    np.testing.assert_allclose(scores.compute(), expected.score_samples(frame), rtol=1e-12)
    with pytest.raises(ValueError, match="feature names should match"):
        detector.score_samples(lazy[list(frame.columns[::-1])])
    with pytest.raises(ValueError, match="feature names should match"):
        detector.score_samples(lazy[["unit0"]])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        detector.score_samples(da.from_array(X))


def test_partial_fit_and_fit_predict(data):
    head, X, y = data
    first, second = (da.from_array(each, chunks=(99, 12)) for each in np.split(X, [300]))
    detector = DICEDetector(head).partial_fit(first).partial_fit(second)
    np.testing.assert_allclose(detector.mean_activation_, X.mean(axis=0), rtol=1e-12)
    array = da.from_array(X, chunks=(99, 12))
    labels = DICEDetector(head).fit_predict(array, y)
    np.testing.assert_array_equal(labels.compute(), DICEDetector(head).fit_predict(X, y))


def test_scores_are_saved_in_order_without_the_whole_on_the_client(data, tmp_path, monkeypatch):
    head, X, _ = data
    detector = DICEDetector(head).fit(X)
    monkeypatch.setattr("skdice._rows.dask.GROUP_BYTES", 200 * 8)
    for array in (da.from_array(X, chunks=(70, 12)), unknown(X, 6)):
        assert save_scores(tmp_path / "scores.npy", detector, array) == 1000
        found = np.load(tmp_path / "scores.npy")
        np.testing.assert_allclose(found, detector.score_samples(X), rtol=1e-12)
        assert save_scores(tmp_path / "scores.parquet", detector, array) == 1000
        table = pd.read_parquet(tmp_path / "scores.parquet")
        np.testing.assert_allclose(table["score"], found, rtol=1e-12)


def test_evaluation_takes_dask_collections(data):
    head, X, _ = data
    detector = DICEDetector(head).fit(X)
    report = evaluate(detector, da.from_array(X, chunks=(99, 12)), {"other": unknown(X + 1)})
    assert repr(report) == repr(evaluate(detector, X, {"other": X + 1}))


@pytest.mark.parametrize("sizes", ["known", "unknown"])
def test_what_needs_rows_in_memory_says_so(data, sizes):
    head, X, y = data
    array = da.from_array(X, chunks=(99, 12)) if sizes == "known" else unknown(X)
    message = "stay on its workers.*X\\[:10000\\].compute\\(\\)"
    with pytest.raises(TypeError, match=message):
        DICEDetectorCV(head).fit(array, y)
    with pytest.raises(TypeError, match=message):
        DICEDetectorCV(head).fit(X, outliers=array)
    with pytest.raises(TypeError, match=message):
        sparsity_path(head, X, array, [0, 0.5])
    with pytest.raises(TypeError, match=message):
        LinearHead.from_class_means(array, y)


def test_shapings_transform_dask_collections_lazily(data):
    _, X, _ = data
    shaped = ReAct(0.3).fit(X).transform(da.from_array(X, chunks=(99, 12)))
    assert isinstance(shaped, da.Array)
    np.testing.assert_array_equal(shaped.compute(), np.minimum(X, np.quantile(X, 0.3)))


def test_a_search_fitted_in_memory_scores_dask_collections(data):
    head, X, y = data
    search = DICEDetectorCV(head, sparsities=[0, 0.5], cv=2).fit(X, y)
    scores = search.score_samples(da.from_array(X, chunks=(99, 12)))
    np.testing.assert_allclose(scores.compute(), search.score_samples(X), rtol=1e-12)


def test_shapings_learn_from_dask_collections(data):
    _, X, _ = data
    array = da.from_array(X, chunks=(99, 12))
    assert ReAct(0.3).fit(array).threshold_ == np.quantile(X, 0.3)


def test_a_shaping_of_another_library_is_not_given_what_it_would_pull(data):
    from sklearn.preprocessing import MinMaxScaler

    head, X, _ = data
    with pytest.raises((TypeError, ValueError)):
        DICEDetector(head, shaping=MinMaxScaler()).fit(da.from_array(X, chunks=(99, 12)))


def test_a_task_takes_one_thread(data, monkeypatch):
    head, X, _ = data
    found = []
    monkeypatch.setattr(
        "skdice._rows.sources.ThreadPoolExecutor", lambda *arguments: found.append(arguments)
    )
    array = da.from_array(X, chunks=(500, 12))
    detector = DICEDetector(head, batch_size=64, n_jobs=4, shaping=ReAct(0.5))
    with parallel_config(backend="threading", n_jobs=3):
        detector.fit(array).predict(array).compute()
    assert found == []


def test_dask_is_not_imported_for_other_rows():
    import subprocess

    program = (
        "import sys, numpy as np, skdice;"
        "skdice.DICEDetector('identity', sparsity=0).fit(np.ones((9, 2))).predict(np.ones((9, 2)));"
        "print([name for name in sys.modules if name.partition('.')[0] == 'distributed'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
