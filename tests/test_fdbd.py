"""FDBDDetector against the paper's formula, and wherever its rows come from."""

import numpy as np
import pytest

from skdice import FDBDDetector, FeatureStatistics, LinearHead, metrics
from skdice._engines import geometric


def reference(weight, bias, mean, X):
    """Return the paper's score of each row, one class at a time, in float64."""
    weight, bias, mean, X = (np.asarray(a, float) for a in (weight, bias, mean, X))
    scores = []
    for h in X:
        logits = weight @ h + bias
        y = logits.argmax()
        others = [c for c in range(len(bias)) if (weight[c] != weight[y]).any()]
        distances = [
            (logits[y] - logits[c]) / np.linalg.norm(weight[y] - weight[c]) for c in others
        ]
        scores.append(np.mean(distances) / np.linalg.norm(h - mean))
    return np.array(scores)


@pytest.mark.parametrize("most_tabled", [4096, 0])
@pytest.mark.parametrize(("dtype", "rtol"), [("f2", 1e-4), ("f4", 1e-5), ("f8", 1e-11)])
def test_the_score_is_the_papers(small, dtype, rtol, most_tabled, monkeypatch):
    monkeypatch.setattr(geometric, "MOST_TABLED_CLASSES", most_tabled)
    head, X = small
    X = X.astype(dtype)
    detector = FDBDDetector(head).fit(X)
    expected = reference(head.weight, head.bias, X.mean(axis=0, dtype=float), X)
    scores = detector.score_samples(X)
    assert scores.dtype == (np.float64 if dtype == "f8" else np.float32)
    np.testing.assert_allclose(scores, expected, rtol=rtol)
    assert (detector.predict(X) == -1).sum() == 10


@pytest.mark.parametrize("most_tabled", [4096, 0])
def test_classes_with_equal_weights_have_no_boundary(small, most_tabled, monkeypatch):
    monkeypatch.setattr(geometric, "MOST_TABLED_CLASSES", most_tabled)
    head, X = small
    weight, bias = np.repeat(head.weight, [1, 2, 1, 1, 1], 0), np.arange(6) / 10
    detector = FDBDDetector((weight, bias)).fit(X)
    expected = reference(weight, bias, X.mean(axis=0), X)
    np.testing.assert_allclose(detector.score_samples(X), expected, rtol=1e-10)


def test_a_row_at_the_mean_has_the_largest_score(small):
    head, X = small
    detector = FDBDDetector(head).fit(X)
    at_mean = detector.score_samples(X.mean(axis=0)[None])
    assert np.isfinite(at_mean).all()
    assert at_mean > detector.score_samples(X).max()
    # The only row of a fit is the mean.
    assert np.isfinite(FDBDDetector(head).fit(X[:1]).offset_)
    zero = np.zeros((3, 12))
    assert np.isfinite(FDBDDetector(head).fit(zero).score_samples(zero)).all()


def test_a_head_without_boundaries_is_refused(small):
    _, X = small
    for weight in (np.ones((1, 12)), np.ones((3, 12))):
        with pytest.raises(ValueError, match=f"no decision boundary: all {len(weight)}"):
            FDBDDetector(weight).fit(X)


def test_features_whose_distance_overflows_are_refused(small):
    head, X = small
    detector = FDBDDetector(head).fit(X.astype("f4"))
    with pytest.raises(ValueError, match="the score of row 1 is nan"):
        detector.score_samples(np.stack([X[0], 1e25 * np.ones(12)]).astype("f4"))


def test_rows_in_blocks_and_statistics_of_other_processes(small):
    head, X = small
    whole = FDBDDetector(head).fit(X)
    detector = FDBDDetector(head).partial_fit(X[:70]).partial_fit(FeatureStatistics().add(X[70:]))
    assert detector.n_samples_seen_ == len(X)
    assert not hasattr(detector, "offset_")
    np.testing.assert_allclose(detector.score_samples(X), whole.score_samples(X), rtol=1e-12)
    assert detector.calibrate(X).offset_ == pytest.approx(whole.offset_, rel=1e-12)


def test_labels_and_weights_choose_rows(small):
    head, X = small
    y = np.where(np.arange(len(X)) % 3, 1, -1)
    chosen = FDBDDetector(head).fit(X[y == 1])
    for detector in (
        FDBDDetector(head).fit(X, y),
        FDBDDetector(head).fit(X, sample_weight=(y == 1) * 2.0),
    ):
        np.testing.assert_allclose(detector.mean_activation_, chosen.mean_activation_, rtol=1e-12)
        assert detector.offset_ == pytest.approx(chosen.offset_, rel=1e-12)


def test_conformal_pvalues(small):
    head, X = small
    detector = FDBDDetector(head).fit(X[:100]).calibrate(X[100:], 0.1, method="conformal")
    pvalues = detector.pvalues(X[:100])
    assert ((pvalues > 0) & (pvalues <= 1)).all()
    assert detector.calibration_.rank == 10


def auroc(id_scores, ood_scores):
    labels = np.repeat([1, -1], [len(id_scores), len(ood_scores)])
    return metrics.auroc(labels, np.concatenate([id_scores, ood_scores]))


def test_the_paper_networks(cifar10):
    head = LinearHead.from_file(cifar10 / "head.npz")
    detector = FDBDDetector(head).fit(np.load(cifar10 / "id_train.npy"))
    id_scores = detector.score_samples(np.load(cifar10 / "id_test.npy"))
    sets = ("cifar100", "fashion_mnist", "textures")
    rates = [
        auroc(id_scores, detector.score_samples(np.load(cifar10 / f"ood_{name}.npy")))
        for name in sets
    ]
    assert np.mean(rates) == pytest.approx(0.951, abs=0.003)
