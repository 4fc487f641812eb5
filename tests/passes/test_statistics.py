import pickle
from fractions import Fraction
from functools import reduce

import numpy as np
import pytest

from skdice import DICEDetector, FeatureStatistics
from skdice.shaping import ReAct


@pytest.fixture
def signed():
    rng = np.random.default_rng(5)
    return (rng.normal(size=(3000, 12)) * 10.0 ** rng.integers(-3, 6, 12)).astype(np.float32)


def statistics_of(blocks):
    return [FeatureStatistics().add(block) for block in blocks]


def test_any_merge_tree_agrees(signed):
    rng = np.random.default_rng(0)
    expected = signed.astype(np.float64).mean(axis=0)
    for n_blocks in (1, 2, 30, 700):
        parts = statistics_of(np.array_split(signed, n_blocks))
        rng.shuffle(parts)
        forward = reduce(lambda left, right: left.copy().merge(right), parts)
        while len(parts) > 1:
            parts = [
                reduce(lambda a, b: a.copy().merge(b), parts[i : i + 3])
                for i in range(0, len(parts), 3)
            ]
        for each in (forward, parts[0]):
            assert each.n_samples == len(signed)
            np.testing.assert_allclose(each.mean(), expected, rtol=1e-12)


def test_a_detector_takes_statistics_in_place_of_rows(small):
    head, X = small
    whole = DICEDetector(head, shaping=ReAct(threshold=1.0)).fit(X)
    merged = reduce(FeatureStatistics.merge, statistics_of(np.split(X, [1, 60])))
    detector = DICEDetector(head, shaping=ReAct(threshold=1.0)).partial_fit(merged)
    assert detector.n_samples_seen_ == len(X)
    assert detector.n_features_in_ == 12
    np.testing.assert_allclose(detector.mean_activation_, whole.mean_activation_, rtol=1e-12)
    np.testing.assert_array_equal(detector.mask_, whole.mask_)
    assert detector.calibrate(X).offset_ == whole.offset_
    # What was given stays as it was, and rows and further statistics go on from there.
    detector.partial_fit(X[:10]).partial_fit(merged)
    assert detector.n_samples_seen_ == 2 * len(X) + 10
    assert merged.n_samples == len(X)


def test_statistics_are_small_to_send(signed):
    content = pickle.dumps(FeatureStatistics().add(signed))
    assert len(content) < 2 * 8 * 12 + 400
    loaded = pickle.loads(content)
    np.testing.assert_array_equal(loaded.mean(), FeatureStatistics().add(signed).mean())


def test_half_precision_and_integers(signed):
    half = np.arange(24, dtype=np.float16).reshape(8, 3)
    np.testing.assert_array_equal(
        FeatureStatistics().add(half).mean(), half.mean(axis=0, dtype=float)
    )
    np.testing.assert_array_equal(FeatureStatistics().add([[1, 2], [3, 6]]).mean(), [2, 4])


def test_no_rows_add_nothing():
    statistics = FeatureStatistics().add(np.empty((0, 3))).add(np.ones((2, 3)))
    statistics.merge(FeatureStatistics()).merge(FeatureStatistics(3))
    assert repr(statistics) == "FeatureStatistics(n_samples=2, n_features=3)"
    with pytest.raises(ValueError, match="no rows yet"):
        FeatureStatistics(3).mean()


def test_bad_blocks_are_refused_and_leave_no_trace():
    statistics = FeatureStatistics().add(np.ones((2, 3)))
    bad = np.ones((4, 3))
    bad[2, 1] = np.nan
    with pytest.raises(ValueError, match="NaN in row 2, column 1"):
        statistics.add(bad)
    for wrong in (np.ones((2, 4)), np.empty((0, 4))):
        with pytest.raises(ValueError, match="4 features, but those before have 3"):
            statistics.add(wrong)
    with pytest.raises(ValueError, match="4 features, but those before have 3"):
        statistics.merge(FeatureStatistics(4))
    assert statistics.n_samples == 2
    np.testing.assert_array_equal(statistics.mean(), np.ones(3))


def test_a_detector_refuses_statistics_that_do_not_fit(small):
    head, X = small
    with pytest.raises(ValueError, match="X has 3 features, but the head expects 12"):
        DICEDetector(head).partial_fit(FeatureStatistics(3))
    with pytest.raises(ValueError, match="no number of features"):
        DICEDetector(head).partial_fit(FeatureStatistics())
    with pytest.raises(ValueError, match="leave it out"):
        DICEDetector(head).partial_fit(FeatureStatistics().add(X), np.ones(len(X)))
    detector = DICEDetector(head).partial_fit(X)
    with pytest.raises(ValueError, match="3 features, but those before have 12"):
        detector.partial_fit(FeatureStatistics(3))
    assert detector.n_samples_seen_ == len(X)


UNIT = 2.0**-53


def exact_means(X):
    """Return the exact mean of each column, and the mean of its magnitudes."""
    columns = [[Fraction(float(value)) for value in column] for column in X.T]
    return [(sum(column) / len(X), float(sum(map(abs, column)) / len(X))) for column in columns]


def ill_conditioned(rng, n_rows, dtype):
    """Return rows that cancel pair by pair but for a small rest, in a random order."""
    large = rng.normal(size=(n_rows // 2, 5)) * 10.0 ** rng.uniform(-3, 3, (n_rows // 2, 5))
    rows = np.concatenate([large, -large]).astype(dtype)
    rows[0] = rng.normal(size=5) * 10.0 ** np.array([0, -4, -8, -11, -13]) / (n_rows / 1000)
    rows[n_rows // 2] = 0
    return rng.permuted(rows, axis=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_rows", [1000, 6000])
def test_the_stated_bound_of_the_mean_holds_for_every_split(n_rows, dtype):
    rng = np.random.default_rng(n_rows)
    X = ill_conditioned(rng, n_rows, dtype)
    exact = exact_means(X)
    assert max(magnitude / abs(float(mean)) for mean, magnitude in exact) > 2e16
    for n_blocks in (1, 2, 7, 60, 500):
        cuts = np.sort(rng.integers(0, n_rows, n_blocks - 1))
        parts = [each for each in np.split(X, cuts) if len(each)]
        rng.shuffle(parts)
        found = reduce(FeatureStatistics.merge, statistics_of(parts)).mean()
        for value, (mean, magnitude) in zip(found, exact, strict=True):
            bound = 4 * UNIT * abs(float(mean)) + ((n_rows + 2**14) * UNIT) ** 2 * magnitude
            assert abs(Fraction(float(value)) - mean) <= bound


def test_the_stated_bound_holds_for_compiled_sums():
    pytest.importorskip("numba")
    from skdice._passes.sum_kernel import compiled_column_sums

    X = ill_conditioned(np.random.default_rng(1), 6000, np.float64)
    found = compiled_column_sums(X).sum(axis=0) / len(X)
    for value, (mean, magnitude) in zip(found, exact_means(X), strict=True):
        bound = 4 * UNIT * abs(float(mean)) + ((len(X) + 2**14) * UNIT) ** 2 * magnitude
        assert abs(Fraction(float(value)) - mean) <= bound


def test_the_stated_bound_of_plain_sums_holds():
    X = np.abs(ill_conditioned(np.random.default_rng(2), 6000, np.float64))
    found = FeatureStatistics().add(X).mean()
    for value, (mean, _) in zip(found, exact_means(X), strict=True):
        assert abs(Fraction(float(value)) - mean) <= 260 * UNIT * float(mean)
