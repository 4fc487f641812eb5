"""OpenSetClassifier: a scikit-learn classifier that predicts a class or "unknown"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.utils import _safe_indexing, assert_all_finite, column_or_1d, get_tags
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, indexable

from skdice._base import BaseDetector
from skdice._compat.sklearn import (
    HasMethods,
    Interval,
    RealNotInt,
    StrOptions,
    select_rows_of_params,
    validate_parameters,
)
from skdice._ensemble import ConformalEnsemble, make_ensemble
from skdice._head import LinearHead
from skdice._last_layer import last_features, split_classifier, transform_rows
from skdice._passes.threshold import fewest_rows
from skdice._rows.sources import SlicedRows


def _classifier_has(method: str) -> Callable[[Any], bool]:
    """Return the check whether the classifier has a method, for `available_if`."""

    def has(self: OpenSetClassifier) -> bool:
        # An AttributeError that names the method of the classifier tells more than False.
        getattr(getattr(self, "estimator_", self.estimator), method)
        return True

    return has


class OpenSetClassifier(ClassifierMixin, BaseEstimator):
    """Classifier that predicts a class or "unknown", with a promised rate of false alarms.

    `fit` sets calibration rows apart, fits the classifier on the other rows, fits a detector on
    the features that enter the last layer of the classifier, and calibrates the detector on the
    rows apart. `predict` then gives the class of the classifier, or `unknown_label` where the
    detector flags the row. Of future rows of the known classes, exchangeable with the rows of
    `fit`, a share of at most `contamination` is called unknown. Nothing is fitted again.

    Parameters
    ----------
    estimator : classifier
        The classifier, which `fit` clones. The last step of a `Pipeline` may be any linear
        classifier that `LinearHead.from_estimator` takes, such as `LogisticRegression`,
        `SGDClassifier`, `LinearSVC`, `RidgeClassifier`, `LinearDiscriminantAnalysis` or
        `Perceptron`, or an `MLPClassifier`, whose features are the units of its last hidden
        layer. The best estimator of a search such as `GridSearchCV` is used. A classifier that
        is fitted already is given as a `sklearn.frozen.FrozenEstimator` and is not fitted again;
        then give `fit` rows that the classifier has not seen, or the promise does not hold.
        A classifier with another last layer, such as a `RandomForestClassifier`, needs a
        `detector` without a head.
    detector : detector, default=None
        The detector, which `fit` clones. None is ``make_ensemble(None)``. The head of a detector
        of skdice is not known before `fit`, so leave the head None: ``DICEDetector(None,
        sparsity=0)``, ``make_ensemble(None, combination="min")``. Every `head` that is None
        becomes the head of the fitted classifier, and any other head stays. An outlier detector
        of another library with `score_samples`, such as `IsolationForest`, becomes the only
        member of a `ConformalEnsemble`. `fit` gives the detector rows and no labels.
    unknown_label : int, float or str, default=-1
        The label that `predict` gives to rows that are unknown, and the label of the rows in y
        that are known to be unknown. It has the type of the classes: give a str such as
        ``"unknown"`` where the classes are str. It must not be the label of a class.
    contamination : float in (0, 0.5], default=0.05
        The largest share of future rows of known classes that is called unknown.
    calibration_size : float in (0, 1) or int, default=0.2
        The share, or the number, of the rows of known classes that is set apart to calibrate the
        detector.
    confidence : float in (0, 1), default=None
        The probability, over the draw of the calibration rows, that the share of future rows of
        known classes called unknown is at most the contamination. None promises the share on
        average over draws.
    by : {"prediction"}, default=None
        ``"prediction"`` gives each predicted class its own threshold, as in
        ``detector.calibrate(by="prediction")``. None has one threshold for all classes.
    random_state : int, RandomState instance or None, default=None
        The seed of the split that sets the calibration rows apart.

    Attributes
    ----------
    estimator_ : classifier
        The fitted classifier.
    detector_ : detector
        The fitted and calibrated detector. ``detector_.calibration_`` records the calibration.
        The rows of the detector are those of `features`.
    classes_ : ndarray of shape (n_classes,)
        The known classes, without `unknown_label`.
    n_features_in_ : int
        Number of features seen in fit, where the classifier has this attribute.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features seen in fit, where the classifier has this attribute.

    See Also
    --------
    make_ensemble : The default detector.
    skdice.metrics.oscr_curve : Judges classes and unknown rows together.

    Notes
    -----
    Rows of y with the label `unknown_label` are left out of the fit and of the calibration. So a
    cross-validation may have unknown rows in its folds, where they count as right if they are
    called unknown: `score` is the accuracy over all rows. Give `cross_val_predict` with
    ``method="predict_proba"`` only rows of known classes, because it numbers the labels anew, so
    that `unknown_label` is not found.

    The promise holds for future rows like those of `fit`. The calibration rows are a stratified
    random part of them. Rows that are not independent, such as several photographs of one object,
    break the promise.

    With ``enable_metadata_routing=True`` the parameters of `fit` go to the classifier as it
    requested them. Otherwise all of them go to the `fit` of the classifier. The detector is
    fitted without weights.

    References
    ----------
    Bates, Candes, Lei, Romano & Sesia, "Testing for outliers with conformal p-values",
    Annals of Statistics 2023, arXiv:2104.08279.

    Scheirer, de Rezende Rocha, Sapkota & Boult, "Toward Open Set Recognition", IEEE TPAMI 2013.

    Examples
    --------
    The digits 8 and 9 are unknown, which their rows say by the label -1:

    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import train_test_split
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from skdice import OpenSetClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> y[y >= 8] = -1
    >>> X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
    >>> classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    >>> model = OpenSetClassifier(classifier, random_state=0).fit(X_train, y_train)
    >>> model.classes_
    array([0, 1, 2, 3, 4, 5, 6, 7])
    >>> y_test[:10]
    array([ 2, -1,  2,  6,  6,  7,  1, -1, -1,  5])
    >>> model.predict(X_test[:10])
    array([ 2, -1,  2,  6,  6,  7,  1, -1,  3,  5])
    >>> bool(model.is_unknown(X_test[y_test != -1]).mean() < 0.08)
    True
    >>> bool(model.is_unknown(X_test[y_test == -1]).mean() > 0.5)
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "estimator": [HasMethods(["fit", "predict"])],
        "detector": [HasMethods(["fit", "score_samples"]), None],
        "unknown_label": "no_validation",
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
        "calibration_size": [
            Interval(RealNotInt, 0, 1, closed="neither"),
            Interval(Integral, 1, None, closed="left"),
        ],
        "confidence": [Interval(Real, 0, 1, closed="neither"), None],
        "by": [StrOptions({"prediction"}), None],
        "random_state": ["random_state"],
    }

    estimator_: Any
    detector_: BaseDetector
    classes_: NDArray[Any]
    n_features_in_: int
    feature_names_in_: NDArray[Any]

    def __init__(
        self,
        estimator: Any,
        detector: Any = None,
        *,
        unknown_label: float | str = -1,
        contamination: float = 0.05,
        calibration_size: float = 0.2,
        confidence: float | None = None,
        by: Literal["prediction"] | None = None,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.detector = detector
        self.unknown_label = unknown_label
        self.contamination = contamination
        self.calibration_size = calibration_size
        self.confidence = confidence
        self.by = by
        self.random_state = random_state

    def fit(self, X: Any, y: ArrayLike, **fit_params: Any) -> Self:
        """Fit the classifier and the detector, and calibrate the detector on rows apart.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or list of str
            The rows, in any form that the classifier takes.
        y : array-like of shape (n_samples,)
            The classes. Rows with the label `unknown_label` are left out.
        **fit_params : dict
            Parameters of the `fit` of the classifier, such as `sample_weight`. Those with a
            value for each row of X are split like X.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            There are fewer than two classes, a class has a single row, the calibration rows are
            fewer than the promise needs, `unknown_label` is a class or is not of the type of the
            classes, or a parameter is out of its range.
        TypeError
            The classifier has no linear last layer and the detector needs one, or the features
            of the detector are sparse.
        """
        validate_parameters(self)
        if y is None:
            raise ValueError("fit requires y to be passed, but the target y is None")
        if isinstance(X, SlicedRows):
            X = np.asarray(X)  # The classifier needs all rows of a feature file in memory.
        X, y = indexable(X, y)
        labels: NDArray[Any] = column_or_1d(y, warn=True)
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        unknown_label = self._checked_unknown_label(labels)
        known = np.flatnonzero(labels != unknown_label)
        train, calibration = self._split(known, labels[known], unknown_label)

        if get_config()["enable_metadata_routing"]:
            fit_params = process_routing(self, "fit", **fit_params).estimator.fit
        fit_params = select_rows_of_params(X, fit_params, train)
        X_train = _safe_indexing(X, train)
        estimator = clone(self.estimator).fit(X_train, labels[train], **fit_params)
        classes = np.asarray(estimator.classes_)
        if unknown_label in classes:
            raise ValueError(
                f"unknown_label is {unknown_label!r}, which is a class of the fitted classifier: "
                "give a label that is not a class"
            )
        strangers = np.setdiff1d(labels[known], classes).tolist()
        if strangers:
            raise ValueError(
                f"y holds {strangers[0]!r}, which is neither a class of the fitted classifier nor "
                f"the unknown_label {unknown_label!r}: label the rows of other classes "
                f"{unknown_label!r}"
            )
        transformers, classifier = split_classifier(estimator)
        train_features, calibration_features = (
            last_features(classifier, transform_rows(transformers, rows))
            for rows in (X_train, _safe_indexing(X, calibration))
        )
        detector = self._unfitted_detector(classifier).fit(train_features)
        detector.calibrate(
            calibration_features,
            self.contamination,
            method="conformal",
            confidence=self.confidence,
            by=self.by,
        )

        self.estimator_, self.detector_, self.classes_ = estimator, detector, classes
        for name in ("n_features_in_", "feature_names_in_"):
            self.__dict__.pop(name, None)
            if hasattr(estimator, name):
                setattr(self, name, getattr(estimator, name))
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict for each row its class, or that it is unknown.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or list of str
            The rows.

        Returns
        -------
        ndarray of shape (n_samples,)
            The class, or `unknown_label`. The dtype is that of the classes where `unknown_label`
            fits in.
        """
        rows, classifier = self._open(X)
        predicted = classifier.predict(rows)
        unknown_label = self._checked_unknown_label(self.classes_)
        dtype = np.result_type(predicted.dtype, np.asarray(unknown_label).dtype)
        labels: NDArray[Any] = predicted.astype(dtype)
        labels[self._flags(classifier, rows)] = unknown_label
        return labels

    def predict_known(self, X: Any) -> NDArray[Any]:
        """Predict the class of each row, as the classifier does without the detector.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or list of str
            The rows.

        Returns
        -------
        ndarray of shape (n_samples,)
            The class, also of rows that are unknown.
        """
        rows, classifier = self._open(X)
        predicted: NDArray[Any] = classifier.predict(rows)
        return predicted

    @available_if(_classifier_has("predict_proba"))
    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Return the probabilities of the known classes, as the classifier gives them.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or list of str
            The rows.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            The probabilities if the row is of a known class. They do not tell unknown rows.
        """
        rows, classifier = self._open(X)
        probabilities: NDArray[Any] = classifier.predict_proba(rows)
        return probabilities

    @available_if(_classifier_has("decision_function"))
    def decision_function(self, X: Any) -> NDArray[Any]:
        """Return the decision function of the classifier for the known classes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or list of str
            The rows.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
            The values of the classifier. They do not tell unknown rows.
        """
        rows, classifier = self._open(X)
        values: NDArray[Any] = classifier.decision_function(rows)
        return values

    def score_samples(self, X: Any) -> NDArray[Any]:
        """Return the score of the detector for each row: higher = more like the known classes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or list of str
            The rows.

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        features = self.features(X)
        scores: NDArray[Any] = self.detector_.score_samples(features)
        return scores

    def is_unknown(self, X: Any) -> NDArray[np.bool_]:
        """Return for each row whether it is unknown.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or list of str
            The rows.

        Returns
        -------
        ndarray of shape (n_samples,), bool
            True where `predict` gives `unknown_label`.
        """
        rows, classifier = self._open(X)
        return self._flags(classifier, rows)

    def pvalues(self, X: Any) -> NDArray[np.float64]:
        """Return the conformal p-value of each row: small = unknown.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or list of str
            The rows.

        Returns
        -------
        ndarray of shape (n_samples,), float64
            For a row of a known class, the probability of a p-value of at most a is at most a.
        """
        features = self.features(X)
        values: NDArray[np.float64] = self.detector_.pvalues(features)
        return values

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the accuracy, in which an unknown row is right if it is called unknown.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or list of str
            The rows.
        y : array-like of shape (n_samples,)
            The classes; unknown rows have the label `unknown_label`.
        sample_weight : array-like of shape (n_samples,), default=None
            The weight of each row.

        Returns
        -------
        float
            The share of the rows whose prediction is their label.
        """
        return float(accuracy_score(y, self.predict(X), sample_weight=sample_weight))

    def features(self, X: Any) -> Any:
        """Return the features that the detector sees.

        They are what enters the last layer of the classifier: the output of the steps before the
        last one of a `Pipeline`, and of an `MLPClassifier` the units of its last hidden layer.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or list of str
            The rows.

        Returns
        -------
        array-like of shape (n_samples, n_units)
            The rows for `detector_`, such as for `skdice.metrics.evaluate`.
        """
        rows, classifier = self._open(X)
        return last_features(classifier, rows)

    def get_metadata_routing(self) -> Any:
        """Return to which estimator the parameters of `fit` go.

        Returns
        -------
        sklearn.utils.metadata_routing.MetadataRouter
        """
        mapping = MethodMapping().add(caller="fit", callee="fit")
        return MetadataRouter(owner=type(self).__name__).add(
            estimator=self.estimator, method_mapping=mapping
        )

    def _open(self, X: Any) -> tuple[Any, Any]:
        """Return the rows that enter the last step of the fitted classifier, and that step."""
        check_is_fitted(self)
        transformers, classifier = split_classifier(self.estimator_)
        return transform_rows(transformers, X), classifier

    def _flags(self, classifier: Any, rows: Any) -> NDArray[np.bool_]:
        """Return which of the rows that enter the last step are unknown."""
        decision = self.detector_.decision_function(last_features(classifier, rows))
        return np.asarray(decision < 0)

    def _checked_unknown_label(self, labels: NDArray[Any]) -> Any:
        """Return `unknown_label` after a check that an array of the labels can hold it."""
        label = self.unknown_label
        is_text = labels.dtype.kind not in "biuf"
        if is_text and not isinstance(label, str):
            raise ValueError(
                f"unknown_label is {label!r}, but the classes are text such as "
                f"{str(labels[0])!r}: give a text that is not a class, such as "
                "unknown_label='unknown'"
            )
        if not is_text and not (isinstance(label, Real) and np.isfinite(float(label))):
            raise ValueError(
                f"unknown_label is {label!r}, but the classes are numbers such as "
                f"{labels[0].item()!r}: give a finite number that is not a class, such as "
                "unknown_label=-1"
            )
        return label

    def _split(
        self, known: NDArray[np.intp], y: NDArray[Any], unknown_label: Any
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the places of the rows to fit on and of those to calibrate with.

        Parameters
        ----------
        known : ndarray of shape (n_known,)
            The places of the rows of known classes.
        y : ndarray of shape (n_known,)
            Their classes.
        unknown_label : int, float or str
            The label of the other rows.
        """
        values, counts = np.unique(y, return_counts=True)
        classes = values.tolist()
        if len(classes) < 2:
            found = f"1 class, {classes[0]!r}," if classes else "no class"
            raise ValueError(
                f"y has {found} besides the unknown_label {unknown_label!r}, expected at least 2 "
                "classes; if the unknown_label is one of your classes, give another unknown_label"
            )
        if counts.min() < 2:
            raise ValueError(
                f"the class {classes[counts.argmin()]!r} has 1 row, expected at least 2: one to "
                "fit on and one to calibrate with"
            )
        n_rows, size = len(y), self.calibration_size
        n_apart = int(size) if isinstance(size, Integral) else ceil(size * n_rows)
        needed = fewest_rows(self.contamination, self.confidence)
        apart = f"calibration_size={size!r} sets {n_apart} of {n_rows} rows of known classes apart"
        if n_apart < needed:
            promise = f"a contamination of {self.contamination:g}"
            if self.confidence is not None:
                promise += f" with confidence {self.confidence:g}"
            raise ValueError(
                f"{apart}, but {promise} needs at least {needed} calibration rows: give more rows, "
                "a larger calibration_size or a larger contamination"
            )
        if not len(classes) <= n_apart <= n_rows - len(classes):
            raise ValueError(
                f"{apart}, expected {len(classes)} to {n_rows - len(classes)}, because each of "
                f"the {len(classes)} classes needs a row on both sides"
            )
        train, calibration = train_test_split(
            known, test_size=n_apart, stratify=y, random_state=self.random_state
        )
        return train, calibration

    def _unfitted_detector(self, classifier: Any) -> BaseDetector:
        """Return the detector to fit, with the head of a fitted classifier where it lacks one."""
        detector = make_ensemble(None) if self.detector is None else clone(self.detector)
        headless = [
            name
            for name, value in detector.get_params().items()
            if value is None and name.rpartition("__")[2] == "head"
        ]
        if headless:
            try:
                head = LinearHead.from_estimator(classifier)
            except TypeError as error:
                raise TypeError(
                    f"{error}; for another classifier give a detector that needs no head, such as "
                    "detector=IsolationForest()"
                ) from error
            detector.set_params(**dict.fromkeys(headless, head))
        if isinstance(detector, BaseDetector):
            return detector
        return ConformalEnsemble([("detector", detector)])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        of_estimator = get_tags(self.estimator)
        # The features of the detector are dense, and most classifiers get them as they are.
        tags.input_tags = replace(of_estimator.input_tags, sparse=False)
        if of_estimator.classifier_tags is not None:
            tags.classifier_tags = replace(of_estimator.classifier_tags, multi_label=False)
        return tags
