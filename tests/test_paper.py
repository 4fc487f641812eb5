"""Reference values from the authors' own CIFAR-10 network, and the published rule on it."""

import numpy as np
import pytest
from reference import dice_scores

from skdice import DICEDetector, LinearHead
from skdice.shaping import ReAct


@pytest.fixture(scope="module")
def head(cifar10):
    return LinearHead.from_file(cifar10 / "head.npz")


@pytest.fixture(scope="module")
def mean(cifar10):
    return np.load(cifar10 / "mean_activation.npy")


@pytest.mark.filterwarnings("ignore:.*left without any weight")
@pytest.mark.parametrize(
    ("sparsity", "percentile", "weights", "units"),
    [
        (0.10, -0.06178061, 3078, 342),
        (0.70, 0.00004047, 1026, 269),
        (0.90, 0.01536723, 342, 88),
        (0.99, 0.77537320, 35, 20),
    ],
)
def test_reference_values(head, mean, sparsity, percentile, weights, units):
    detector = DICEDetector(head, sparsity=sparsity).partial_fit(mean[None])
    np.testing.assert_array_equal(detector.mean_activation_, mean)
    assert round(detector.contribution_threshold_, 8) == percentile
    assert detector.mask_.sum() == weights
    assert detector.mask_.any(axis=0).sum() == units


@pytest.mark.parametrize("clip", [np.inf, 1.0])
@pytest.mark.parametrize("sparsity", [0, 0.1, 0.7, 0.9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_equal_the_formula_on_real_features(cifar10, head, mean, sparsity, dtype, clip):
    X = np.load(cifar10 / "id_test.npy", mmap_mode="r")
    detector = DICEDetector(head, sparsity=sparsity, shaping=ReAct(threshold=clip))
    detector.partial_fit(mean[None])
    scores = detector.score_samples(X.astype(dtype))
    assert scores.dtype == dtype
    expected = dice_scores(head.weight, head.bias, mean, X, 100 * sparsity, clip)
    np.testing.assert_allclose(scores, expected, rtol=1e-5 if dtype == np.float32 else 1e-12)


def test_float32_contributions_give_the_same_mask(head, mean):
    detector = DICEDetector(head, sparsity=0.9).partial_fit(mean[None])
    single = mean.astype(np.float32) * head.weight
    np.testing.assert_array_equal(detector.mask_, single > np.percentile(single, 90))


@pytest.mark.parametrize(
    ("sparsity", "fpr95"), [(0, 54.4), (0.1, 44.7), (0.7, 44.4), (0.9, 44.8), (0.95, 45.3)]
)
def test_fpr95_on_textures_by_the_authors_rule(cifar10, head, mean, sparsity, fpr95):
    detector = DICEDetector(head, sparsity=sparsity).partial_fit(mean[None])
    inside = np.sort(detector.score_samples(np.load(cifar10 / "id_test.npy")))
    outside = detector.score_samples(np.load(cifar10 / "ood_textures.npy"))
    assert round(100 * np.mean(outside > inside[round(0.05 * len(inside))]), 1) == fpr95


def test_calibration_on_the_training_rows_carries_over(cifar10, head):
    detector = DICEDetector(head).fit(np.load(cifar10 / "id_train.npy"))
    held_out = np.load(cifar10 / "id_test.npy")
    calibrated = detector.calibrate(held_out[::2]).predict(held_out[1::2])
    assert 0.03 < np.mean(calibrated == -1) < 0.07
