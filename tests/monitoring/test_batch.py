"""The batch test: exact for every size of calibration and batch."""

import dataclasses
import warnings
from fractions import Fraction
from math import comb
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, betabinom, binom, norm
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skdice import DICEDetector
from skdice.monitoring import BatchTest, FlagMonitor, batch_pvalue, batch_test
from skdice.monitoring._batch import _sum_pvalue, flag_limit

# Ranks of conformal calibrations at 5 %, and of those with confidence 95 %.
RANKS = [(100, 5), (100, 2), (500, 25), (500, 17), (5000, 250), (5000, 225)]


@pytest.mark.parametrize(("n", "rank"), RANKS)
@pytest.mark.parametrize("n_rows", [1, 50, 1000])
def test_the_law_is_the_beta_binomial(n, rank, n_rows):
    for n_flagged in {0, 1, n_rows // 20, n_rows // 10, n_rows}:
        # Not betabinom.sf, which is 1 - cdf and knows 13 decimals only.
        tail = betabinom.pmf(np.arange(n_flagged, n_rows + 1), n_rows, rank, n + 1 - rank).sum()
        assert batch_pvalue(n_flagged, n_rows, rank, n) == pytest.approx(tail, rel=1e-8, abs=0)


def test_a_huge_batch_takes_no_longer():
    # One in twenty of ten million rows, as promised: an even chance.
    assert 0.4 < batch_pvalue(500_000, 10_000_000, 250, 5000) < 0.6


@pytest.mark.parametrize(("n", "rank"), RANKS)
def test_pvalues_are_exact_in_simulation(n, rank):
    n_repeats, n_rows = (20_000 if n <= 500 else 4_000), 500
    rng = np.random.default_rng(n + rank)
    counts = np.empty(n_repeats, int)
    for i in range(n_repeats):
        threshold = np.partition(rng.random(n, np.float32), rank - 1)[rank - 1]
        counts[i] = np.count_nonzero(rng.random(n_rows, np.float32) < threshold)
    for level in (0.01, 0.05, 0.2, 0.5):
        limit = flag_limit(level, n_rows, rank, n)
        probability = batch_pvalue(limit, n_rows, rank, n)
        assert probability <= level
        error = np.sqrt(probability * (1 - probability) / n_repeats)
        assert abs((counts >= limit).mean() - probability) < 3 * error


def test_a_binomial_limit_would_be_wrong():
    limit = int(binom.isf(0.01, 500, 0.05)) + 1
    assert binom.sf(limit - 1, 500, 0.05) <= 0.01
    assert batch_pvalue(limit, 500, 5, 100) > 0.13


def test_the_limit_is_the_first_count_at_the_level():
    limit = flag_limit(0.01, 200, 25, 500)
    assert batch_pvalue(limit, 200, 25, 500) <= 0.01 < batch_pvalue(limit - 1, 200, 25, 500)
    assert flag_limit(1e-9, 1, 25, 500) == 2  # no count of one row is that improbable


def test_the_test_of_a_detector(calibrated):
    rows = np.array([[24.9], [25.0], [25.1], [-np.inf], [np.nan], [np.inf]])
    result = batch_test(calibrated(), rows)
    # A score equal to the threshold is good; whatever is not finite is flagged.
    assert result == BatchTest(6, 4, 6 * 25 / 501, batch_pvalue(4, 6, 25, 500), 25, 500)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.pvalue = 1.0
    assert dataclasses.asdict(result)["n_flagged"] == 4


def test_a_pipeline_is_read_through(calibrated):
    detector = calibrated()
    pipeline = make_pipeline(FunctionTransformer(), detector)
    rows = np.linspace(0, 100, 50)[:, None]
    assert batch_test(pipeline, rows) == batch_test(detector, rows)


def test_a_calibration_by_quantile_has_its_own_rank(calibrated):
    # floor(0.05 * 100) rows lie below the threshold, which is therefore the sixth smallest.
    result = batch_test(calibrated(100, 6, method="quantile"), np.zeros((10, 1)))
    assert result.pvalue == pytest.approx(betabinom.sf(9, 10, 6, 95))


def test_decisions_of_other_libraries(calibrated):
    torch = pytest.importorskip("torch")
    da = pytest.importorskip("dask.array")
    detector = calibrated()
    rows = np.linspace(0, 100, 50)[:, None]
    for wrap in (torch.asarray, lambda values: da.from_array(values, chunks=20)):
        other = SimpleNamespace(
            calibration_=detector.calibration_,
            decision_function=lambda X, wrap=wrap: wrap(detector.decision_function(X)),
        )
        assert batch_test(other, rows) == batch_test(detector, rows)


def test_the_reading_says_what_was_found(calibrated):
    good = batch_test(calibrated(), np.arange(1.0, 501)[:, None])
    assert good.reading == str(good)
    assert good.reading == (
        "24 of 500 rows are flagged, where good rows give 25.0 on average; good rows give as many "
        "or more with probability 0.56, no sign of a change."
    )
    odd = batch_test(calibrated(), np.zeros((30, 1)))
    assert "30 of 30 rows" in odd.reading
    assert odd.reading.endswith("so the batch is odder than promised.")


def test_without_a_calibration_nothing_is_promised(calibrated):
    forest = IsolationForest(n_estimators=5).fit(np.zeros((9, 1)))
    with pytest.raises(NotFittedError, match=r"IsolationForest is not calibrated.*call calibrate"):
        batch_test(forest, np.zeros((3, 1)))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((3, 2, 5, 100), "n_flagged is 3, expected a whole number from 0 to 2"),
        ((-1, 2, 5, 100), "n_flagged is -1"),
        ((1, 2, 0, 100), "rank is 0, expected a whole number from 1 to 100"),
        ((1, 2, 101, 100), "rank is 101"),
        ((1, 2, 5, 0), "n_calibration is 0"),
        ((1.5, 2, 5, 100), "n_flagged is 1.5"),
        ((True, 2, 5, 100), "n_flagged is True"),
    ],
)
def test_numbers_that_cannot_be(numbers, message):
    with pytest.raises(ValueError, match=message):
        batch_pvalue(*numbers)


def test_an_empty_batch_says_nothing():
    assert batch_pvalue(0, 0, 5, 100) == 1


# Calibrations by predicted class.


def by_class(rng, counts, n_samples=0, shares=None):
    """A detector of three classes with `counts` calibration rows, and good rows of these classes.

    A row is the class's own feature alone, so that it is the score and tells the class.
    """
    scales = np.array([1.0, 5.0, 0.2])
    detector = DICEDetector("identity", sparsity=0, score_func="max_logit").fit(np.eye(3))
    classes = np.repeat(np.arange(3), counts)
    drawn = rng.choice(3, n_samples, p=shares) if n_samples else np.zeros(0, int)
    both = np.concatenate([classes, drawn])
    rows = np.eye(3)[both] * (1e-9 + rng.exponential(size=len(both)) * scales[both])[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes with too few rows
        detector.calibrate(rows[: len(classes)], 0.1, method="conformal", by="prediction")
    return detector, rows[len(classes) :]


def test_the_law_by_class_is_that_of_the_sum_of_the_classes():
    detector, _ = by_class(np.random.default_rng(0), (30, 50, 19))
    below = detector.class_offsets_ - 1e-6
    X = np.concatenate([np.eye(3)[[0, 0, 1]] * below[[0, 0, 1], None], np.eye(3)[[1, 1, 2]] * 100])
    result = batch_test(detector, X)
    laws = [betabinom(2, 3, 28), betabinom(3, 5, 46), betabinom(1, 2, 18)]
    expected = sum(
        laws[0].pmf(i) * laws[1].pmf(j) * laws[2].pmf(k)
        for i in range(3)
        for j in range(4)
        for k in range(2)
        if i + j + k >= 3
    )
    assert (result.n_rows, result.n_flagged, result.n_untested) == (6, 3, 0)
    assert result.pvalue == pytest.approx(expected)
    assert result.expected == pytest.approx(sum(law.mean() for law in laws))


laws = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(7, 60)), min_size=1, max_size=4
)


@given(laws, st.data())
def test_the_sum_of_laws_is_exact_also_where_it_is_tiny(laws, data):
    """The reference is in fractions: products of binomial numbers, and sums of all their terms."""
    n_flagged = data.draw(st.integers(0, sum(n for n, _, _ in laws)))
    total = [Fraction(1)]
    for n, rank, n_calibration in laws:
        # That k rows of the batch lie below the calibration score of a rank.
        law = [
            Fraction(
                comb(rank + k - 1, k) * comb(n_calibration - rank + n - k, n - k),
                comb(n_calibration + n, n),
            )
            for k in range(n + 1)
        ]
        assert sum(law) == 1
        both = [Fraction(0)] * (len(total) + n)
        for i, one in enumerate(total):
            for k, other in enumerate(law):
                both[i + k] += one * other
        total = both
    expected = float(sum(total[n_flagged:]))
    assert _sum_pvalue(n_flagged, laws) == pytest.approx(expected, rel=1e-10, abs=0)


@pytest.mark.parametrize("n_flagged", [0, 20, 70, 200, 900, 1000])
def test_the_sum_of_one_law_is_the_law(n_flagged):
    expected = batch_pvalue(n_flagged, 1000, 25, 500)
    assert _sum_pvalue(n_flagged, [(1000, 25, 500)]) == pytest.approx(expected, rel=1e-9, abs=0)


def test_a_batch_of_a_million_rows_in_ten_classes():
    """Ten times one class of its size, and a normal law with the moments of the sum."""
    laws = [(100_000, 500, 10_000)] * 10
    law = betabinom(100_000, 500, 9501)
    for z in (-1.0, 0.5, 2.0):
        n_flagged = round(10 * law.mean() + z * np.sqrt(10 * law.var()))
        assert _sum_pvalue(n_flagged, laws) == pytest.approx(norm.sf(z), abs=0.01)


def test_good_batches_of_any_mix_of_classes_keep_the_level():
    rng = np.random.default_rng(1)
    pvalues = []
    for _ in range(1500):
        detector, X = by_class(rng, (40, 30, 20), 200, rng.dirichlet([1, 1, 1]))
        pvalues.append(batch_test(detector, X).pvalue)
    for level in (0.01, 0.05, 0.2):
        error = np.sqrt(level * (1 - level) / 1500)
        assert np.mean(np.array(pvalues) <= level) <= level + 3 * error


def test_rows_of_classes_without_a_threshold_are_not_tested():
    detector, _ = by_class(np.random.default_rng(0), (30, 50, 3))
    result = batch_test(detector, np.eye(3)[[0, 1, 2, 2]] * 100)
    assert (result.n_rows, result.n_untested) == (2, 2)
    assert "2 more rows are not tested" in str(result)
    with pytest.raises(ValueError, match="1 predicted classes have no threshold of their own"):
        FlagMonitor.from_detector(detector)


def test_the_rate_of_a_monitor_holds_for_every_class_at_once():
    detector, _ = by_class(np.random.default_rng(0), (30, 50, 19))
    monitor = FlagMonitor.from_detector(detector, confidence=0.9)
    each = 1 - 0.1 / 3
    ranks = ((3, 30), (5, 50), (2, 19))
    assert monitor.rate == pytest.approx(max(beta.ppf(each, k, n + 1 - k) for k, n in ranks))
    kept = 0
    rng = np.random.default_rng(2)
    for _ in range(400):
        detector, _ = by_class(rng, (30, 50, 19))
        rate = FlagMonitor.from_detector(detector, confidence=0.9).rate
        # The share of future rows of a class below its threshold, by the exponential law.
        shares = 1 - np.exp(-(detector.class_offsets_ - 1e-9) / np.array([1.0, 5.0, 0.2]))
        kept += bool((shares <= rate).all())
    assert kept / 400 >= 0.9 - 3 * np.sqrt(0.09 / 400)
