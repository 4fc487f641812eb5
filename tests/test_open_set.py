"""Tests of OpenSetClassifier: a class, or unknown, with a promised rate of false alarms."""

import pickle
from functools import partial

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
from scipy.sparse import csr_matrix
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.decomposition import TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Perceptron, RidgeClassifier, SGDClassifier
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_score,
    train_test_split,
)
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import (
    check_dataframe_column_names_consistency,
    check_estimator,
    check_param_validation,
)

from skdice import (
    ConformalEnsemble,
    DICEDetector,
    FDBDDetector,
    LinearHead,
    OpenSetClassifier,
    ViMDetector,
    make_ensemble,
)
from skdice.io import open_features, save_features

ENERGY = DICEDetector(None, sparsity=0)


@pytest.fixture(scope="module")
def digits():
    """Rows and labels of the digits 0 to 9; 8 and 9 have the label -1."""
    X, y = load_digits(return_X_y=True)
    y[y >= 8] = -1
    return X / 16, y


@pytest.fixture(scope="module")
def known(digits):
    X, y = digits
    return X[y >= 0], y[y >= 0]


def model(estimator=None, detector=ENERGY, **parameters):
    estimator = LogisticRegression(max_iter=300) if estimator is None else estimator
    return OpenSetClassifier(estimator, detector, **{"random_state": 0} | parameters)


# scikit-learn's battery.


class Relabelled(OpenSetClassifier):
    """An unknown label that fits every y, because the battery has several types of labels."""

    def _checked_unknown_label(self, labels):
        return -99 if labels.dtype.kind in "biuf" else "unknown"


# These checks ask for what a classifier that may say "unknown" must not do.
PREDICTS_UNKNOWN = {
    "check_classifiers_one_label_sample_weights": "predict must give classes only",
    "check_classifiers_classes": "predict must give the class of the largest probability",
    "check_classifiers_train": "predict must give the class of the largest probability",
}
# The p-values of the ensemble are steps at the scores of the rows of fit. The check scores just
# these rows, in blocks of two sizes, whose scores differ by rounding.
ON_A_STEP = {"check_methods_subset_invariance": "scores of the rows of fit are on a step"}
NEED_OTHER_LIBRARIES = {"check_array_api_input", "check_array_api_mixed_inputs"}


@pytest.mark.filterwarnings("ignore:.*fewer than the .* features")
@pytest.mark.filterwarnings("ignore:.*nothing but rounding")
@pytest.mark.filterwarnings("ignore:alpha_ is -")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("detector", "expected"),
    [(ENERGY, PREDICTS_UNKNOWN), (None, PREDICTS_UNKNOWN | ON_A_STEP)],
    ids=["energy", "ensemble"],
)
def test_battery(detector, expected):
    # The battery fits as few as 6 rows of a class, of which a half must be enough to calibrate.
    estimator = Relabelled(
        LogisticRegression(), detector, contamination=0.25, calibration_size=0.5, random_state=0
    )
    results = check_estimator(
        estimator, on_fail=None, on_skip=None, expected_failed_checks=expected
    )
    by_status = {}
    for result in results:
        by_status.setdefault(result["status"], []).append(result["check_name"])
    assert set(by_status.pop("skipped", [])) <= NEED_OTHER_LIBRARIES
    assert set(by_status.pop("xfail")) == set(expected)
    assert set(by_status) == {"passed"}
    assert len(by_status["passed"]) >= 47


@pytest.mark.filterwarnings("ignore:.*fewer than the .* features")
def test_checks_that_the_battery_leaves_out():
    estimator = Relabelled(
        LogisticRegression(), ENERGY, contamination=0.25, calibration_size=0.5, random_state=0
    )
    check_param_validation("Relabelled", estimator)
    check_dataframe_column_names_consistency("Relabelled", estimator)


@pytest.mark.parametrize(
    ("names", "unknown_label"),
    [
        (np.array(["one", "two", "three"]), "unknown"),
        (np.array(["one", "two", "three"], dtype=object), "unknown"),
        (np.array([1, 2, 3], dtype=np.uint8), -1),
        (np.array([-1, 0, 1]), 7),
        (np.array([1.0, 2.0, 4.0]), -1),
        (np.array([False, True, True]), -1),
    ],
    ids=["text", "object", "uint8", "negative", "float", "bool"],
)
def test_a_row_that_is_not_unknown_has_the_class_of_the_largest_probability(names, unknown_label):
    X, places = make_blobs(n_samples=300, centers=3, random_state=0)
    fitted = model(unknown_label=unknown_label).fit(X, names[places])
    predicted, flagged = fitted.predict(X), fitted.is_unknown(X)
    assert 0 < flagged.mean() < 0.2
    np.testing.assert_array_equal(predicted == unknown_label, flagged)
    best = fitted.classes_[fitted.predict_proba(X).argmax(axis=1)]
    np.testing.assert_array_equal(fitted.predict_known(X), best)
    np.testing.assert_array_equal(predicted[~flagged], best[~flagged])
    np.testing.assert_array_equal(fitted.classes_, np.unique(names))
    assert (predicted.dtype == object) == (names.dtype == object)


# The classifier, its head and its features.

CLASSIFIERS = {
    "logistic": LogisticRegression(max_iter=300),
    "sgd": SGDClassifier(random_state=0),
    "svc": LinearSVC(),
    "ridge": RidgeClassifier(),
    "lda": LinearDiscriminantAnalysis(),
    "perceptron": Perceptron(),
    **{
        f"mlp {activation}": MLPClassifier(
            (12, 10), activation=activation, max_iter=60, tol=1e-2, random_state=0
        )
        for activation in ("relu", "tanh", "logistic", "identity")
    },
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("in_pipeline", [False, True], ids=["alone", "pipeline"])
@pytest.mark.parametrize("classifier", CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_head_and_features_are_those_of_the_classifier(known, classifier, in_pipeline, n_classes):
    X, y = known
    X, y = X[y < n_classes], y[y < n_classes]
    X = X[:, X.std(axis=0) > 0]
    estimator = make_pipeline(StandardScaler(), classifier) if in_pipeline else classifier
    fitted = model(estimator).fit(X, y)
    head, features = fitted.detector_.head_, fitted.features(X)
    logits = features @ head.weight.T + head.bias
    expected = fitted.estimator_.predict(X)
    np.testing.assert_array_equal(fitted.classes_[logits.argmax(axis=1)], expected)
    flagged = fitted.is_unknown(X)
    np.testing.assert_array_equal(fitted.predict(X), np.where(flagged, -1, expected))
    np.testing.assert_array_equal(flagged, fitted.detector_.predict(features) == -1)
    assert flagged.mean() < 0.15


def test_fit_does_what_can_be_done_by_hand(known):
    X, y = known
    estimator = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    fitted = OpenSetClassifier(
        estimator, contamination=0.1, calibration_size=0.3, confidence=0.9, random_state=3
    ).fit(X, y)
    train, apart = train_test_split(np.arange(len(y)), test_size=0.3, stratify=y, random_state=3)
    by_hand = clone(estimator).fit(X[train], y[train])
    features = by_hand[:-1].transform
    detector = make_ensemble(LinearHead.from_estimator(by_hand)).fit(features(X[train]))
    detector.calibrate(features(X[apart]), 0.1, method="conformal", confidence=0.9)
    np.testing.assert_array_equal(fitted.predict_proba(X), by_hand.predict_proba(X))
    np.testing.assert_array_equal(fitted.decision_function(X), by_hand.decision_function(X))
    np.testing.assert_array_equal(fitted.score_samples(X), detector.score_samples(features(X)))
    np.testing.assert_array_equal(fitted.pvalues(X), detector.pvalues(features(X)))
    assert fitted.detector_.offset_ == detector.offset_
    assert fitted.detector_.calibration_.n_samples == len(apart)
    assert fitted.detector_.calibration_.confidence == 0.9
    assert fitted.n_features_in_ == 64


def test_calibration_size_may_be_a_number_of_rows(known):
    assert model(calibration_size=100).fit(*known).detector_.calibration_.n_samples == 100


@pytest.mark.parametrize(
    "detector",
    [
        DICEDetector(None, sparsity=0.1),
        FDBDDetector(None),
        ViMDetector(None),
        ConformalEnsemble([("energy", ENERGY), ("forest", IsolationForest(random_state=0))]),
        make_ensemble(None, combination="min"),
        IsolationForest(random_state=0),
        make_pipeline(FunctionTransformer(), IsolationForest(random_state=0)),
        make_pipeline(FunctionTransformer(), ENERGY),
    ],
    ids=lambda detector: type(detector).__name__,
)
def test_any_detector(known, detector):
    X, y = known
    before = repr(detector.get_params())
    fitted = model(detector=detector).fit(X, y)
    assert fitted.is_unknown(X).mean() < 0.15
    assert repr(detector.get_params()) == before
    # The classifier's head is in every place for a head.
    heads = [value for key, value in fitted.detector_.get_params().items() if "head" in key]
    assert all(head == LinearHead.from_estimator(fitted.estimator_) for head in heads)


def test_a_head_that_is_given_stays(known):
    X, y = known
    head = LinearHead.from_class_means(X, y)
    forest = RandomForestClassifier(20, random_state=0)
    fitted = model(forest, DICEDetector(head, sparsity=0)).fit(X, y)
    assert fitted.detector_.head_ is head


def test_a_classifier_without_a_linear_head(known):
    X, y = known
    forest = make_pipeline(StandardScaler(), RandomForestClassifier(20, random_state=0))
    fitted = model(forest, IsolationForest(random_state=0)).fit(X, y)
    assert 0 < fitted.is_unknown(X).mean() < 0.15
    np.testing.assert_array_equal(fitted.features(X), fitted.estimator_[:-1].transform(X))
    with pytest.raises(AttributeError, match="decision_function"):
        fitted.decision_function(X)
    for detector in (None, ENERGY):
        with pytest.raises(TypeError, match=r"RandomForestClassifier has no .*IsolationForest\(\)"):
            model(forest, detector).fit(X, y)


def test_a_search_as_the_classifier(known):
    X, y = known
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    search = GridSearchCV(pipeline, {"logisticregression__C": [0.01, 1]}, cv=2)
    fitted = model(search).fit(X, y)
    best = fitted.estimator_.best_estimator_
    assert fitted.detector_.head_ == LinearHead.from_estimator(best)
    np.testing.assert_array_equal(fitted.features(X), best[:-1].transform(X))


def test_predict_runs_the_steps_before_the_last_once(known):
    X, y = known
    calls = []
    transformer = FunctionTransformer(lambda rows: calls.append(len(rows)) or rows)
    fitted = model(make_pipeline(transformer, LogisticRegression(max_iter=300))).fit(X, y)
    calls.clear()
    fitted.predict(X[:10])
    assert calls == [10]


# A classifier that is fitted already.


@pytest.mark.parametrize("in_pipeline", [False, True])
def test_a_frozen_classifier_is_not_fitted_again(known, in_pipeline):
    X, y = known
    inner = LogisticRegression(max_iter=300).fit(X[::2], y[::2])
    frozen = FrozenEstimator(inner)
    estimator = make_pipeline(FunctionTransformer(), frozen) if in_pipeline else frozen
    fitted = model(estimator).fit(X[1::2], y[1::2])
    np.testing.assert_array_equal(fitted.predict_proba(X), inner.predict_proba(X))
    assert fitted.detector_.head_ == LinearHead.from_estimator(inner)
    n_apart = fitted.detector_.calibration_.n_samples
    assert fitted.detector_.n_samples_seen_ + n_apart == len(y[1::2])


def test_a_frozen_pipeline(known):
    X, y = known
    inner = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(X, y)
    fitted = model(FrozenEstimator(inner)).fit(X, y)
    np.testing.assert_array_equal(fitted.features(X), inner[:-1].transform(X))


def test_labels_that_do_not_fit_a_frozen_classifier(known):
    X, y = known
    frozen = FrozenEstimator(LogisticRegression(max_iter=300).fit(X, y))
    with pytest.raises(ValueError, match="unknown_label is 3, which is a class of the fitted"):
        model(frozen, unknown_label=3).fit(X, y)
    with pytest.raises(ValueError, match=r"y holds 70, which is neither a class .* label the rows"):
        model(frozen).fit(X, np.where(y == 7, 70, y))


# Unknown rows judge and are never fitted on.


def test_rows_labelled_unknown_have_no_part_in_the_fit(digits):
    X, y = digits
    wild = np.where((y == -1)[:, None], 1e6, X)
    with_unknown = model().fit(wild, y)
    without = model().fit(X[y != -1], y[y != -1])
    np.testing.assert_array_equal(with_unknown.score_samples(X), without.score_samples(X))
    np.testing.assert_array_equal(with_unknown.predict(X), without.predict(X))
    assert -1 not in with_unknown.classes_


def test_score_takes_an_unknown_row_that_is_called_unknown_for_right(digits):
    X, y = digits
    fitted = model().fit(X, y)
    predicted = fitted.predict(X)
    caught = (predicted == -1)[y == -1]
    right = (predicted == y)[y != -1]
    assert caught.mean() > 0.3
    assert fitted.score(X, y) == (caught.sum() + right.sum()) / len(y)


def test_cross_validation_with_unknown_rows(digits):
    X, y = digits
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    scores = cross_val_score(model(), X, y, cv=folds)
    assert (scores > 0.8).all()


def test_grid_search_over_classifier_and_detector(digits):
    X, y = digits
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    search = GridSearchCV(
        model(pipeline, DICEDetector(None)),
        {"estimator__logisticregression__C": [1e-3, 1.0], "detector__sparsity": [0, 0.9]},
        cv=StratifiedKFold(2, shuffle=True, random_state=0),
    ).fit(X, y)
    assert search.best_params_["detector__sparsity"] == 0
    assert len(np.unique(search.cv_results_["mean_test_score"])) == 4
    assert search.best_estimator_.detector_.sparsity == 0
    assert search.score(X, y) > 0.85


def test_parameters_of_the_members_of_the_default():
    search = model(detector=make_ensemble(None))
    search.set_params(detector__dice__sparsity=0.3, estimator__C=2.0)
    assert dict(search.detector.estimators)["dice"].sparsity == 0.3
    assert clone(search).get_params()["detector__dice__sparsity"] == 0.3


# The promise.


@pytest.mark.parametrize("confidence", [None, 0.9])
@pytest.mark.parametrize("n_classes", [2, 5])
def test_the_share_of_known_rows_called_unknown(n_classes, confidence):
    """Over 300 draws of all rows, in a stratified split, the promise is kept."""
    rng = np.random.default_rng(n_classes)
    centres = 3 * rng.normal(size=(n_classes, 4))
    probabilities = rng.dirichlet(np.ones(n_classes) * 3)

    def draw(n_rows):
        y = rng.choice(n_classes, n_rows, p=probabilities)
        return centres[y] + rng.normal(size=(n_rows, 4)), y

    classifier = FrozenEstimator(LogisticRegression(C=0.1).fit(*draw(500)))
    X_new, _ = draw(4000)
    shares = []
    for seed in range(300):
        X, y = draw(160)
        kept = np.isin(y, np.flatnonzero(np.bincount(y) > 1))
        fitted = model(
            classifier,
            contamination=0.1,
            calibration_size=0.5,
            confidence=confidence,
            random_state=seed,
        ).fit(X[kept], y[kept])
        shares.append(fitted.is_unknown(X_new).mean())
    if confidence is None:
        error = np.std(shares) / np.sqrt(len(shares))
        assert np.mean(shares) < 0.1 + 3 * error
        assert np.mean(shares) > 0.08
    else:
        # The rows of X_new blur each share a little; 3 standard deviations of the count of draws.
        kept_promise = np.mean(np.array(shares) <= 0.1)
        assert kept_promise > confidence - 3 * np.sqrt(confidence * (1 - confidence) / 300)
        assert np.mean(shares) > 0.03


def test_every_predicted_class_has_a_threshold_of_its_own(digits):
    X, y = digits
    fitted = model(by="prediction", contamination=0.1, calibration_size=0.4).fit(X, y)
    assert fitted.detector_.calibration_.by == "prediction"
    assert len(fitted.detector_.fallback_classes_) == 0
    offsets = fitted.detector_.class_offsets_
    assert len(set(offsets)) == len(fitted.classes_)
    places = np.searchsorted(fitted.classes_, fitted.predict_known(X))
    expected = fitted.score_samples(X) < offsets[places]
    np.testing.assert_array_equal(fitted.is_unknown(X), expected)
    np.testing.assert_array_equal(fitted.pvalues(X) <= 0.1, expected)


def test_pvalues_and_the_threshold_agree(digits):
    X, y = digits
    fitted = model(contamination=0.1).fit(X, y)
    pvalues = fitted.pvalues(X)
    assert ((pvalues > 0) & (pvalues <= 1)).all()
    np.testing.assert_array_equal(pvalues <= 0.1, fitted.is_unknown(X))


# Inputs of other forms, and where estimators go.


@pytest.mark.parametrize("estimator", [None, make_pipeline(StandardScaler(), MLPClassifier((5,)))])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_clone_pickle_joblib_and_skops(known, tmp_path, estimator):
    X, y = known
    fitted = model(estimator, None).fit(X, y)
    expected, scores = fitted.predict(X), fitted.score_samples(X)
    joblib.dump(fitted, tmp_path / "model.joblib")
    content = skops.io.dumps(fitted)
    trusted = skops.io.get_untrusted_types(data=content)
    assert all(name.startswith(("skdice.", "sklearn.neural_network.")) for name in trusted)
    for loaded in (
        pickle.loads(pickle.dumps(fitted)),
        joblib.load(tmp_path / "model.joblib"),
        skops.io.loads(content, trusted=trusted),
    ):
        np.testing.assert_array_equal(loaded.predict(X), expected)
        np.testing.assert_array_equal(loaded.score_samples(X), scores)
    with pytest.raises(NotFittedError):
        clone(fitted).predict(X)


def test_data_frames(known):
    X, y = known
    frame = pd.DataFrame(X).add_prefix("pixel_")
    fitted = model().fit(frame, pd.Series(y))
    np.testing.assert_array_equal(fitted.feature_names_in_, frame.columns)
    np.testing.assert_array_equal(fitted.predict(frame), model().fit(X, y).predict(X))
    assert not hasattr(fitted.fit(X, y), "feature_names_in_")


def test_feature_files(known, tmp_path):
    X, y = known
    save_features(tmp_path / "rows.npy", X)
    rows = open_features(tmp_path / "rows.npy")
    for estimator in (None, make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))):
        expected = model(estimator).fit(X, y)
        fitted = model(estimator).fit(rows, y)
        np.testing.assert_array_equal(fitted.predict(rows), expected.predict(X))
        np.testing.assert_array_equal(fitted.pvalues(rows), expected.pvalues(X))


def test_texts():
    rng = np.random.default_rng(0)
    words = {"sea": ["wave", "boat", "salt", "fish"], "sky": ["cloud", "bird", "wind", "sun"]}
    labels = rng.choice(list(words), 200)
    texts = [" ".join(rng.choice(words[label], 6)) for label in labels]
    pipeline = make_pipeline(TfidfVectorizer(), TruncatedSVD(4), LogisticRegression())
    fitted = model(pipeline, unknown_label="unknown", contamination=0.1).fit(texts, labels)
    predicted = fitted.predict(texts)
    assert set(predicted) == {"sea", "sky", "unknown"}
    assert (predicted != "unknown").mean() > 0.8
    assert not hasattr(fitted, "n_features_in_")
    with pytest.raises(TypeError, match=r"(?s)Sparse data enters LogisticRegression.*SVD"):
        model(make_pipeline(TfidfVectorizer(), LogisticRegression()), unknown_label="unknown").fit(
            texts, labels
        )


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_sparse_rows_where_the_features_are_dense(known):
    X, y = known
    for estimator in (
        MLPClassifier((8,), max_iter=20, random_state=0),
        make_pipeline(TruncatedSVD(10, random_state=0), LogisticRegression(max_iter=300)),
    ):
        dense, sparse = model(estimator).fit(X, y), model(estimator).fit(csr_matrix(X), y)
        np.testing.assert_allclose(
            sparse.score_samples(csr_matrix(X)), dense.score_samples(X), rtol=1e-6
        )


def test_sample_weight_reaches_the_classifier(known):
    X, y = known
    weight = np.random.default_rng(0).random(len(y))
    train, _ = train_test_split(np.arange(len(y)), test_size=0.2, stratify=y, random_state=0)
    expected = LogisticRegression(max_iter=300).fit(X[train], y[train], weight[train])
    pipeline = make_pipeline(FunctionTransformer(), LogisticRegression(max_iter=300))
    plain = model().fit(X, y, sample_weight=weight)
    nested = model(pipeline).fit(X, y, logisticregression__sample_weight=weight)
    with config_context(enable_metadata_routing=True):
        request = LogisticRegression(max_iter=300).set_fit_request(sample_weight=True)
        routed = model(make_pipeline(FunctionTransformer(), request)).fit(
            X, y, sample_weight=weight
        )
        weighted = model(request).set_score_request(sample_weight=True)
        scores = cross_val_score(weighted, X, y, params={"sample_weight": weight}, cv=2)
        assert (scores > 0.7).all()
        with pytest.raises(TypeError, match="unexpected argument"):
            model().fit(X, y, other=weight)
    for fitted in (plain, nested, routed):
        np.testing.assert_allclose(fitted.predict_proba(X), expected.predict_proba(X))


# Bad input.


def test_too_few_classes(known):
    X, y = known
    with pytest.raises(ValueError, match=r"y has 1 class, 3, besides the unknown_label -1"):
        model().fit(X, np.full(len(y), 3))
    with pytest.raises(ValueError, match=r"1 class, 1, .* unknown_label is one of your classes"):
        model().fit(X, np.where(y > 3, 1, -1))
    with pytest.raises(ValueError, match=r"y has no class besides the unknown_label -1"):
        model().fit(X, np.full(len(y), -1))


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({}, "sets 8 of 40 .* contamination of 0.05 needs at least 19 calibration rows"),
        ({"confidence": 0.95}, "0.05 with confidence 0.95 needs at least 59 calibration rows"),
        ({"calibration_size": 18}, "calibration_size=18 sets 18 of 40 .* at least 19"),
        ({"calibration_size": 39, "contamination": 0.5}, "sets 39 of 40 .* expected 2 to 38"),
        ({"calibration_size": 40}, "sets 40 of 40 .* expected 2 to 38, because each of the 2"),
        ({"calibration_size": 1, "contamination": 0.5}, "sets 1 of 40 .* expected 2 to 38"),
    ],
)
def test_too_few_calibration_rows_say_how_many(parameters, reason):
    X, y = make_blobs(n_samples=40, centers=2, random_state=0)
    with pytest.raises(ValueError, match=reason):
        model(**parameters).fit(X, y)


def test_the_smallest_calibration_that_is_not_refused():
    X, y = make_blobs(n_samples=40, centers=2, random_state=0)
    assert model(calibration_size=19).fit(X, y).detector_.calibration_.rank == 1


def test_a_class_with_a_single_row(known):
    X, y = known
    y = y.copy()
    y[0] = 77
    with pytest.raises(ValueError, match="the class 77 has 1 row, expected at least 2"):
        model().fit(X, y)


@pytest.mark.parametrize(
    ("classes", "unknown_label", "reason"),
    [
        (["cat", "dog"], -1, r"-1, but the classes are text such as '(cat|dog)'.*'unknown'"),
        ([0, 1], "unknown", r"'unknown', but the classes are numbers such as [01].*label=-1"),
        ([0, 1], None, r"None, but the classes are numbers"),
        ([0, 1], float("nan"), r"nan, but the classes are numbers"),
    ],
)
def test_an_unknown_label_of_another_type(known, classes, unknown_label, reason):
    X, y = known
    with pytest.raises(ValueError, match="unknown_label is " + reason):
        model(unknown_label=unknown_label).fit(X, np.array(classes)[y % 2])


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"contamination": 5}, r"contamination.*did you mean 0.05\?"),
        ({"calibration_size": 0}, "calibration_size"),
        ({"confidence": 1.0}, "confidence"),
        ({"by": "class"}, "by"),
        ({"detector": "dice"}, "detector"),
        ({"detector": partial}, "detector"),
        ({"estimator": None}, "estimator"),
    ],
)
def test_bad_parameters(known, parameters, reason):
    with pytest.raises(ValueError, match=f"The '{reason}"):
        model().set_params(**parameters).fit(*known)


def test_a_fit_that_fails_changes_nothing(known):
    X, y = known
    fitted = model().fit(X, y)
    before = vars(fitted).copy()
    with pytest.raises(ValueError, match="1 class"):
        fitted.fit(X[:, :3], np.ones(len(y)))
    with pytest.raises(TypeError, match="Sparse data enters"):
        fitted.fit(csr_matrix(X[:, :5]), y)
    assert vars(fitted) == before
    assert fitted.predict(X).shape == (len(y),)


def test_bad_y(known):
    X, y = known
    with pytest.raises(ValueError, match="requires y to be passed, but the target y is None"):
        model().fit(X, None)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model().fit(X, y[:-1])
    with pytest.raises(ValueError, match="y should be a 1d array"):
        model().fit(X, np.c_[y, y])
    with pytest.raises(ValueError, match="Unknown label type"):
        model().fit(X, y + 0.5 * np.random.default_rng(0).random(len(y)))
