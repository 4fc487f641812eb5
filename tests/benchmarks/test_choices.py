"""Tests of the benchmarks behind two recommendations: the sparsity without outliers, and ReAct."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from skdice import DICEDetector, LinearHead

pytest.importorskip("torch")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_artificial_outliers_keep_what_their_names_say():
    from choosing_without_ood import GENERATORS

    rng = np.random.default_rng(0)
    X = np.abs(rng.normal(size=(4000, 3))).astype(np.float32)
    X[:, 1] += X[:, 0]
    head = LinearHead(np.eye(3))
    permuted = GENERATORS["permutation"](X, head, rng)
    np.testing.assert_array_equal(np.sort(permuted, axis=0), np.sort(X, axis=0))
    assert abs(np.corrcoef(permuted.T)[0, 1]) < 0.1 < np.corrcoef(X.T)[0, 1]
    noise = GENERATORS["noise"](X, head, rng)
    np.testing.assert_allclose(noise.mean(axis=0), X.mean(axis=0), rtol=0.1)
    assert (noise >= X.min(axis=0)).all()
    assert (noise <= X.max(axis=0)).all()
    mixed = GENERATORS["mixture"](X, head, np.random.default_rng(1))
    assert mixed.dtype == noise.dtype == permuted.dtype == np.float32
    partner = 2 * mixed - X
    assert (partner.argmax(axis=1) != X.argmax(axis=1)).all()
    with pytest.raises(ValueError, match="predicts class 0 for all 5 rows"):
        GENERATORS["mixture"](np.tile([[1.0, 0, 0]], (5, 1)), head, rng)


def test_leaving_a_class_out_chooses_the_sparsity_that_single_detectors_show(fashion):
    from choosing_without_ood import SPARSITIES, choose

    X = fashion.id_test[:600]
    weight, bias = fashion.head.weight, fashion.head.bias
    classes = (X @ weight.T + bias).argmax(axis=1)
    aurocs = np.zeros(len(SPARSITIES))
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(X, np.ones(600)):
        for left_out in range(10):
            head = LinearHead(np.delete(weight, left_out, 0), np.delete(bias, left_out))
            known = X[train][classes[train] != left_out]
            for place, sparsity in enumerate(SPARSITIES):
                scores = DICEDetector(head, sparsity=sparsity).fit(known).score_samples(X[test])
                aurocs[place] += roc_auc_score(classes[test] != left_out, scores)
    assert choose("leave-one-class-out", fashion.head, X, None) == SPARSITIES[aurocs.argmax()]


def test_at_most_ten_classes_are_left_out():
    from choosing_without_ood import comparisons, predicted_classes

    rng = np.random.default_rng(0)
    head, X = LinearHead(rng.normal(size=(40, 8))), rng.normal(size=(900, 8))
    found = list(comparisons("leave-one-class-out", head, X[:600], X[600:]))
    classes = predicted_classes(head, X[600:])
    left_out = {int(classes[labels == -1][0]) for _, _, _, labels in found}
    assert len(found) == len(left_out) == 10
    assert all(smaller.weight.shape == (39, 8) for smaller, *_ in found)


def test_the_committed_quantiles_are_what_the_embedded_features_give(fashion):
    from react_quantile import measure
    from reproduction import cell

    rates = measure(fashion.head, fashion.id_train, fashion.id_test, fashion.ood)
    table = (BENCHMARKS / "results" / "2026-11-24-react-quantile.rst").read_text()
    for score, row in rates.items():
        line = "  ".join(cell(each, 1) for each in row)
        assert f"Fashion-MNIST ResNet, {score}" in table
        assert line in table
