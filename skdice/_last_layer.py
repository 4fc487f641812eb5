"""The last step of a fitted scikit-learn classifier, and the features that enter its last layer."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from scipy.special import expit
from sklearn.frozen import FrozenEstimator
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import validate_data

# The activations of the hidden units of MLPClassifier, by the names of its parameter.
ACTIVATIONS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "identity": lambda values: values,
    "logistic": expit,
    "relu": lambda values: np.maximum(values, 0),
    "tanh": np.tanh,
}


def split_classifier(classifier: Any) -> tuple[list[Any], Any]:
    """Return the fitted transformers before the last step of a classifier, and the last step.

    Parameters
    ----------
    classifier : fitted classifier
        A `Pipeline`, a search such as `GridSearchCV`, a `FrozenEstimator`, or any nesting of
        these; any other classifier is itself the last step.
    """
    transformers = []
    while True:
        if isinstance(classifier, FrozenEstimator):
            classifier = classifier.estimator
        elif hasattr(classifier, "best_estimator_"):
            classifier = classifier.best_estimator_
        elif isinstance(classifier, Pipeline):
            if len(classifier.steps) > 1:
                transformers.append(classifier[:-1])
            classifier = classifier.steps[-1][1]
        else:
            return transformers, classifier


def transform_rows(transformers: list[Any], rows: Any) -> Any:
    """Return the rows after all transformers, in their order."""
    for transformer in transformers:
        rows = transformer.transform(rows)
    return rows


def hidden_activations(network: MLPClassifier, rows: Any) -> NDArray[Any]:
    """Return the activations of the last hidden layer, which enter the output layer."""
    sparse_formats = ("csr", "csc", "coo")
    values: NDArray[Any] = validate_data(network, rows, reset=False, accept_sparse=sparse_formats)
    activation = ACTIVATIONS[network.activation]
    for weight, bias in zip(network.coefs_[:-1], network.intercepts_[:-1], strict=True):
        values = activation(values @ weight + bias)
    return values


def last_features(classifier: Any, rows: Any) -> Any:
    """Return the features that enter the last linear layer of a fitted classifier.

    Parameters
    ----------
    classifier : fitted classifier
        The last step of `split_classifier`.
    rows : array-like of shape (n_samples, n_inputs)
        The rows that enter the classifier.

    Raises
    ------
    TypeError
        The features are a sparse matrix.
    """
    if isinstance(classifier, MLPClassifier) and len(classifier.coefs_) > 1:
        return hidden_activations(classifier, rows)
    if issparse(rows):
        raise TypeError(
            f"Sparse data enters {type(classifier).__name__}: {rows!r}, but the detectors need "
            "dense features; put a transformer such as TruncatedSVD before the classifier, in a "
            "Pipeline"
        )
    return rows
