"""Tests of the last step of a classifier, and of the features that enter its last layer."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.special import softmax
from sklearn.datasets import load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from skdice._last_layer import ACTIVATIONS, last_features, split_classifier, transform_rows

X, Y = load_iris(return_X_y=True)


def test_pipelines_searches_and_frozen_estimators_in_any_nesting():
    last = LogisticRegression(max_iter=500)
    inner = make_pipeline(StandardScaler(), last)
    search = GridSearchCV(inner, {"logisticregression__C": [1.0]}, cv=2)
    fitted = FrozenEstimator(make_pipeline(MinMaxScaler(), make_pipeline(search)).fit(X, Y))
    transformers, classifier = split_classifier(fitted)
    assert type(classifier) is LogisticRegression
    assert [type(each[-1]) for each in transformers] == [MinMaxScaler, StandardScaler]
    rows = transform_rows(transformers, X)
    np.testing.assert_array_equal(classifier.predict_proba(rows), fitted.predict_proba(X))
    assert last_features(classifier, rows) is rows


def test_a_classifier_of_its_own_is_the_last_step():
    classifier = LogisticRegression(max_iter=500).fit(X, Y)
    assert split_classifier(classifier) == ([], classifier)
    assert split_classifier(make_pipeline(classifier)) == ([], classifier)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(5,), (7, 6, 5)], ids=repr)
@pytest.mark.parametrize("kind", [np.asarray, csr_matrix])
def test_the_units_of_an_mlp_give_its_probabilities(activation, hidden, kind):
    network = MLPClassifier(hidden, activation=activation, max_iter=30, random_state=0).fit(X, Y)
    features = last_features(network, kind(X))
    logits = features @ network.coefs_[-1] + network.intercepts_[-1]
    np.testing.assert_allclose(softmax(logits, axis=1), network.predict_proba(X), rtol=1e-10)
    with pytest.raises(ValueError, match="X has 3 features, but MLPClassifier is expecting 4"):
        last_features(network, X[:, :3])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_an_mlp_without_hidden_layers_is_a_linear_classifier():
    network = MLPClassifier((), max_iter=30, random_state=0).fit(X, Y)
    assert last_features(network, X) is X
    with pytest.raises(TypeError, match="Sparse data enters MLPClassifier"):
        last_features(network, csr_matrix(X))


def test_sparse_features_name_the_way_out():
    classifier = LogisticRegression(max_iter=500).fit(csr_matrix(X), Y)
    with pytest.raises(TypeError, match=r"(?s)enters LogisticRegression.*\(150, 4\).*TruncatedSVD"):
        last_features(classifier, csr_matrix(X))


def test_all_activations_of_the_mlp_are_known():
    options = MLPClassifier._parameter_constraints["activation"][0].options
    assert set(ACTIVATIONS) == set(options)
