import copy
import pickle
import tracemalloc

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.neighbors import NearestCentroid
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from skdice import DICEDetector, LinearHead
from skdice._head import as_linear_head

W = np.arange(6.0).reshape(2, 3)


def test_value_object():
    head = LinearHead(W, [1, 2])
    assert repr(head) == "LinearHead(n_classes=2, n_features=3, dtype=float64)"
    assert (head.n_classes, head.n_features) == (2, 3)
    assert head == LinearHead(W, [1, 2])
    assert hash(head) == hash(LinearHead(W, [1, 2]))
    assert head != LinearHead(W)
    assert head != LinearHead(W.astype(np.float32), [1, 2])
    assert head != "identity"
    # -0.0 equals 0.0, so the hashes must be the same.
    assert hash(LinearHead(W, [0.0, 0.0])) == hash(LinearHead(W, [-0.0, 0.0]))


def test_immutable():
    weight = W.copy()
    head = LinearHead(weight)
    weight[:] = -1
    np.testing.assert_array_equal(head.weight, W)
    np.testing.assert_array_equal(head.bias, [0, 0])
    with pytest.raises(ValueError, match="read-only"):
        head.weight[0, 0] = 1
    with pytest.raises(AttributeError, match="immutable: cannot set 'weight'"):
        head.weight = W
    with pytest.raises(AttributeError, match="immutable"):
        del head.bias
    with pytest.raises(AttributeError, match="immutable"):
        head.name = "fc"


def test_cloning_and_copying_return_the_same_object():
    head = LinearHead(W)
    assert clone(head) is head
    assert clone(DICEDetector(head)).head is head
    assert copy.copy(head) is head
    assert copy.deepcopy(head) is head


def test_pickle_keeps_it_equal_and_read_only():
    head = pickle.loads(pickle.dumps(LinearHead(W, [1, 2])))
    assert head == LinearHead(W, [1, 2])
    assert not head.weight.flags.writeable


@pytest.mark.parametrize(
    ("given", "kept"),
    [("float16", "float32"), ("float32", "float32"), (">f8", "float64"), ("int64", "float64")],
)
def test_dtypes(given, kept):
    head = LinearHead(W.astype(given), np.array([1, 2], given))
    assert head.weight.dtype == head.bias.dtype == kept
    np.testing.assert_array_equal(head.weight, W)


@pytest.mark.parametrize(
    ("weight", "bias", "error", "message"),
    [
        (W[0], None, ValueError, r"weight has shape \(3,\), expected \(n_classes, n_features\)"),
        (W[:0], None, ValueError, r"shape \(0, 3\)"),
        (W, [1.0], ValueError, r"bias has shape \(1,\), expected \(2,\)"),
        (W, 3.0, ValueError, r"bias has shape \(\)"),
        ([[1, np.nan], [1, 1]], None, ValueError, "weight contains nan for class 0"),
        (W, [0, -np.inf], ValueError, "bias contains -inf for class 1"),
        (W.astype("f4"), [0, 1e300], ValueError, "inf for class 1; .* finite in float32"),
        ([["a"]], None, TypeError, "weight has dtype <U1"),
        (W + 1j, None, TypeError, "dtype complex128"),
    ],
)
def test_bad_values_are_named(weight, bias, error, message):
    with pytest.raises(error, match=message):
        LinearHead(weight, bias)


@pytest.mark.parametrize(
    "classifier",
    [
        LogisticRegression(max_iter=1000),
        SGDClassifier(random_state=0),
        LinearSVC(),
        LinearDiscriminantAnalysis(),
    ],
    ids=lambda each: type(each).__name__,
)
def test_from_estimator_gives_its_decision(classifier):
    X, y = load_iris(return_X_y=True)
    head = LinearHead.from_estimator(classifier.fit(X, y))
    np.testing.assert_allclose(X @ head.weight.T + head.bias, classifier.decision_function(X))


def test_from_estimator_binary_is_symmetric_and_gives_its_probabilities():
    X, y = load_iris(return_X_y=True)
    X, y = X[50:], y[50:]
    classifier = LogisticRegression(max_iter=1000).fit(X, y)
    logits = X @ LinearHead.from_estimator(classifier).weight.T
    logits += LinearHead.from_estimator(classifier).bias
    np.testing.assert_allclose(logits[:, 0], -logits[:, 1])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, classifier.predict_proba(X))


def test_from_estimator_takes_sparse_coefficients():
    X, y = load_iris(return_X_y=True)
    classifier = SGDClassifier(penalty="l1", random_state=0).fit(X, y)
    dense = LinearHead.from_estimator(classifier)
    assert LinearHead.from_estimator(classifier.sparsify()) == dense


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (LinearRegression(), "expects a linear classifier, got LinearRegression"),
        (RandomForestClassifier(n_estimators=2), "RandomForestClassifier has no coef_"),
        (NearestCentroid(), "NearestCentroid has no coef_"),
        (SVC(kernel="linear"), "one row per class"),
        (make_pipeline(StandardScaler(), RandomForestClassifier(2)), "Forest.* has no coef_.*that"),
        (make_pipeline(StandardScaler()), "expects a linear classifier, got StandardScaler"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_from_estimator_refuses_others(estimator, message):
    estimator.fit(*load_iris(return_X_y=True))
    with pytest.raises(TypeError, match=message):
        LinearHead.from_estimator(estimator)


def test_from_estimator_takes_a_binary_ridge_classifier_whose_coef_is_a_vector():
    X, y = load_iris(return_X_y=True)
    classifier = RidgeClassifier().fit(X[y < 2], y[y < 2])
    head = LinearHead.from_estimator(classifier)
    logits = X @ head.weight.T + head.bias
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], classifier.decision_function(X))


@pytest.mark.parametrize("thing", ["fc", None])
def test_from_estimator_refuses_other_objects(thing):
    with pytest.raises(TypeError, match="expects a linear classifier, got"):
        LinearHead.from_estimator(thing)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "classifier", [RidgeClassifier(), MLPClassifier((4,), max_iter=2, random_state=0)], ids=repr
)
def test_from_estimator_refuses_several_labels_at_once(classifier):
    X, y = load_iris(return_X_y=True)
    classifier.fit(X, np.eye(3, dtype=int)[y] | np.eye(3, dtype=int)[0])
    with pytest.raises(TypeError, match="several labels at once"):
        LinearHead.from_estimator(classifier)


@pytest.mark.parametrize(
    "estimator",
    [LogisticRegression(), MLPClassifier(), make_pipeline(StandardScaler(), LogisticRegression())],
    ids=repr,
)
def test_from_estimator_refuses_an_unfitted_one(estimator):
    with pytest.raises(NotFittedError):
        LinearHead.from_estimator(estimator)


def test_from_estimator_takes_the_last_step_of_a_pipeline():
    X, y = load_iris(return_X_y=True)
    last = make_pipeline(StandardScaler(), LogisticRegression())
    pipeline = make_pipeline(StandardScaler(), last).fit(X, y)
    head = LinearHead.from_estimator(pipeline)
    assert head == LinearHead.from_estimator(last[-1])
    features = last[:-1].transform(pipeline[:-1].transform(X))
    logits = features @ head.weight.T + head.bias
    np.testing.assert_allclose(logits, pipeline.decision_function(X))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("hidden", [(), (7,), (8, 6)], ids=repr)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_from_estimator_takes_the_output_layer_of_an_mlp(n_classes, hidden):
    X, y = load_iris(return_X_y=True)
    X, y = X[y < n_classes], y[y < n_classes]
    network = MLPClassifier(hidden, max_iter=20, random_state=0).fit(X, y)
    head = LinearHead.from_estimator(network)
    assert head.weight.shape == (n_classes, hidden[-1] if hidden else 4)
    features = X
    for weight, bias in zip(network.coefs_[:-1], network.intercepts_[:-1], strict=True):
        features = np.maximum(features @ weight + bias, 0)
    probabilities = softmax(features @ head.weight.T + head.bias, axis=1)
    np.testing.assert_allclose(probabilities, network.predict_proba(X), rtol=1e-10)


def test_from_estimator_takes_a_classifier_that_knows_column_names():
    """The row on which the classifier is tried has no names, which must not lead to a warning."""
    pytest.importorskip("pandas")
    X, y = load_iris(return_X_y=True, as_frame=True)
    classifier = LogisticRegression(max_iter=1000).fit(X, y)
    assert LinearHead.from_estimator(classifier).weight.shape == (3, 4)
    assert list(classifier.feature_names_in_) == list(X.columns)


@pytest.mark.parametrize("head", [LinearHead(W), (W, None), (W, [0, 0]), W, W.tolist()])
def test_as_linear_head_takes_each_form(head):
    assert as_linear_head(head, 3) == LinearHead(W)


def test_as_linear_head_keeps_the_object_and_makes_the_identity():
    head = LinearHead(W)
    assert as_linear_head(head, 3) is head
    assert as_linear_head("identity", 3) == LinearHead(np.eye(3, dtype=np.float32))


@pytest.mark.parametrize(
    ("head", "error", "message"),
    [
        (None, ValueError, r"head is None, expected .* a LinearHead .* a tuple \(weight, bias\)"),
        ("fc", ValueError, "head is 'fc', expected"),
        ((W,), ValueError, r"head is a tuple of 1, expected \(weight, bias\)"),
        (W[0], ValueError, r"weight has shape \(3,\), expected \(n_classes, n_features\)"),
        (W[:, :2], ValueError, r"X has 3 .* the head expects 2: its weight has shape \(2, 2\)$"),
        (W.T, ValueError, r"has shape \(3, 2\); transpose the weight if its rows are features"),
        (object(), TypeError, "weight has dtype object, expected real numbers"),
        (LogisticRegression(), TypeError, "got LogisticRegression; .*from_estimator"),
    ],
)
def test_as_linear_head_refuses_other_heads(head, error, message):
    with pytest.raises(error, match=message):
        as_linear_head(head, 3)


def test_from_class_means_is_the_nearest_class_mean():
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    head = LinearHead.from_class_means(X.astype(np.float32), names)
    nearest = NearestCentroid().fit(X.astype(np.float32).astype(float), y)
    np.testing.assert_allclose(head.weight, nearest.centroids_, rtol=1e-12)
    assert ((X @ head.weight.T + head.bias).argmax(axis=1) == nearest.predict(X)).all()


def test_from_class_means_works_in_blocks():
    X, y = np.ones((200_000, 8), np.float32), np.arange(200_000) % 500
    tracemalloc.start()
    LinearHead.from_class_means(X, y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64e6


def test_from_class_means_names_a_bad_row():
    X, y = load_iris(return_X_y=True)
    X[149, 2] = np.inf
    with pytest.raises(ValueError, match="row 149, column 2"):
        LinearHead.from_class_means(X, y)
    with pytest.raises(ValueError, match="y has 3 labels, but X has 150 rows"):
        LinearHead.from_class_means(X, y[:3])
