"""In which digits the scores of all engines agree, for small and for large logits."""

import numpy as np
import pytest

pytest.importorskip("array_api_strict")
pytest.importorskip("numba")
pytest.importorskip("torch")

import array_api_strict
import torch
from sklearn import config_context

from skdice import DICEDetector, LinearHead
from skdice._engines.kernels.fused import FUSED_SCORES, fused_scores
from skdice._engines.module import DetectorModule
from skdice._engines.run import forced_engine
from skdice._scores import SCORES

# The absolute error of a logit, in the sum of the magnitudes of its terms.
ROUNDING = 4 * np.finfo(np.float32).eps
# The relative error of a score in the absolute error of the logits.
SENSITIVITY = {"msp": 1.0, "gen": 0.4}


def scores_of_engines(detector, X):
    """Return the scores of float32 rows by every engine."""
    found = {}
    for name in ("dense", "sparse", "few"):
        with forced_engine(name):
            found[name] = detector.score_samples(X)
    tensor, module = torch.from_numpy(X), detector.to_torch()
    found["torch"] = detector.score_samples(tensor).numpy()
    with config_context(array_api_dispatch=True):
        strict = detector.score_samples(array_api_strict.asarray(X))
    found["array API"] = np.from_dlpack(strict)
    found["module"] = module(tensor).numpy()
    return found


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("n_classes", "n_features", "scale"),
    [(10, 128, 0.3), (200, 256, 0.1), (10, 128, 2.0), (10, 128, 10.0), (200, 256, 5.0)],
)
def test_engines_agree_to_the_stated_digits(score, n_classes, n_features, scale):
    rng = np.random.default_rng(n_classes)
    weight = rng.standard_normal((n_classes, n_features), np.float32) * np.float32(scale)
    X = np.maximum(rng.standard_normal((1500, n_features), np.float32), 0)
    detector = DICEDetector(LinearHead(weight), score_func=score).fit(X)
    exact = detector.score_samples(X.astype(np.float64))
    terms = (X.astype(np.float64) @ np.abs(detector.coef_).T).max(axis=1)
    for scores in scores_of_engines(detector, X).values():
        assert scores.dtype == np.float32
        error = np.abs(scores - exact)
        if score in SENSITIVITY:
            stated = (1e-6 + SENSITIVITY[score] * ROUNDING * terms) * np.abs(exact)
        else:
            stated = 1e-6 * np.abs(exact) + ROUNDING * terms
        assert (error <= stated).all()
        if scale <= 0.3:  # realistic logits
            np.testing.assert_allclose(scores, exact, rtol=1e-5)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_formulas_cost_no_digits_beyond_those_of_the_logits(score, scale):
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((500, 300)) * scale).astype(np.float32)
    exact = SCORES[score](logits.astype(np.float64))
    found = [
        SCORES[score](logits.copy()),
        np.from_dlpack(SCORES[score](array_api_strict.asarray(logits))),
    ]
    eye, zero = torch.eye(300), torch.zeros(300)
    found.append(DetectorModule(eye, zero, torch.tensor(0.0), score)(torch.tensor(logits)).numpy())
    if score in FUSED_SCORES:
        maxima = logits.max(axis=1)
        totals = np.exp(logits - maxima[:, np.newaxis]).sum(axis=1)
        found.append(fused_scores(score, maxima, totals))
    # The generalised entropy is computed from differences of logits, which are rounded once more.
    rtol = 2e-6
    if score == "gen":
        rtol += SENSITIVITY["gen"] * np.finfo(np.float32).eps * np.ptp(logits)
    for scores in found:
        np.testing.assert_allclose(scores, exact, rtol=rtol, atol=1e-37)
