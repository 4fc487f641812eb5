"""LinearHead: the weight and the bias of the last linear layer of a classifier."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csc_array
from sklearn.base import BaseEstimator, is_classifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC, NuSVC
from sklearn.utils import column_or_1d
from sklearn.utils.validation import check_is_fitted

from skdice._compat.arrays import is_narrow_float, to_host, to_numpy
from skdice._rows.door import as_sliced_source
from skdice._rows.sources import scoring_dtype
from skdice.io._head_files import pointwise, read_weight_and_bias


class LinearHead:
    """The weight and the bias of the last linear layer of a classifier.

    A head is an immutable value object. The constructor copies the arrays, so training the
    network further does not change the head. `sklearn.base.clone` returns the same object, so
    the estimators of a search share one head in memory.

    Parameters
    ----------
    weight : array-like of shape (n_classes, n_features)
        The weight in torch's layout, with one row per class. Half precision becomes float32,
        and integers become float64.
    bias : array-like of shape (n_classes,), default=None
        The bias of each class. None means a bias of zero.

    Attributes
    ----------
    weight : ndarray of shape (n_classes, n_features), float32 or float64
        The weight, read-only.
    bias : ndarray of shape (n_classes,), dtype of the weight
        The bias, read-only.

    Raises
    ------
    ValueError
        The weight is not two-dimensional or is empty, the bias does not have one value
        per class, or a value is not finite (the message names the class).

    Examples
    --------
    >>> from skdice import LinearHead
    >>> LinearHead([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    LinearHead(n_classes=3, n_features=2, dtype=float64)
    """

    __slots__ = ("__weakref__", "bias", "weight")

    weight: NDArray[np.floating[Any]]
    bias: NDArray[np.floating[Any]]

    def __init__(self, weight: ArrayLike, bias: ArrayLike | None = None) -> None:
        weight = _real_array("weight", weight)
        if weight.ndim != 2 or 0 in weight.shape:
            raise ValueError(
                f"weight has shape {weight.shape}, expected (n_classes, n_features), "
                "both at least 1"
            )
        dtype = scoring_dtype(weight.dtype)
        bias = np.zeros(len(weight)) if bias is None else _real_array("bias", bias)
        if bias.shape != (len(weight),):
            raise ValueError(
                f"bias has shape {bias.shape}, expected ({len(weight)},): one value for each "
                f"class of the weight, which has shape {weight.shape}"
            )
        # np.array always copies. A value that overflows in the dtype becomes infinite, which the
        # check below reports with its class; a warning says less.
        with np.errstate(over="ignore"):
            frozen = {"weight": np.array(weight, dtype, order="C"), "bias": np.array(bias, dtype)}
        for name, values in frozen.items():
            bad = np.argwhere(~np.isfinite(values))
            if len(bad):
                raise ValueError(
                    f"{name} contains {values[tuple(bad[0])]} for class {bad[0][0]}; "
                    f"every value must be finite in {dtype}"
                )
        self.__setstate__(frozen)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a LinearHead is immutable: cannot set {name!r}; make a new one")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a LinearHead is immutable: cannot delete {name!r}")

    def __getstate__(self) -> dict[str, NDArray[np.floating[Any]]]:
        # The state holds the arrays as they are, because joblib maps arrays that it finds in a
        # pickle into the memory of its workers instead of copying them.
        return {"weight": self.weight, "bias": self.bias}

    def __setstate__(self, state: dict[str, NDArray[np.floating[Any]]]) -> None:
        for name, values in state.items():
            values.setflags(write=False)
            object.__setattr__(self, name, values)

    def __sizeof__(self) -> int:
        # Dask decides by size whether to send an object once or with every task.
        return object.__sizeof__(self) + self.weight.nbytes + self.bias.nbytes

    def __sklearn_clone__(self) -> LinearHead:
        return self

    def __copy__(self) -> LinearHead:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> LinearHead:
        return self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LinearHead):
            return NotImplemented
        return self is other or (
            self.weight.dtype == other.weight.dtype
            and np.array_equal(self.weight, other.weight)
            and np.array_equal(self.bias, other.bias)
        )

    def __hash__(self) -> int:
        # The bias alone is enough, and hashing the weight takes long. Adding 0 turns -0.0 into
        # 0.0: the two are equal, so their heads must have equal hashes.
        return hash((self.weight.shape, (self.bias + 0).tobytes()))

    def __repr__(self) -> str:
        return (
            f"LinearHead(n_classes={self.n_classes}, n_features={self.n_features}, "
            f"dtype={self.weight.dtype})"
        )

    @property
    def n_classes(self) -> int:
        """The number of classes, which is the number of rows of the weight."""
        return int(self.weight.shape[0])

    @property
    def n_features(self) -> int:
        """The number of penultimate features, which is the number of columns of the weight."""
        return int(self.weight.shape[1])

    @classmethod
    def from_torch(cls, module: Any) -> LinearHead:
        """Copy the head out of a torch layer.

        Parameters
        ----------
        module : torch.nn.Linear or torch.nn.Conv2d
            The classification layer, on any device, in any floating dtype. A
            convolution must have a 1x1 kernel and one group; its features are the
            globally pooled maps. The layer of a binary classifier with one logit gives two
            symmetric rows: minus and plus half of it, whose softmax is the sigmoid of the
            logit. Class 1 is the class of positive logits.

        Returns
        -------
        LinearHead

        Raises
        ------
        TypeError
            The module is neither a Linear nor a Conv2d, but the whole model, for example.
        ValueError
            The convolution has a kernel other than 1x1, a stride, padding or several groups.

        Examples
        --------
        ``head = LinearHead.from_torch(model.fc)``
        """
        weight: Any = getattr(module, "weight", None)
        kernel = tuple(getattr(module, "kernel_size", ()))
        # By their attributes: no import of torch for what only a user of torch can pass.
        shape = tuple(getattr(weight, "shape", ()))
        is_linear = len(shape) == 2 and shape[0] == getattr(module, "out_features", None)
        is_conv = len(kernel) == 2 and shape[:1] == (getattr(module, "out_channels", None),)
        is_conv = is_conv and not getattr(module, "transposed", False)
        if not (is_linear or is_conv):
            raise TypeError(
                f"from_torch expects a torch.nn.Linear or a 1x1 torch.nn.Conv2d, got "
                f"{type(module).__name__}; pass the classification layer itself, such as model.fc"
            )
        if is_conv:
            given = (kernel, module.stride, module.padding, module.groups)
            if given != ((1, 1), (1, 1), (0, 0), 1):
                raise ValueError(
                    f"the Conv2d has kernel size, stride, padding and groups {given}; expected "
                    "((1, 1), (1, 1), (0, 0), 1)"
                )
        weight = pointwise(to_numpy(weight))
        bias = np.zeros(len(weight)) if module.bias is None else to_numpy(module.bias)
        if len(weight) == 1:
            return cls(np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2)
        return cls(weight, bias)

    @classmethod
    def from_estimator(cls, estimator: Any) -> LinearHead:
        """Take the head of a fitted scikit-learn classifier whose last step is linear.

        Parameters
        ----------
        estimator : fitted classifier
            One of:

            * a linear classifier, with ``coef_``, ``intercept_`` and ``classes_``, such as
              `LogisticRegression`, `SGDClassifier`, `RidgeClassifier`, `LinearSVC` or
              `LinearDiscriminantAnalysis`. The features of the detector are the inputs of the
              classifier.
            * a `sklearn.neural_network.MLPClassifier`. The head is its output layer. The
              features of the detector are the activations of the last hidden layer, which the
              example below computes.
            * a `sklearn.pipeline.Pipeline` that ends with one of these. The head is that of the
              last step. The features of the detector are those that reach the last step,
              ``pipeline[:-1].transform(X)``.

            A binary classifier has one row of coefficients. Its head has two rows, minus and
            plus half of that row, because their softmax is the sigmoid of the decision function.

        Returns
        -------
        LinearHead

        Raises
        ------
        TypeError
            The estimator is not a classifier with one linear output per class.
        sklearn.exceptions.NotFittedError
            The estimator is not fitted.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.linear_model import LogisticRegression
        >>> from skdice import LinearHead
        >>> X, y = load_iris(return_X_y=True)
        >>> LinearHead.from_estimator(LogisticRegression(max_iter=1000).fit(X, y))
        LinearHead(n_classes=3, n_features=4, dtype=float64)

        The head of a pipeline, and the features that belong to the head:

        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
        >>> head = LinearHead.from_estimator(pipeline)
        >>> features = pipeline[:-1].transform(X)

        The head of an `MLPClassifier`, and the features that belong to the head:

        >>> import numpy as np
        >>> from sklearn.neural_network import MLPClassifier
        >>> network = MLPClassifier((8, 6), random_state=0, max_iter=2000).fit(X, y)
        >>> head = LinearHead.from_estimator(network)
        >>> features = X
        >>> for weight, bias in zip(network.coefs_[:-1], network.intercepts_[:-1]):
        ...     features = np.maximum(features @ weight + bias, 0)    # activation="relu"
        >>> features.shape, head
        ((150, 6), LinearHead(n_classes=3, n_features=6, dtype=float64))
        """
        if isinstance(estimator, Pipeline):
            return cls.from_estimator(estimator.steps[-1][1])
        name = type(estimator).__name__
        if not isinstance(estimator, BaseEstimator) or not is_classifier(estimator):
            raise TypeError(f"from_estimator expects a linear classifier, got {name}")
        check_is_fitted(estimator)
        if isinstance(estimator, MLPClassifier):
            coef, intercept = estimator.coefs_[-1].T, estimator.intercepts_[-1]
            n_inputs = len(estimator.coefs_[0])
        elif hasattr(estimator, "coef_") and hasattr(estimator, "intercept_"):
            coef, intercept = estimator.coef_, estimator.intercept_
            coef = coef.toarray() if hasattr(coef, "toarray") else np.asarray(coef)
            coef = np.atleast_2d(coef)  # RidgeClassifier has a vector for two classes.
            intercept = np.broadcast_to(intercept, len(coef))
            n_inputs = coef.shape[1]
        else:
            raise TypeError(
                f"{name} has no coef_ and intercept_; from_estimator expects a linear "
                "classifier, an MLPClassifier, or a Pipeline that ends with one of them"
            )
        # Only `predict` tells a classifier of several labels, whose attributes look the same. A
        # copy without the feature names does not warn that the row of zeros has none.
        nameless = copy(estimator)
        vars(nameless).pop("feature_names_in_", None)
        if np.ndim(nameless.predict(np.zeros((1, n_inputs)))) != 1:
            raise TypeError(f"{name} predicts several labels at once, expected one class per row")
        n_classes = len(estimator.classes_)
        if n_classes == 2 and len(coef) == 1:
            return cls(
                np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
            )
        # The rows of SVC are one-against-one, although three classes give three rows, too.
        if len(coef) != n_classes or isinstance(estimator, SVC | NuSVC):
            raise TypeError(
                f"{name} has {len(coef)} rows of coefficients for {n_classes} classes; "
                "expected one row per class (a softmax or one-against-rest classifier)"
            )
        return cls(coef, intercept)

    @classmethod
    def from_file(cls, path: str | Path, *, layer: str | None = None) -> LinearHead:
        """Read the head from a file. No code in the file is executed.

        Parameters
        ----------
        path : str or Path
            A NumPy archive (.npz), a .safetensors file, or a torch state dict
            (.pt, .pth, .bin; it needs the extra ``torch``), which may be nested in a
            checkpoint.
        layer : str, default=None
            Name of the layer in the file: ``"fc"`` reads ``fc.weight`` and, if there is
            one, ``fc.bias``. The names of nested dictionaries are joined by dots. None
            reads ``weight`` and ``bias``.

        Returns
        -------
        LinearHead

        Raises
        ------
        ValueError
            The path is empty or is not a file, the format is not known, the file is
            damaged, or it does not have the layer; the message lists the layers it has.

        Examples
        --------
        ``head = LinearHead.from_file("resnet50.pth", layer="fc")``
        """
        return cls(*read_weight_and_bias(path, layer))

    @classmethod
    def from_class_means(cls, X: ArrayLike, y: ArrayLike) -> LinearHead:
        """Make the head of the classifier that predicts the class with the nearest mean.

        This head is for classifiers without a linear layer. The logit of class c is
        ``mean_c @ x - |mean_c|^2 / 2``, which is largest for the nearest class mean. Twice a
        difference of two logits is the difference of the squared distances to the two means.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            The features of in-distribution inputs.
        y : array-like of shape (n_samples,)
            The class label of each row. The rows of the weight follow the sorted labels.

        Returns
        -------
        LinearHead
            The head has dtype float64.

        Raises
        ------
        ValueError
            A feature is not finite, or `y` has another length than `X`.

        Examples
        --------
        >>> from skdice import LinearHead
        >>> head = LinearHead.from_class_means([[0.0, 2.0], [0.0, 4.0], [1.0, 0.0]], [0, 0, 1])
        >>> head.weight
        array([[0., 3.],
               [1., 0.]])
        >>> head.bias
        array([-4.5, -0.5])
        """
        features = as_sliced_source(X)
        labels = column_or_1d(to_host(y))
        if len(labels) != features.shape[0]:
            raise ValueError(f"y has {len(labels)} labels, but X has {features.shape[0]} rows")
        classes, index = np.unique(labels, return_inverse=True)
        sums = np.zeros((len(classes), features.shape[1]))
        for rows, block in features.iterate_blocks():
            n_rows = len(block)
            # A sparse matrix product sums the rows of each class without a copy per class.
            one_hot = csc_array(
                (np.ones(n_rows), index[rows], np.arange(n_rows + 1)), (len(classes), n_rows)
            )
            sums += one_hot @ block.astype(np.float64, copy=False)
        means = sums / np.bincount(index)[:, None]
        return cls(means, -0.5 * np.square(means).sum(axis=1))


def as_linear_head(head: Any, n_features: int) -> LinearHead:
    """Return the `head` parameter of a detector as a `LinearHead` of the given width."""
    if head is None or (isinstance(head, str) and head != "identity"):
        raise ValueError(
            f"head is {head!r}, expected the classifier's last linear layer: a LinearHead such as "
            "LinearHead.from_torch(model.fc), LinearHead.from_estimator(classifier), "
            "LinearHead.from_file(path) or LinearHead.from_class_means(X, y), a tuple "
            "(weight, bias), a weight of shape (n_classes, n_features), or 'identity' if the rows "
            "are logits already"
        )
    if isinstance(head, str):
        # The dtype of the rows decides the precision of the scores, so float32 serves for all.
        return LinearHead(np.eye(n_features, dtype=np.float32))
    if isinstance(head, tuple) and len(head) != 2:
        raise ValueError(f"head is a tuple of {len(head)}, expected (weight, bias)")
    if not isinstance(head, LinearHead):
        head = LinearHead(*head) if isinstance(head, tuple) else LinearHead(head)
    layer: LinearHead = head
    if layer.weight.shape[1] != n_features:
        is_transposed = layer.n_classes == n_features
        hint = "; transpose the weight if its rows are features" if is_transposed else ""
        raise ValueError(
            f"X has {n_features} features, but the head expects {layer.n_features}: its weight "
            f"has shape {layer.weight.shape}{hint}"
        )
    return layer


def _real_array(name: str, values: Any) -> NDArray[Any]:
    """Return the values as an array of real numbers."""
    # A torch tensor has to be detached from its graph first, which to_numpy does.
    if hasattr(values, "detach"):
        return to_numpy(values)
    if hasattr(values, "state_dict"):
        raise TypeError(
            f"{name} must be an array, got {type(values).__name__}; for a torch layer there is "
            "LinearHead.from_torch(layer)"
        )
    if isinstance(values, BaseEstimator):
        raise TypeError(
            f"{name} must be an array, got {type(values).__name__}; for a scikit-learn classifier "
            "there is LinearHead.from_estimator(classifier)"
        )
    array = np.asarray(values)
    if is_narrow_float(array.dtype):
        array = array.astype(np.float32)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} has dtype {array.dtype}, expected real numbers")
    return array
