"""LinearHead: the weight and bias of a classifier's last linear layer."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csc_array
from sklearn.base import BaseEstimator, is_classifier
from sklearn.svm import SVC, NuSVC
from sklearn.utils import column_or_1d
from sklearn.utils.validation import check_is_fitted

from skdice._compat.arrays import on_host, to_numpy
from skdice._rows.dask import sliceable
from skdice._rows.sources import check_rows, iterate_blocks, scoring_dtype
from skdice._scattered import packed_by_name, scattered
from skdice.io._head_files import pointwise, read_weight_and_bias


class LinearHead:
    """Weight and bias of the last linear layer of a classifier.

    An immutable value object. The arrays are copied on construction, so training the
    network further does not change the head. `sklearn.base.clone` returns the same
    object, so that a search over worker processes ships it once.

    Parameters
    ----------
    weight : array-like of shape (n_classes, n_features)
        Weight in torch's layout: one row per class. Half precision becomes float32,
        integers become float64.
    bias : array-like of shape (n_classes,), default=None
        Bias of each class; None is a bias of zero.

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
        # Always into memory of our own; what overflows in it is found below.
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
        # The arrays themselves: joblib maps them into its workers instead of copying.
        return {"weight": self.weight, "bias": self.bias}

    def __setstate__(self, state: dict[str, NDArray[np.floating[Any]]]) -> None:
        for name, values in state.items():
            values.setflags(write=False)
            object.__setattr__(self, name, values)

    def __reduce_ex__(self, protocol: Any, /) -> Any:
        return packed_by_name(self) or super().__reduce_ex__(protocol)

    def __sizeof__(self) -> int:
        # By it a cluster tells that a head is worth sending once, rather than with every task.
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
        # The bias alone keeps it cheap; equal heads have equal hashes. Adding 0 makes
        # the two zeros, which are equal, the same bytes.
        return hash((self.weight.shape, (self.bias + 0).tobytes()))

    def __repr__(self) -> str:
        return (
            f"LinearHead(n_classes={self.n_classes}, n_features={self.n_features}, "
            f"dtype={self.weight.dtype})"
        )

    @property
    def n_classes(self) -> int:
        """Number of classes, the rows of the weight."""
        return int(self.weight.shape[0])

    @property
    def n_features(self) -> int:
        """Number of penultimate features, the columns of the weight."""
        return int(self.weight.shape[1])

    def scattered(self, client: Any) -> AbstractContextManager[None]:
        """Send the head to each worker of a Dask cluster once, for as long as a block runs.

        In the block, this head and those equal to it are pickled as a name that only the
        workers of the cluster know. `sklearn.model_selection.GridSearchCV` would send the
        head with every fit otherwise; nothing else needs this. A worker that joins or
        restarts meanwhile gets the head, too.

        Parameters
        ----------
        client : distributed.Client
            Of the cluster.

        Returns
        -------
        context manager
            To be entered with ``with``.

        Raises
        ------
        TypeError
            `client` is something else.
        RuntimeError
            The head is in such a block already.
        ImportError
            The extra ``dask`` is not installed.

        Examples
        --------
        >>> from distributed import Client
        >>> from joblib import parallel_config
        >>> from sklearn.model_selection import GridSearchCV
        >>> from skdice import DICEDetector
        >>> def search_on(client, head, X, y):
        ...     search = GridSearchCV(DICEDetector(head), {"sparsity": [0, 0.5]}, scoring="roc_auc")
        ...     with parallel_config(backend="dask"), head.scattered(client):
        ...         return search.fit(X, y)
        """
        return scattered(self, client)

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
        """Take the head of a fitted linear scikit-learn classifier.

        Parameters
        ----------
        estimator : fitted classifier
            With ``coef_``, ``intercept_`` and ``classes_``, such as
            `LogisticRegression`, `SGDClassifier`, `RidgeClassifier`, `LinearSVC` or
            `LinearDiscriminantAnalysis`. A binary classifier, which has one row of
            coefficients, gives two symmetric rows: minus and plus half of it, whose
            softmax is the sigmoid of the decision function.

        Returns
        -------
        LinearHead

        Raises
        ------
        TypeError
            The estimator is not a linear classifier with one row per class.
        sklearn.exceptions.NotFittedError
            The estimator is not fitted.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.linear_model import LogisticRegression
        >>> from skdice import LinearHead
        >>> classifier = LogisticRegression(max_iter=1000).fit(*load_iris(return_X_y=True))
        >>> LinearHead.from_estimator(classifier)
        LinearHead(n_classes=3, n_features=4, dtype=float64)
        """
        name = type(estimator).__name__
        if not isinstance(estimator, BaseEstimator) or not is_classifier(estimator):
            raise TypeError(f"from_estimator expects a linear classifier, got {name}")
        check_is_fitted(estimator)
        if not all(hasattr(estimator, attribute) for attribute in ("coef_", "intercept_")):
            raise TypeError(
                f"{name} has no coef_ and intercept_; from_estimator expects a linear "
                "classifier (of a Pipeline, pass the last step, and give the detector the "
                "features that reach it)"
            )
        coef = estimator.coef_
        coef = coef.toarray() if hasattr(coef, "toarray") else np.asarray(coef)
        intercept = np.broadcast_to(estimator.intercept_, len(coef))
        if np.ndim(estimator.predict(np.zeros((1, coef.shape[1])))) != 1:
            raise TypeError(f"{name} predicts several labels at once, expected one class per row")
        n_classes = len(estimator.classes_)
        if n_classes == 2 and len(coef) == 1:
            return cls(
                np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
            )
        # SVC's rows are one-against-one: three of them for three classes, too.
        if len(coef) != n_classes or isinstance(estimator, SVC | NuSVC):
            raise TypeError(
                f"{name} has {len(coef)} rows of coefficients for {n_classes} classes; "
                "expected one row per class (a softmax or one-against-rest classifier)"
            )
        return cls(coef, intercept)

    @classmethod
    def from_file(cls, path: str | Path, prefix: str | None = None) -> LinearHead:
        """Read the head from a file. No code in the file is executed.

        Parameters
        ----------
        path : str or Path
            A NumPy archive (.npz), a .safetensors file, or a torch state dict
            (.pt, .pth, .bin; needs the extra ``torch``), which may be nested in a
            checkpoint.
        prefix : str, default=None
            Name of the layer in the file: ``"fc"`` reads ``fc.weight`` and, if there,
            ``fc.bias``; names of nested dictionaries are joined by dots. None reads
            ``weight`` and ``bias``.

        Returns
        -------
        LinearHead

        Raises
        ------
        ValueError
            The format is not known, the file is damaged, or it has no such layer; the
            message lists the layers it has.

        Examples
        --------
        ``head = LinearHead.from_file("resnet50.pth", prefix="fc")``
        """
        return cls(*read_weight_and_bias(Path(path), prefix))

    @classmethod
    def from_class_means(cls, X: ArrayLike, y: ArrayLike) -> LinearHead:
        """Make the head of the nearest-class-mean classifier, where there is no linear layer.

        The logit of class c is ``mean_c @ x - |mean_c|^2 / 2``, largest for the nearest
        class mean; twice a difference of logits is a difference of squared distances.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            In-distribution features.
        y : array-like of shape (n_samples,)
            Class labels; the classes of the head are in sorted order.

        Returns
        -------
        LinearHead
            float64.

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
        features = sliceable(check_rows(X))
        labels = column_or_1d(on_host(y))
        if len(labels) != features.shape[0]:
            raise ValueError(f"y has {len(labels)} labels, but X has {features.shape[0]} rows")
        classes, index = np.unique(labels, return_inverse=True)
        sums = np.zeros((len(classes), features.shape[1]))
        for rows, block in iterate_blocks(features):
            n_rows = len(block)
            one_hot = csc_array(
                (np.ones(n_rows), index[rows], np.arange(n_rows + 1)), (len(classes), n_rows)
            )
            sums += one_hot @ block.astype(np.float64, copy=False)
        means = sums / np.bincount(index)[:, None]
        return cls(means, -0.5 * np.square(means).sum(axis=1))


def _real_array(name: str, values: Any) -> NDArray[Any]:
    """Return the values as an array of real numbers."""
    if hasattr(values, "detach"):  # a torch tensor, which may be part of a graph
        return to_numpy(values)
    if hasattr(values, "state_dict"):
        raise TypeError(
            f"{name} must be an array, got {type(values).__name__}; for a torch layer there is "
            "LinearHead.from_torch(layer)"
        )
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} has dtype {array.dtype}, expected real numbers")
    return array
