"""Arrays in the small floating-point types of ml_dtypes, which JAX and others give to NumPy."""

import pytest

pytest.importorskip("ml_dtypes")

import ml_dtypes
import numpy as np

from skdice import DICEDetector, FeatureStatistics, LinearHead
from skdice._rows.door import as_source
from skdice.io import open_features, save_features
from skdice.shaping import ReAct

NARROW = [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    X = np.maximum(rng.normal(size=(700, 16)), 0)
    return LinearHead(rng.normal(size=(5, 16)), rng.normal(size=5)), X


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_floats_are_read_as_single_precision(problem, dtype):
    head, X = problem
    narrow = X.astype(dtype)
    single = narrow.astype(np.float32)
    assert as_source(narrow).dtype == np.float32
    detectors = [DICEDetector(head, shaping=ReAct(0.9)).fit(rows) for rows in (narrow, single)]
    np.testing.assert_array_equal(detectors[0].mean_activation_, detectors[1].mean_activation_)
    scores = detectors[0].score_samples(narrow)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, detectors[1].score_samples(single))
    statistics = FeatureStatistics().add(narrow)
    np.testing.assert_array_equal(statistics.mean(), FeatureStatistics().add(single).mean())
    np.testing.assert_array_equal(
        ReAct(0.9).fit_transform(narrow), ReAct(0.9).fit_transform(single)
    )


@pytest.mark.parametrize("dtype", NARROW)
def test_a_head_of_narrow_floats(problem, dtype):
    head, _ = problem
    weight = head.weight.astype(dtype)
    np.testing.assert_array_equal(LinearHead(weight).weight, weight.astype(np.float32))


@pytest.mark.parametrize("ending", ["npy", "safetensors"])
def test_narrow_floats_are_written_as_single_precision(problem, tmp_path, ending):
    _, X = problem
    narrow = X.astype(ml_dtypes.bfloat16)
    save_features(tmp_path / f"f.{ending}", narrow)
    rows = open_features(tmp_path / f"f.{ending}")
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(rows), narrow.astype(np.float32))


def test_a_value_that_is_not_finite_is_named(problem):
    head, X = problem
    bad = X.astype(ml_dtypes.bfloat16)
    bad[401, 7] = np.nan
    with pytest.raises(ValueError, match="NaN in row 401, column 7"):
        DICEDetector(head).fit(bad)


def test_other_types_without_a_number_are_refused(problem):
    head, X = problem
    detector = DICEDetector(head).fit(X)
    for rows in (np.zeros((3, 16), "V2"), np.zeros((3, 16), ml_dtypes.int4)):
        with pytest.raises(ValueError, match="dtype"):
            detector.score_samples(rows)
