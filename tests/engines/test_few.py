"""The engine for heads of few classes, on its own."""

import numpy as np
import pytest

pytest.importorskip("numba")

from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from skdice._engines.few import FewClassesLayer, pack_few_classes
from skdice._engines.kernels.layout import CLASSES

DTYPES = [np.float32, np.float64]
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}


@given(
    n_rows=st.integers(1, 150),
    n_features=st.integers(1, 70),
    n_classes=st.integers(1, 23),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_it_is_the_matrix_product(n_rows, n_features, n_classes, dtype, seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_rows, n_features)).astype(dtype)
    coef = rng.normal(size=(n_classes, n_features)).astype(dtype)
    intercept = rng.normal(size=n_classes).astype(dtype)
    layer = FewClassesLayer(coef, intercept)
    logits = X.astype(float) @ coef.T.astype(float) + intercept
    scale = TOLERANCE[dtype] * (np.abs(X) @ np.abs(coef).T + 1).max()
    np.testing.assert_allclose(layer.logits(X), logits, rtol=0, atol=scale)
    expected = {
        "energy": logsumexp(logits, axis=1),
        "max_logit": logits.max(axis=1),
        "msp": np.exp(logits.max(axis=1) - logsumexp(logits, axis=1)),
    }
    for name, each in expected.items():
        found = layer.scores(X, name)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, each, rtol=0, atol=scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_in_any_block(dtype):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 37)).astype(dtype)
    layer = FewClassesLayer(rng.normal(size=(7, 37)).astype(dtype), np.zeros(7, dtype))
    expected = layer.scores(X, "energy")
    for rows in (slice(1, None), slice(63, 130), slice(64, 65), slice(199, 200)):
        assert np.array_equal(layer.scores(X[rows], "energy"), expected[rows])
        assert np.array_equal(layer.scores(np.asfortranarray(X[rows]), "energy"), expected[rows])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_shows_in_its_row_alone(dtype, value):
    rng = np.random.default_rng(0)
    coef = rng.normal(size=(6, 37)).astype(dtype)
    coef[:, 5] = 0  # pruned
    coef[:, 36] = -1
    layer = FewClassesLayer(coef, np.zeros(6, dtype))
    for column in (0, 5, 21, 36):
        X = rng.normal(size=(70, 37)).astype(dtype)
        X[11, column] = value
        others = np.arange(70) != 11
        assert not np.isfinite(layer.logits(X)[11]).any()
        assert np.isfinite(layer.logits(X)[others]).all()
        for name in ("energy", "max_logit", "msp"):
            scores = layer.scores(X, name)
            assert not np.isfinite(scores[11])
            assert np.isfinite(scores[others]).all()


@pytest.mark.parametrize(
    "value",
    [
        # Any NaN may carry a number in its lower bits. The NA of R is a NaN with the number 1954.
        np.array([0x7FF00000000007A2], np.uint64).view(np.float64),
        np.array([0x7FC00001], np.uint32).view(np.float32),
        np.array([0xFFC001FF], np.uint32).view(np.float32),
    ],
    ids=["NA of R", "1", "511, with a sign"],
)
def test_a_nan_with_a_payload_shows(value):
    layer = FewClassesLayer(np.ones((3, 40), value.dtype), np.zeros(3, value.dtype))
    X = np.zeros((70, 40), value.dtype)
    # Copy the bits, because copying the number might change its payload.
    X.view(f"u{X.itemsize}")[11, 7] = value.view(f"u{X.itemsize}")[0]
    for name in ("energy", "max_logit", "msp"):
        scores = layer.scores(X, name)
        assert not np.isfinite(scores[11])
        assert np.isfinite(np.delete(scores, 11)).all()


def test_large_logits_do_not_overflow_their_sum():
    layer = FewClassesLayer(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    X = np.array([[1e4, 1e4], [-1e4, -1e4], [1e4, -1e4]], np.float32)
    np.testing.assert_allclose(
        layer.scores(X, "energy"), [1e4 + np.log(2), -1e4 + np.log(2), 1e4], rtol=1e-6
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_features", [16, 17, 40, 342])
def test_every_weight_is_packed_once(n_features, dtype):
    n_classes, n = 7, 64 // np.dtype(dtype).itemsize
    coef = np.arange(1, 1 + n_classes * n_features, dtype=dtype).reshape(n_classes, n_features)
    packed = pack_few_classes(coef)
    assert packed.shape == (2, -(-n_features // n), CLASSES * n)
    assert np.array_equal(np.sort(packed[packed != 0]), coef.ravel())


def test_read_only_rows_and_other_dtypes_are_taken():
    X = np.ones((3, 40))
    X.setflags(write=False)
    layer = FewClassesLayer(np.ones((2, 40), np.float32), np.zeros(2, np.float32))
    assert layer.logits(X).tolist() == [[40, 40]] * 3
    assert layer.scores(X[:0], "energy").shape == (0,)
