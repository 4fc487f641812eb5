"""ViMDetector against the paper's formula, and the second moments that it is fitted from."""

import warnings
from functools import reduce
from itertools import pairwise

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError

from skdice import FeatureStatistics, LinearHead, ViMDetector, metrics

FEW_ROWS = "ignore:.*fewer than the .* features"


def reference(weight, bias, train, X, n_components):
    """Return the paper's alpha and the scores of rows, in float64."""
    weight, bias, train, X = (np.asarray(a, float) for a in (weight, bias, train, X))
    origin = -np.linalg.pinv(weight) @ bias
    centred = train - origin
    _, vectors = np.linalg.eigh(centred.T @ centred / len(train))
    residual = vectors[:, : train.shape[1] - n_components]
    alpha = np.mean((train @ weight.T + bias).max(1))
    alpha /= np.mean(np.linalg.norm(centred @ residual, axis=1))
    energy = np.logaddexp.reduce(X @ weight.T + bias, axis=1)
    return alpha, energy - alpha * np.linalg.norm((X - origin) @ residual, axis=1)


@pytest.mark.parametrize(("dtype", "rtol"), [("f2", 1e-4), ("f4", 1e-5), ("f8", 1e-11)])
@pytest.mark.parametrize("n_components", [None, 1, 11])
def test_the_score_is_the_papers(small, dtype, rtol, n_components):
    head, X = small
    X = X.astype(dtype)
    detector = ViMDetector(head, n_components=n_components).fit(X)
    alpha, expected = reference(head.weight, head.bias, X, X, n_components or 6)
    assert detector.alpha_ == pytest.approx(alpha, rel=rtol)
    assert detector.n_components_ == (n_components or 6)
    scores = detector.score_samples(X)
    assert scores.dtype == (np.float64 if dtype == "f8" else np.float32)
    np.testing.assert_allclose(scores, expected, rtol=rtol, atol=rtol * np.abs(expected).max())
    assert (detector.predict(X) == -1).sum() == 10


@pytest.mark.parametrize(
    ("n_features", "expected"), [(10, 5), (767, 383), (768, 512), (2048, 1000)]
)
def test_the_papers_rule_for_the_dimension(n_features, expected):
    assert ViMDetector("identity")._n_principal(n_features) == expected


@pytest.mark.parametrize("n_components", [12, 400])
def test_a_subspace_that_leaves_no_residual_is_refused(small, n_components):
    head, X = small
    message = f"n_components is {n_components}, expected less than n_features = 12"
    for fit in (ViMDetector.fit, ViMDetector.partial_fit):
        with pytest.raises(ValueError, match=message):
            fit(ViMDetector(head, n_components=n_components), X)


def test_fewer_rows_than_features_are_warned_of(small):
    head, X = small
    with pytest.warns(UserWarning, match="the 11 rows are fewer than the 12 features"):
        ViMDetector(head).fit(X[:11])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ViMDetector(head).fit(X[:12])


@pytest.mark.filterwarnings(FEW_ROWS)
def test_rows_without_a_residual_leave_the_energy_and_a_warning(small):
    head, X = small
    with pytest.warns(UserWarning, match="alpha_ is 0, and the score is the energy alone"):
        detector = ViMDetector(head, n_components=8).fit(X[:5])
    energy = np.logaddexp.reduce(X @ head.weight.T + head.bias, axis=1)
    np.testing.assert_allclose(detector.score_samples(X), energy, rtol=1e-12)


def test_a_negative_alpha_is_warned_of(small):
    head, X = small
    with pytest.warns(UserWarning, match=r"alpha_ is -\d.*largest logits is -"):
        ViMDetector((head.weight, head.bias - 100)).fit(X)


def test_a_weight_that_is_singular_but_for_rounding_does_not_move_the_origin(small):
    head, X = small
    weight = head.weight - head.weight.mean(axis=0)
    single = LinearHead(weight.astype("f4"), head.bias)
    exact = ViMDetector(LinearHead(weight, head.bias)).fit(X)
    np.testing.assert_allclose(ViMDetector(single).fit(X).origin_, exact.origin_, atol=1e-4)


def test_blocks_of_rows_end_with_calibrate(small):
    head, X = small
    whole = ViMDetector(head).fit(X)
    statistics = FeatureStatistics(second_moments=True).add(X[70:])
    detector = ViMDetector(head).partial_fit(X[:70]).partial_fit(statistics)
    assert detector.n_samples_seen_ == len(X)
    with pytest.raises(NotFittedError):
        detector.score_samples(X)
    with pytest.raises(NotFittedError, match="method='quantile' and rows of the fit first"):
        detector.calibrate(X, method="conformal")
    detector.calibrate(X)
    assert detector.alpha_ == pytest.approx(whole.alpha_, rel=1e-12)
    assert detector.offset_ == pytest.approx(whole.offset_, rel=1e-12)
    np.testing.assert_allclose(detector.score_samples(X), whole.score_samples(X), rtol=1e-10)
    # Later calibrations do not change what is scored.
    alpha = detector.alpha_
    assert detector.calibrate(X[:50], method="conformal").alpha_ == alpha
    # More rows change the subspace, so that alpha is asked for anew.
    detector.partial_fit(X[:10])
    assert not hasattr(detector, "alpha_")
    with pytest.raises(NotFittedError):
        detector.predict(X)


def test_statistics_without_second_moments_are_refused(small):
    head, X = small
    with pytest.raises(ValueError, match=r"FeatureStatistics\(second_moments=True\)"):
        ViMDetector(head).partial_fit(FeatureStatistics().add(X))
    with pytest.raises(ValueError, match="there are no second moments"):
        FeatureStatistics().add(X).second_moments_about(X[0])


def test_labels_and_weights_choose_rows(small):
    head, X = small
    y = np.where(np.arange(len(X)) % 3, 1, -1)
    chosen = ViMDetector(head).fit(X[y == 1])
    repeated = ViMDetector(head).fit(np.repeat(X, np.arange(len(X)) % 4, axis=0))
    for detector, expected in (
        (ViMDetector(head).fit(X, y), chosen),
        (ViMDetector(head).fit(X, sample_weight=(y == 1) * 2.0), chosen),
        (ViMDetector(head).fit(X, sample_weight=np.arange(len(X)) % 4), repeated),
    ):
        assert detector.alpha_ == pytest.approx(expected.alpha_, rel=1e-10)
        assert detector.offset_ == pytest.approx(expected.offset_, rel=1e-10)


def test_features_without_finite_moments_are_refused(small):
    head, X = small
    with pytest.raises(ValueError, match="second moment of feature 0 exceeds the range"):
        ViMDetector(head).fit(X * 1e200)


@hypothesis.given(
    cuts=st.lists(st.integers(0, 300), max_size=8),
    offset=st.sampled_from([0.0, 1.0, 1e3, 1e6]),
    weighted=st.booleans(),
    seed=st.integers(0, 100),
)
def test_second_moments_do_not_depend_on_the_split(cuts, offset, weighted, seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(300, 5)) * [1, 1, 1e-3, 10, 0] + offset
    weights = rng.integers(1, 5, 300).astype(float) if weighted else np.ones(300)
    near_zero = X - offset  # exact, so that the reference does not cancel
    near_zero -= np.average(near_zero, axis=0, weights=weights)
    expected = near_zero.T @ (near_zero * weights[:, None])
    edges = [0, *sorted(cuts), 300]
    parts = [
        FeatureStatistics(second_moments=True).add(
            X[start:stop], sample_weight=weights[start:stop] if weighted else None
        )
        for start, stop in pairwise(edges)
    ]
    rng.shuffle(parts)
    merged = reduce(FeatureStatistics.merge, parts, FeatureStatistics(second_moments=True))
    deviation = np.sqrt(np.diag(expected) / 300)
    # A value of this size is off by so much itself.
    rounding = 4 * np.finfo(float).eps * (offset + 10)
    error = np.abs(merged.scatter - expected)
    allowed = np.add.outer(deviation, deviation) * rounding + 1e-12 * np.outer(deviation, deviation)
    assert (error <= weights.sum() * (allowed + rounding**2)).all()
    copied = merged.copy()
    np.testing.assert_array_equal(copied.scatter, merged.scatter)


def auroc(id_scores, ood_scores):
    labels = np.repeat([1, -1], [len(id_scores), len(ood_scores)])
    return metrics.auroc(labels, np.concatenate([id_scores, ood_scores]))


def test_the_paper_networks(cifar10):
    head = LinearHead.from_file(cifar10 / "head.npz")
    detector = ViMDetector(head).fit(np.load(cifar10 / "id_train.npy"))
    id_scores = detector.score_samples(np.load(cifar10 / "id_test.npy"))
    sets = ("cifar100", "fashion_mnist", "textures")
    rates = [
        auroc(id_scores, detector.score_samples(np.load(cifar10 / f"ood_{name}.npy")))
        for name in sets
    ]
    assert np.mean(rates) == pytest.approx(0.947, abs=0.003)
