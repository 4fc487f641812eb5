import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skdice import DICEDetector
from skdice.shaping import ASH, VRA, ReAct, Scale

RNG = np.random.default_rng(5)
X = np.maximum(RNG.normal(size=(300, 20)), 0)
activations = arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.integers(1, 12)),
    elements=st.floats(0, 100),
)


def ash_reference(row, quantile, prune):
    """ASH-S (prune) and SCALE of one row, as the authors' code has them."""
    n_kept = max(len(row) - int(np.round(len(row) * quantile)), 1)
    kept = np.argsort(row)[::-1][:n_kept]
    before, after = row.sum(), row[kept].sum()
    scale = np.exp(before / after) if after else 1
    out = np.zeros_like(row)
    out[kept] = row[kept]
    return (out if prune else row) * scale


def test_react_learns_its_quantile_of_all_entries():
    react = ReAct(quantile=0.8).fit(X)
    assert react.threshold_ == np.quantile(X.ravel(), 0.8)
    np.testing.assert_array_equal(react.transform(X), np.minimum(X, react.threshold_))


def test_a_fixed_threshold_wins_over_the_quantile():
    assert ReAct(quantile=0.1, threshold=1.5).fit(X).threshold_ == 1.5


def test_vra_learns_both_quantiles():
    vra = VRA(0.5, 0.9).fit(X)
    assert (vra.alpha_, vra.beta_) == tuple(np.quantile(X.ravel(), [0.5, 0.9]))
    expected = np.where(vra.alpha_ > X, 0, np.where(vra.beta_ < X, vra.beta_, X))
    np.testing.assert_array_equal(vra.transform(X), expected)
    half = VRA(alpha=0.3).fit(X)
    assert (half.alpha_, half.beta_) == (0.3, np.quantile(X.ravel(), 0.95))


@given(activations, st.floats(0, 0.99))
def test_ash_and_scale_equal_the_authors(features, quantile):
    # Denormal sums overflow the ratio, and ties may keep another of two equal entries.
    features = np.round(features, 6)
    for transformer, prune in ((ASH(quantile), True), (Scale(quantile), False)):
        shaped = transformer.fit_transform(features)
        for got, row in zip(shaped, features, strict=True):
            expected = ash_reference(row, quantile, prune)
            np.testing.assert_allclose(np.sort(got), np.sort(expected), rtol=1e-12)


def test_ash_keeps_the_largest_in_place():
    shaped = ASH(quantile=0.5).fit_transform([[3.0, 1.0, 2.0, 0.0]])
    np.testing.assert_allclose(shaped, np.array([[3, 0, 2, 0]]) * np.exp(6 / 5))


@pytest.mark.parametrize("transformer", [ASH(), Scale()], ids=repr)
def test_a_row_of_zeros_stays_zero(transformer):
    np.testing.assert_array_equal(transformer.fit_transform(np.zeros((2, 7))), np.zeros((2, 7)))


@pytest.mark.parametrize("transformer", [ASH(0.5), Scale(0.5)], ids=repr)
def test_a_ratio_that_overflows_is_named(transformer):
    # The two largest sum to zero and the row does not: only possible with negative entries.
    with pytest.raises(ValueError, match=r"makes row 1 infinite or NaN: .* sum to zero"):
        transformer.fit_transform([[1.0, 0.0, 0.0, 0.0], [4.0, -4.0, -5.0, -6.0]])


@pytest.mark.parametrize("transformer", [ReAct(), VRA(), ASH(), Scale()], ids=repr)
@pytest.mark.parametrize(("given", "kept"), [("float16", "float32"), ("float32", "float32")])
def test_half_and_single_precision_stay_single(transformer, given, kept):
    shaped = transformer.fit(X.astype(given)).transform(X.astype(given))
    assert shaped.dtype == kept
    reference = transformer.fit(X.astype(given).astype(float)).transform(
        X.astype(given).astype(float)
    )
    np.testing.assert_allclose(shaped, reference, rtol=2e-6)


@pytest.mark.parametrize("transformer", [ReAct(threshold=1.0), VRA(alpha=0.1, beta=1.0), ASH()])
def test_what_learns_nothing_needs_no_fit(transformer):
    np.testing.assert_array_equal(transformer.transform(X), transformer.fit(X).transform(X))


@pytest.mark.parametrize("transformer", [ReAct(threshold="a"), ReAct(threshold=np.nan), ASH(85)])
def test_parameters_are_checked_without_a_fit_too(transformer):
    with pytest.raises(ValueError, match="parameter of"):
        transformer.transform(X)


def test_a_fitted_value_stays_until_the_next_fit():
    react = ReAct(quantile=0.5).fit(X)
    learned = react.threshold_
    assert react.set_params(threshold=0.1).transform(X).max() == learned
    assert react.fit(X).transform(X).max() == 0.1


def test_what_overflows_float32_is_named():
    with pytest.raises(ValueError, match=r"makes row 0 infinite or NaN: .*for float32"):
        ASH(0.99).fit_transform(np.ones((1, 2048), np.float32))


@pytest.mark.parametrize("transformer", [ReAct(), VRA(), VRA(alpha=0.1)], ids=repr)
def test_what_learns_must_be_fitted(transformer):
    with pytest.raises(NotFittedError):
        transformer.transform(X)


def test_alone_in_a_pipeline():
    y = (X[:, 0] > X[:, 1]).astype(int)
    clipped = make_pipeline(ReAct(0.95), LogisticRegression()).fit(X, y)
    expected = LogisticRegression().fit(np.minimum(X, np.quantile(X, 0.95)), y)
    np.testing.assert_allclose(clipped[-1].coef_, expected.coef_, rtol=1e-6)


@pytest.mark.parametrize(
    ("transformer", "message"),
    [
        (ReAct(90), r"did you mean 0\.9\?"),
        (ReAct(threshold=float("nan")), "Got nan instead"),
        (VRA(alpha=2.0, beta=1.0), "alpha is 2 and beta is 1; expected alpha <= beta"),
        (VRA(0.9, 0.1), "expected alpha <= beta"),
        (ASH(1.0), r"Got 1\.0 instead"),
        (Scale(-0.1), r"Got -0\.1 instead"),
    ],
)
def test_bad_parameters_are_named(transformer, message):
    with pytest.raises(ValueError, match=message):
        transformer.fit(X)


@pytest.mark.parametrize("transformer", [ReAct(), ReAct(threshold=1.0), VRA(), ASH()], ids=repr)
def test_bad_rows_are_named(transformer):
    bad = X.copy()
    bad[250, 4] = np.nan
    for method in (transformer.fit, transformer.fit(X).transform):
        with pytest.raises(ValueError, match="NaN in row 250, column 4"):
            method(bad)


class Fitted(ReAct):
    """Clips at a value of its own."""

    def fit(self, X, y=None):
        super().fit(X)
        self.threshold_ = 0.25
        return self


class Shaped(ReAct):
    """Clips, and takes a root."""

    def transform(self, X):
        return np.sqrt(super().transform(X))


class Transformed(ReAct):
    """Clips, and squares."""

    def transform(self, X):
        return super().transform(X) ** 2


OWN = {
    Fitted(): lambda X, c: np.minimum(X, 0.25),
    Shaped(): lambda X, c: np.sqrt(np.minimum(X, c)),
    Transformed(): lambda X, c: np.minimum(X, c) ** 2,
}


@pytest.mark.parametrize("shaping", OWN, ids=repr)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_what_is_derived_from_a_shaping_is_used_as_it_is(small, library, shaping):
    head, X = small
    detector = DICEDetector(head, shaping=shaping).fit(X)
    rows = X if library == "numpy" else pytest.importorskip("torch").from_numpy(X)
    logits = OWN[shaping](X, np.quantile(X, 0.99)) @ detector.coef_.T + detector.intercept_
    np.testing.assert_allclose(detector.logits(rows), logits, rtol=1e-10, atol=1e-10)
    if library == "torch":
        with pytest.raises(ValueError, match=r"only those of skdice\.shaping"):
            detector.to_torch()


def in_numpy(X):
    return X


def in_torch(X):
    return pytest.importorskip("torch").from_numpy(X)


def in_strict(X):
    strict = pytest.importorskip("array_api_strict")
    return strict.asarray(X, device=strict.Device("device1"))


def in_dask(X):
    return pytest.importorskip("dask.array").from_array(X, chunks=(70, 5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shaping", [ReAct(0.7), VRA(), ASH(0.5), Scale(0.5)], ids=repr)
@pytest.mark.parametrize("library", [in_numpy, in_torch, in_strict, in_dask])
def test_features_are_transformed_in_their_own_kind(small, library, shaping, dtype):
    rows = small[1].astype(dtype)
    expected = clone(shaping).fit_transform(rows)
    tolerance = 1e-6 if dtype == np.float32 else 1e-14
    source = library(rows)
    with config_context(array_api_dispatch=library is in_strict):
        # With the dispatch on, scikit-learn wants the library of fit in transform as well.
        for fitted_on in [source] if library is in_strict else [rows, source]:
            shaped = clone(shaping).fit(fitted_on).transform(source)
            assert type(shaped) is type(source)
            assert shaped.dtype == source.dtype
            assert shaped.shape == source.shape
            if library is in_dask:
                assert shaped.chunks == ((70, 70, 60), (12,))
                shaped = shaped.compute()
            elif library is not in_numpy:
                assert shaped.device == source.device
                shaped = np.from_dlpack(shaped)
            np.testing.assert_allclose(shaped, expected, rtol=tolerance)
