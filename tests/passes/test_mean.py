"""Mean activations: sums that do not depend on blocks, and statistics that can be merged."""

import pickle
import sys
from fractions import Fraction
from functools import reduce
from math import fsum

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skdice import DICEDetector, FeatureStatistics
from skdice._passes import mean as mean_pass
from skdice._passes.mean import gather_statistics
from skdice._rows.door import as_source
from skdice.shaping import ReAct

pytest.importorskip("numba")
from skdice._passes.sum_kernel import compiled_column_sums
from skdice._passes.sums import column_sums


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
    # The given statistics do not change, and rows and further statistics are added to a copy.
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


@pytest.fixture(scope="module", params=["numpy", "compiled"])
def mean_of(request):
    def mean(*blocks, half=False):
        running = FeatureStatistics(blocks[0].shape[1])
        for block in blocks:
            compiled = request.param == "compiled"
            sums = compiled_column_sums(block) if compiled else column_sums(block, half=half)
            running._add_sums(len(block), sums, len(block))
        assert running.n_samples == sum(len(block) for block in blocks)
        return running.mean()

    return mean


def exact_mean(X):
    return [fsum(column.astype(float)) / len(X) for column in X.T]


def test_mean_does_not_depend_on_the_split_even_where_columns_cancel(mean_of):
    rng = np.random.default_rng(3)
    X = rng.normal(size=(5000, 6)) * np.array([1, 1e3, 1e-3, 1e6, 1, 1])
    X[:, 4] -= X[:, 4].mean()
    whole = mean_of(X)
    for size in (1, 7, 1000):
        parts = mean_of(*np.split(X, range(size, len(X), size)))
        np.testing.assert_allclose(parts, whole, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mean_equals_the_exactly_rounded_sum(mean_of, dtype):
    X = np.maximum(np.random.default_rng(4).normal(size=(3000, 5)), 0).astype(dtype)
    np.testing.assert_allclose(mean_of(X[:1234], X[1234:]), exact_mean(X), rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("large", [1e6, 1e8])
def test_mean_does_not_depend_on_the_split_around_large_rows_that_cancel(mean_of, dtype, large):
    small = np.random.default_rng(6).normal(1e-3, 1e-3, size=(5000, 1))
    X = np.concatenate([[[large]], small, [[-large]]]).astype(dtype)
    whole = mean_of(X)
    np.testing.assert_allclose(mean_of(*np.split(X, [1, 3000, 5001])), whole, rtol=1e-12)
    np.testing.assert_allclose(whole, exact_mean(X), rtol=1e-12)


def test_mean_at_the_end_of_the_range(mean_of):
    X = np.array([[1e308, 1.0], [-1e308, 2.0], [1e308, 6.0]])
    np.testing.assert_allclose(mean_of(X), [1e308 / 3, 3.0], rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mean_of_a_column_does_not_depend_on_its_neighbours(mean_of, dtype):
    rng = np.random.default_rng(9)
    X = rng.normal(size=(3000, 2)) * np.array([1e25, 1.0])
    X[:, 1] -= X[:, 1].mean() - 1e-6
    X = X.astype(dtype)
    whole = mean_of(X)
    np.testing.assert_allclose(mean_of(*np.split(X, [7, 1500])), whole, rtol=1e-12)
    np.testing.assert_allclose(whole, exact_mean(X), rtol=1e-12)


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 600), st.just(2)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32)
        | st.sampled_from([0.0, 2.0**100, -(2.0**100), 2.0**-140]),
        fill=st.sampled_from([0.0, 1.0, -1.5, 2.0**-60]),
    )
)
def test_mean_of_single_precision_loses_nothing_that_float64_can_hold(mean_of, X):
    # A pair of float64 sums cannot hold digits below 2^-105 of the largest magnitude.
    bound = 1e-30 * np.abs(X).max(axis=0).astype(float) + 1e-15 * np.abs(exact_mean(X))
    if len(X) > 256 and X.min() >= 0:
        bound += 1e-13 * X.mean(axis=0, dtype=float)
    assert (np.abs(mean_of(X) - exact_mean(X)) <= bound).all()


def test_half_precision_rows_sum_exactly(mean_of):
    rng = np.random.default_rng(11)
    X = (rng.normal(size=(5000, 3)) * [1e4, 1, 1e-4]).astype(np.float16)
    X[0], X[-1] = 65504, -65504
    rows = X.astype(np.float32)
    assert list(mean_of(rows[:77], rows[77:], half=True)) == exact_mean(rows)


def test_large_sources_are_summed_by_compiled_code(monkeypatch):
    X = np.random.default_rng(0).normal(size=(1003, 7)).astype(np.float32)
    found = []
    for limit in (len(X) * 7, len(X) * 7 + 1):
        monkeypatch.setattr(mean_pass, "COMPILED_VALUES", limit)
        found.append(gather_statistics(as_source(X), batch_size=100).mean())
    np.testing.assert_allclose(*found, rtol=1e-15)
    np.testing.assert_allclose(found[0], exact_mean(X), rtol=1e-15)


@pytest.mark.usefixtures("without_numba")
def test_large_sources_are_summed_without_numba_too(monkeypatch):
    X = np.random.default_rng(0).normal(size=(1003, 7)).astype(np.float32)
    monkeypatch.setattr(mean_pass, "COMPILED_VALUES", 0)
    monkeypatch.delitem(sys.modules, "skdice._passes.sum_kernel")
    np.testing.assert_allclose(gather_statistics(as_source(X)).mean(), exact_mean(X), rtol=1e-15)
    assert "skdice._passes.sum_kernel" not in sys.modules


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
