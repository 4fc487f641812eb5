"""Arrays of other libraries than NumPy: results follow their input."""

import pickle
from functools import partial

import pytest

pytest.importorskip("array_api_strict")
pytest.importorskip("torch")

import array_api_strict
import numpy as np
import torch
from sklearn import config_context
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import estimator_checks_generator

import skdice
from skdice import DICEDetector, LinearHead, metrics
from skdice.metrics import confidence_interval, evaluate
from skdice.metrics._counts import METRICS
from skdice.shaping import ASH, VRA, ReAct, Scale

SCORES = ["energy", "max_logit", "msp", "gen"]
SHAPINGS = [None, ReAct(), VRA(), ASH(), Scale(quantile=0.5)]


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(5)
    head = LinearHead(rng.normal(size=(120, 24)), rng.normal(size=120))
    return head, np.maximum(rng.normal(size=(900, 24)), 0), rng.normal(size=(700, 24))


def strict(X):
    return array_api_strict.asarray(X, device=array_api_strict.Device("device1"))


def to_numpy(array):
    return np.from_dlpack(array)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shaping", SHAPINGS, ids=repr)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("library", [torch.from_numpy, strict], ids=["torch", "strict"])
def test_results_are_those_of_numpy(problem, library, score, shaping, dtype):
    head, train, test = (problem[0], *(np.asarray(each, dtype) for each in problem[1:]))
    detector = DICEDetector(head, score_func=score, shaping=shaping, batch_size=300)
    expected = detector.fit(train).score_samples(test)
    with config_context(array_api_dispatch=True):
        scores = detector.score_samples(library(test))
        decision = detector.decision_function(library(test))
        prediction = detector.predict(library(test))
        logits = detector.logits(library(test))
    rtol = 1e-5 if dtype == np.float32 else 1e-12
    for result in (scores, decision, prediction, logits):
        assert type(result) is type(library(test))
        assert result.device == library(test).device
    np.testing.assert_allclose(to_numpy(scores), expected, rtol=rtol)
    assert to_numpy(scores).dtype == dtype
    np.testing.assert_allclose(to_numpy(logits), detector.logits(test), rtol=rtol, atol=10 * rtol)
    margin = np.abs(detector.decision_function(test)) > 1e-4
    assert (to_numpy(prediction) == detector.predict(test))[margin].all()


@pytest.mark.parametrize("library", [torch.from_numpy, strict], ids=["torch", "strict"])
def test_fitted_arrays_follow_x_and_a_pickle_holds_none_of_it(problem, library, tmp_path):
    head, train, test = problem
    expected = DICEDetector(head, shaping=ReAct()).fit(train)
    detector = DICEDetector(head, shaping=ReAct())
    labels = np.ones(len(train), dtype=np.int64)
    labels[:50] = -1
    with config_context(array_api_dispatch=True):
        detector.fit(library(train), library(labels))
        assert type(detector.coef_) is type(library(train))
        with pytest.raises(ValueError, match=r"must use the same namespace .* got ndarray"):
            detector.predict(test)
        scores = detector.score_samples(library(test))
    expected.fit(train, labels)
    np.testing.assert_allclose(to_numpy(detector.mean_activation_), expected.mean_activation_)
    np.testing.assert_allclose(to_numpy(scores), expected.score_samples(test), rtol=1e-12)
    np.testing.assert_allclose(detector.offset_, expected.offset_, rtol=1e-12)
    skdice.save(detector, tmp_path / "d.safetensors")
    copies = pickle.loads(pickle.dumps(detector)), skdice.load(tmp_path / "d.safetensors")
    for copy in copies:
        assert type(copy.coef_) is np.ndarray
        np.testing.assert_allclose(copy.score_samples(test), to_numpy(scores), rtol=1e-12)
        with config_context(array_api_dispatch=True):  # what was loaded follows any input
            assert type(copy.score_samples(library(test))) is type(library(test))


def test_partial_fit_and_calibrate_follow_too(problem):
    head, train, test = problem
    expected = DICEDetector(head).partial_fit(train).calibrate(test)
    detector = DICEDetector(head)
    with config_context(array_api_dispatch=True):
        for block in (train[:500], train[500:]):
            detector.partial_fit(strict(block))
        detector.calibrate(strict(test))
        assert type(detector.mean_activation_) is type(strict(train))
    np.testing.assert_allclose(
        to_numpy(detector.mean_activation_), expected.mean_activation_, rtol=1e-12
    )
    np.testing.assert_allclose(detector.offset_, expected.offset_, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tensors_are_scored_in_single(problem, dtype):
    head, train, test = problem
    detector = DICEDetector(head).fit(train)
    tensor = torch.from_numpy(test).to(dtype)
    scores = detector.score_samples(tensor)
    assert scores.dtype == torch.float32
    expected = detector.score_samples(tensor.double()).numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_integers_are_scored_in_double(problem):
    head, train, _ = problem
    detector = DICEDetector(head).fit(train)
    whole = torch.arange(48).reshape(2, 24)
    scores = detector.score_samples(whole)
    assert scores.dtype == torch.float64
    np.testing.assert_allclose(scores, detector.score_samples(whole.numpy()), rtol=1e-12)


def test_functions_of_the_user_get_numpy_arrays(problem):
    head, train, test = problem

    def margin(logits):
        assert type(logits) is np.ndarray
        top = np.sort(logits, axis=1)
        return top[:, -1] - top[:, -2]

    detector = DICEDetector(head, score_func=margin).fit(train)
    scores = detector.score_samples(torch.from_numpy(test))
    assert type(scores) is torch.Tensor
    np.testing.assert_allclose(scores, detector.score_samples(test))


@pytest.mark.parametrize("shaping", [None, ReAct(threshold=1.0), VRA(alpha=0.0, beta=1.0)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("library", [torch.from_numpy, strict], ids=["torch", "strict"])
def test_a_value_that_is_not_finite_is_named(problem, library, value, shaping):
    head, train, test = problem
    detector = DICEDetector(head, shaping=shaping, batch_size=128).fit(train)
    bad = test.copy()
    bad[401, 7] = value
    with config_context(array_api_dispatch=True):
        for method in (detector.score_samples, detector.logits, detector.fit):
            with pytest.raises(ValueError, match=r"(NaN|infinity).* row 401, column 7"):
                method(library(bad))


@pytest.mark.parametrize("library", [torch.from_numpy, strict], ids=["torch", "strict"])
@pytest.mark.parametrize("n_classes", [1, 2])
def test_the_generalised_entropy_hides_nothing(library, n_classes):
    head = LinearHead(np.array([[1.0, 2.0], [-1.0, -2.0]])[:n_classes])
    detector = DICEDetector(head, sparsity=0, score_func="gen").fit(np.eye(2))
    for bad in (np.inf, np.nan):
        with (
            config_context(array_api_dispatch=True),
            pytest.raises(ValueError, match="row 1, column 0"),
        ):
            detector.score_samples(library(np.array([[1.0, 1.0], [bad, 1.0]])))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("library", [torch.from_numpy, strict], ids=["torch", "strict"])
def test_large_logits_cost_no_precision(library, score):
    # The five classes' logits lie close together, and far from zero.
    logits = (10_000 + np.array([[0, 3.0, -5, -20, -1000], [1, 1, 1, 1, 1]])).astype(np.float32)
    detector = DICEDetector("identity", sparsity=0, score_func=score).fit(logits)
    expected = detector.score_samples(logits.astype(float))
    with config_context(array_api_dispatch=True):
        scores = to_numpy(detector.score_samples(library(logits)))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize("shaping", [ASH(), Scale(0.5)], ids=repr)
@pytest.mark.parametrize("library", [torch.from_numpy, strict], ids=["torch", "strict"])
def test_ties_are_shaped_alike_everywhere(problem, library, shaping):
    head = problem[0]
    X = np.random.default_rng(0).integers(0, 4, (200, 24)).astype(np.float32)
    detector = DICEDetector(head, shaping=shaping).fit(X)
    with config_context(array_api_dispatch=True):
        scores = to_numpy(detector.score_samples(library(X)))
    np.testing.assert_allclose(scores, detector.score_samples(X), rtol=1e-5)


@pytest.mark.parametrize("shaping", [ASH(0.5), Scale(0.5)], ids=repr)
@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy, strict])
def test_rows_without_a_positive_sum_are_named(library, shaping):
    detector = DICEDetector(LinearHead(np.ones((2, 8))), shaping=shaping).fit(np.ones((3, 8)))
    row = np.array([[0.0, 0, 0, 0, -1, -1, -1, -1]])
    with (
        config_context(array_api_dispatch=True),
        pytest.raises(ValueError, match="the score of row 0 is nan"),
    ):
        detector.score_samples(library(row))


def test_tensors_without_values_are_refused(problem):
    head, train, test = problem
    detector = DICEDetector(head).fit(train)
    with pytest.raises(ValueError, match="on the device 'meta'"):
        detector.score_samples(torch.ones(3, 24, device="meta"))
    with pytest.raises(TypeError, match="Sparse data was passed for X"):
        detector.score_samples(torch.from_numpy(test).to_sparse())


def test_a_default_device_of_torch_changes_nothing(problem):
    head, train, test = problem
    detector = DICEDetector(head).fit(train)
    with torch.device("meta"):
        scores = detector.score_samples(torch.from_numpy(test))
        module = detector.to_torch()
    np.testing.assert_allclose(scores, detector.score_samples(test), rtol=1e-12)
    assert {each.device.type for each in module.buffers()} == {"cpu"}


def test_large_logits_are_no_error():
    head = LinearHead(np.full((20, 2), 1e37, np.float32))
    detector = DICEDetector(head, sparsity=0).fit(np.zeros((3, 2), np.float32))
    X = np.full((2, 2), 2.0, np.float32)
    assert np.isfinite(detector.logits(X)).all()
    np.testing.assert_array_equal(detector.logits(torch.from_numpy(X)), detector.logits(X))


def test_a_score_out_of_range_is_named(problem):
    head, train, test = problem
    detector = DICEDetector(head).fit(train)
    large = test.astype(np.float32)
    large[400] = 3e38
    with pytest.raises(ValueError, match="the score of row 400 is"):
        detector.score_samples(torch.from_numpy(large))


def test_tensors_in_a_graph_and_on_strides(problem):
    head, train, test = problem
    detector = DICEDetector(head).fit(train)
    tensor = torch.from_numpy(np.ascontiguousarray(test.T)).T.requires_grad_()
    scores = detector.score_samples(tensor)
    assert not scores.requires_grad
    np.testing.assert_allclose(scores, detector.score_samples(test), rtol=1e-12)


def test_without_dispatch_other_arrays_are_converted(problem):
    head, train, test = problem
    detector = DICEDetector(head).fit(train)
    plain = array_api_strict.asarray(test)
    assert type(detector.score_samples(plain)) is np.ndarray


def test_every_check_of_array_api_support_that_can_run_here_does():
    names = {
        (check.keywords.get("array_namespace"), check.keywords.get("device_name"))
        for _, check in estimator_checks_generator(DICEDetector(head="identity"))
        if check.func.__name__ == "check_array_api_input"
    }
    # Newer versions of scikit-learn name the device, older ones do not.
    assert names >= {("array_api_strict", "device1"), ("torch", "cpu")} or names >= {
        ("array_api_strict", None),
        ("torch", None),
    }


@pytest.mark.parametrize("labels", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_outliers_among_the_rows_of_a_tensor_are_left_out(problem, labels):
    head, train, test = problem
    X = np.concatenate([train, test])
    y = np.repeat([1, -1], [len(train), len(test)])
    found = DICEDetector(head).fit(torch.from_numpy(X), labels(y))
    expected = DICEDetector(head).fit(train)
    np.testing.assert_array_equal(found.mean_activation_, expected.mean_activation_)
    np.testing.assert_allclose(found.offset_, expected.offset_, rtol=1e-12)
    assert found.n_samples_seen_ == len(train)


def with_gradient(X):
    """Return what NumPy does not take by itself, like a tensor on a GPU."""
    tensor = torch.from_numpy(X)
    return tensor.requires_grad_() if tensor.is_floating_point() else tensor


@pytest.mark.parametrize(
    ("library", "dispatch"), [(with_gradient, False), (with_gradient, True), (strict, True)]
)
def test_metrics_take_scores_and_labels_of_any_library(problem, library, dispatch):
    head, train, test = problem
    X, y = np.concatenate([train, test]), np.repeat([1, -1], [len(train), len(test)])
    detector = DICEDetector(head).fit(train)
    scores, classes = detector.score_samples(X), np.arange(len(train)) % 3
    functions = [getattr(metrics, name) for name in METRICS] + [confidence_interval]
    functions.append(partial(metrics.fpr_at_tpr, sample_weight=library(np.ones(len(y)))))
    expected = [function(y, scores) for function in functions[:-1]]
    expected.append(metrics.fpr_at_tpr(y, scores))
    report = evaluate(detector, train, {"test": test}, y_id=classes).to_dict()
    with config_context(array_api_dispatch=dispatch):
        for labels in (y, library(y)):
            found = [function(labels, library(scores)) for function in functions]
            assert found == expected
        of_library = evaluate(detector, train, {"test": test}, y_id=library(classes)).to_dict()
        pipeline = make_pipeline(detector)
        of_pipeline = evaluate(pipeline, library(train), {"test": library(test)}).to_dict()
    assert of_library == report
    (row,) = of_pipeline.values()
    assert row["mean"]["auroc"] == pytest.approx(report["DICEDetector"]["mean"]["auroc"])


@pytest.mark.parametrize("library", [torch.from_numpy, strict], ids=["torch", "strict"])
def test_class_means_of_any_library(problem, library):
    _, train, _ = problem
    y = np.arange(len(train)) % 3
    with config_context(array_api_dispatch=True):
        head = LinearHead.from_class_means(library(train), library(y))
    np.testing.assert_allclose(
        head.weight, LinearHead.from_class_means(train, y).weight, rtol=1e-12
    )
