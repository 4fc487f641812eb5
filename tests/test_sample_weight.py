"""Weights of the rows: in the mean activation, the quantiles of a shaping, and the threshold."""

import numpy as np
import pytest
from sklearn import config_context
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.pipeline import make_pipeline

from skdice import DICEDetector, FeatureStatistics
from skdice.io import open_features, save_features
from skdice.shaping import ASH, VRA, ReAct


@pytest.fixture(scope="module")
def weights():
    """Integer weights from 0 to 3 for the 200 rows of `small`."""
    return np.random.default_rng(3).integers(0, 4, 200)


def in_memory(X, folder):
    return X


def in_a_file(X, folder):
    return open_features(save_features(folder / "X.npz", X) or folder / "X.npz")


def mapped(X, folder):
    np.save(folder / "X.npy", X)
    return np.load(folder / "X.npy", mmap_mode="r")


def as_tensor(X, folder):
    return pytest.importorskip("torch").from_numpy(X)


def as_dask(X, folder):
    return pytest.importorskip("dask.array").from_array(X, chunks=(33, 5))


SOURCES = [in_memory, in_a_file, mapped, as_tensor, as_dask]


def assert_same_fit(detector, expected):
    np.testing.assert_allclose(detector.mean_activation_, expected.mean_activation_, rtol=1e-12)
    np.testing.assert_array_equal(detector.mask_, expected.mask_)
    np.testing.assert_allclose(detector.offset_, expected.offset_, rtol=1e-12)


@pytest.mark.parametrize(("contamination", "offset"), [(0.2, 1), (0.25, 3), (0.5, 3)])
def test_mean_and_threshold_by_hand(contamination, offset):
    # One logit, so that the score of a row is its feature.
    detector = DICEDetector("identity", sparsity=0, contamination=contamination)
    detector.fit([[1.0], [2.0], [3.0]], sample_weight=[1, 0, 3])
    assert detector.mean_activation_.tolist() == [2.5]
    # A quarter of the weight lies at or below the score 1, and the row of score 2 counts nothing.
    assert detector.offset_ == offset


@pytest.mark.parametrize("shaping", [None, ReAct(0.8), VRA(0.3, 0.9), ASH(0.5)], ids=repr)
@pytest.mark.parametrize("source", SOURCES)
def test_integer_weights_equal_repeated_rows(small, weights, source, shaping, tmp_path):
    head, X = small
    expected = DICEDetector(head, sparsity=0.4, shaping=shaping, contamination=0.13)
    expected.fit(np.repeat(X, weights, axis=0))
    detector = DICEDetector(head, sparsity=0.4, shaping=shaping, contamination=0.13)
    detector.fit(source(X, tmp_path), sample_weight=weights)
    assert_same_fit(detector, expected)
    if shaping is not None:
        fitted = vars(detector.shaping_)
        for name in ("threshold_", "alpha_", "beta_"):
            assert fitted.get(name) == vars(expected.shaping_).get(name)
    assert detector.n_samples_seen_ == np.count_nonzero(weights)


@pytest.mark.parametrize("shaping", [None, ReAct(0.8)], ids=repr)
@pytest.mark.parametrize("source", SOURCES)
def test_a_weight_of_zero_leaves_the_row_out(small, weights, source, shaping, tmp_path):
    head, X = small
    kept = weights > 0
    expected = DICEDetector(head, shaping=shaping).fit(X[kept])
    detector = DICEDetector(head, shaping=shaping)
    detector.fit(source(X, tmp_path), sample_weight=kept.astype(float))
    assert_same_fit(detector, expected)
    assert detector.n_samples_seen_ == kept.sum()


@pytest.mark.parametrize("source", SOURCES)
def test_only_the_ratio_of_the_weights_counts(small, weights, source, tmp_path):
    head, X = small
    rows = source(X, tmp_path)
    expected = DICEDetector(head, shaping=ASH(0.5)).fit(rows, sample_weight=weights)
    detector = DICEDetector(head, shaping=ASH(0.5)).fit(rows, sample_weight=weights * 0.37)
    assert_same_fit(detector, expected)


@pytest.mark.parametrize("source", SOURCES)
def test_labels_leave_rows_out_beside_the_weights(small, weights, source, tmp_path):
    head, X = small
    y = np.where(np.arange(200) % 3, 1, -1)
    expected = DICEDetector(head).fit(np.repeat(X, weights * (y == 1), axis=0))
    detector = DICEDetector(head).fit(source(X, tmp_path), y, sample_weight=weights)
    assert_same_fit(detector, expected)


def test_blocks_of_partial_fit_have_weights_of_their_own(small, weights):
    head, X = small
    expected = DICEDetector(head).fit(X, sample_weight=weights)
    detector, statistics = DICEDetector(head), FeatureStatistics()
    for part in (slice(0, 1), slice(1, 77), slice(77, 200)):
        detector.partial_fit(X[part], sample_weight=weights[part])
        statistics.add(X[part], sample_weight=weights[part])
    np.testing.assert_allclose(detector.mean_activation_, expected.mean_activation_, rtol=1e-12)
    np.testing.assert_allclose(statistics.mean(), expected.mean_activation_, rtol=1e-12)
    assert statistics.sum_of_weights == weights.sum()
    assert statistics.n_samples == detector.n_samples_seen_ == np.count_nonzero(weights)
    # Rows without weights count once each.
    detector.partial_fit(X)
    np.testing.assert_allclose(
        detector.mean_activation_, np.average(X, axis=0, weights=weights + 1), rtol=1e-12
    )


def test_fit_predict_fits_with_the_weights(small, weights):
    head, X = small
    expected = DICEDetector(head).fit(X, sample_weight=weights).predict(X)
    found = DICEDetector(head).fit_predict(X, sample_weight=weights)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: np.where(np.arange(200) == 7, -0.5, w), r"sample_weight is -0\.5 in row 7, "),
        (lambda w: np.where(np.arange(200) == 9, np.nan, w), "sample_weight is nan in row 9, "),
        (lambda w: np.where(np.arange(200) == 9, np.inf, w), "sample_weight is inf in row 9, "),
        (lambda w: w[1:], "sample_weight has 199 values, but X has 200 rows"),
        (lambda w: w * 0, "sample_weight of all in-distribution rows is zero"),
    ],
    ids=["negative", "NaN", "infinite", "length", "all zero"],
)
@pytest.mark.parametrize("source", SOURCES)
def test_weights_that_mean_nothing_are_refused(small, weights, source, change, message, tmp_path):
    head, X = small
    detector = DICEDetector(head).fit(X)
    offset = detector.offset_
    with pytest.raises(ValueError, match=message):
        detector.fit(source(X, tmp_path), sample_weight=change(weights))
    assert detector.offset_ == offset


@pytest.mark.parametrize("sample_weight", [[1.0, -1.0], [1.0, np.nan], [1.0]], ids=repr)
def test_statistics_and_partial_fit_refuse_them_too(small, sample_weight):
    head, X = small
    for add in (FeatureStatistics().add, DICEDetector(head).partial_fit):
        with pytest.raises(ValueError, match=r"sample_weight (is|has) (-1.0|nan|1 values)"):
            add(X[:2], sample_weight=sample_weight)


def test_a_pipeline_routes_the_weights(small, weights):
    head, X = small
    shaping = ReAct(threshold=1.0)
    expected = DICEDetector(head).fit(np.minimum(X, 1.0), sample_weight=weights)
    with config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(shaping, DICEDetector(head).set_fit_request(sample_weight=True))
        pipeline.fit(X, sample_weight=weights)
        assert_same_fit(pipeline[-1], expected)
        unset = make_pipeline(shaping, DICEDetector(head))
        with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
            unset.fit(X, sample_weight=weights)
