"""JAX arrays under scikit-learn's array API dispatch."""

import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import config_context

from skdice import DICEDetector, LinearHead
from skdice.shaping import ASH, VRA, ReAct, Scale

SHAPINGS = [None, ReAct(0.9), VRA(), ASH(), Scale(quantile=0.5)]


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(5)
    head = LinearHead(rng.normal(size=(120, 24)), rng.normal(size=120))
    X = np.maximum(rng.normal(size=(1600, 24)), 0).astype(np.float32)
    return head, X[:900], X[900:]


@pytest.fixture(autouse=True)
def dispatch():
    with config_context(array_api_dispatch=True):
        yield


@pytest.mark.parametrize("shaping", SHAPINGS, ids=repr)
@pytest.mark.parametrize("score", ["energy", "max_logit", "msp", "gen"])
def test_results_are_those_of_numpy(problem, score, shaping):
    head, train, test = problem
    # Several blocks: a JAX array cannot be written into, so that the blocks are joined.
    detector = DICEDetector(head, score_func=score, shaping=shaping, batch_size=300).fit(train)
    given = jnp.asarray(test)
    scores, logits = detector.score_samples(given), detector.logits(given)
    prediction = detector.predict(given)
    for result in (scores, logits, prediction):
        assert isinstance(result, jax.Array)
    assert (scores.dtype, logits.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(scores, detector.score_samples(test), rtol=1e-5)
    np.testing.assert_allclose(logits, detector.logits(test), rtol=1e-5, atol=1e-4)
    margin = np.abs(detector.decision_function(test)) > 1e-4
    assert (np.asarray(prediction) == detector.predict(test))[margin].all()


@pytest.mark.parametrize("shaping", [None, ReAct(0.9)], ids=repr)
def test_fitting_and_calibrating_follow_x(problem, shaping):
    head, train, test = problem
    labels = np.ones(len(train), np.int32)
    labels[:50] = -1
    expected = DICEDetector(head, shaping=shaping).fit(train, labels)
    detector = DICEDetector(head, shaping=shaping).fit(jnp.asarray(train), jnp.asarray(labels))
    assert isinstance(detector.coef_, jax.Array)
    np.testing.assert_allclose(detector.mean_activation_, expected.mean_activation_, rtol=1e-6)
    np.testing.assert_allclose(detector.offset_, expected.offset_, rtol=1e-5)
    detector.calibrate(jnp.asarray(test), method="conformal")
    pvalues = detector.pvalues(jnp.asarray(test))
    assert isinstance(pvalues, jax.Array)
    expected.calibrate(test, method="conformal")
    np.testing.assert_allclose(pvalues, expected.pvalues(test), atol=2 / len(test))


def test_bfloat16_is_scored_in_single_precision(problem):
    head, train, test = problem
    detector = DICEDetector(head).fit(train)
    narrow = jnp.asarray(test, jnp.bfloat16)
    scores = detector.score_samples(narrow)
    assert isinstance(scores, jax.Array)
    assert scores.dtype == np.float32
    expected = detector.score_samples(np.asarray(narrow).astype(np.float32))
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    with config_context(array_api_dispatch=False):
        without = detector.score_samples(narrow)
    assert type(without) is np.ndarray
    np.testing.assert_array_equal(without, expected)
    fitted = DICEDetector(head).fit(jnp.asarray(train, jnp.bfloat16))
    assert isinstance(fitted.coef_, jax.Array)


def test_double_precision_where_jax_has_it(problem):
    head, train, test = problem
    detector = DICEDetector(head, batch_size=300).fit(train.astype(np.float64))
    expected = detector.score_samples(test.astype(np.float64))
    with jax.enable_x64(True):
        scores = detector.score_samples(jnp.asarray(test.astype(np.float64)))
        assert scores.dtype == np.float64
        np.testing.assert_allclose(scores, expected, rtol=1e-12)


@pytest.mark.parametrize("shaping", SHAPINGS[1:], ids=repr)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shapings_return_arrays_of_jax(problem, shaping, dtype):
    _, _, test = problem
    given = jnp.asarray(test, dtype)
    shaped = shaping.fit_transform(given)
    assert isinstance(shaped, jax.Array)
    assert shaped.dtype == np.float32
    single = np.asarray(given).astype(np.float32)
    with config_context(array_api_dispatch=False):
        expected = shaping.fit_transform(single)
    np.testing.assert_allclose(shaped, expected, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_named(problem, value):
    head, train, test = problem
    detector = DICEDetector(head, batch_size=128).fit(train)
    bad = jnp.asarray(test).at[401, 7].set(value)
    for method in (detector.score_samples, detector.logits, detector.fit):
        with pytest.raises(ValueError, match=r"(NaN|infinity).* row 401, column 7"):
            method(bad)
