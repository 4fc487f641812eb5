"""The batch test: exact for every size of calibration and batch."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import betabinom, binom
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skdice.monitoring import BatchTest, batch_pvalue, batch_test
from skdice.monitoring._batch import flag_limit

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
