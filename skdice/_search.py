"""Scores along a path of sparsities, and the detector that chooses one by cross-validation."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.metrics import get_scorer
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, check_cv
from sklearn.utils.parallel import Parallel, delayed

from skdice._dice import BaseDICE, DICEDetector
from skdice._engines.layer import LayerPath
from skdice._engines.run import Options, run
from skdice._head import LinearHead, as_linear_head
from skdice._passes.mean import gather_statistics
from skdice._rows.door import as_sliced_source, as_source
from skdice._rows.sources import FloatArray, NumpyRows, SelectedRows, SlicedRows, scoring_dtype
from skdice._sparsify import contribution, threshold_masks
from skdice.shaping import describe, fit_shaping

SPARSITIES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)


def sparsity_path(
    head: LinearHead,
    X_fit: Any,
    X: Any,
    sparsities: Sequence[float],
    *,
    shaping: Any = None,
    score_func: str | Callable[[FloatArray], FloatArray] = "energy",
    batch_size: int | None = None,
    verbose: int = 0,
) -> FloatArray:
    """Return the scores of rows at each of several sparsities.

    What `DICEDetector(head, sparsity=p).fit(X_fit).score_samples(X)` gives for each p, with
    one mean of the fitted rows, one selection in the contributions for all thresholds, and
    one pass over the scored rows.

    Parameters
    ----------
    head : LinearHead
        The last linear layer.
    X_fit : array-like or source of rows, of shape (n_fitted, n_features)
        Features of in-distribution inputs.
    X : array-like or source of rows, of shape (n_samples, n_features)
        Features that are scored.
    sparsities : sequence of float in [0, 1)
        Fractions of the weights pruned.
    shaping : transformer, default=None
        As in `DICEDetector`, fitted on `X_fit`.
    score_func : {"energy", "max_logit", "msp", "gen"} or callable, default="energy"
        As in `DICEDetector`.
    batch_size : int, default=None
        Rows per block; None chooses them.
    verbose : int, default=0
        Above 0, progress bars on stderr.

    Returns
    -------
    ndarray of shape (n_sparsities, n_samples), float32 or float64

    Raises
    ------
    ValueError
        A sparsity is out of its range, widths do not match, or a value is not finite.

    See Also
    --------
    DICEDetectorCV : Chooses the sparsity by cross-validation.

    Examples
    --------
    >>> from skdice import sparsity_path
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> data = load_fashion_mnist_ood()
    >>> sparsity_path(data.head, data.id_train, data.id_test, [0, 0.1, 0.9]).shape
    (3, 3000)
    """
    fitted_rows, rows = as_source(X_fit, "X_fit"), as_sliced_source(X)
    for name, source in (("X_fit", fitted_rows), ("X", rows)):
        if source.shape[1] != head.n_features:
            raise ValueError(
                f"{name} has {source.shape[1]} features, but the head expects {head.n_features}"
            )
    statistics = gather_statistics(fitted_rows, batch_size=batch_size, verbose=verbose)
    return path_scores(
        head,
        statistics.mean(),
        fit_shaping(shaping, fitted_rows, verbose),
        rows,
        check_sparsities(sparsities),
        score_func,
        Options(batch_size=batch_size, verbose=verbose),
    )


def check_sparsities(sparsities: Any) -> list[float]:
    """Return the sparsities as a list of floats, in the order given."""
    values = np.asarray(sparsities, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"sparsities is {sparsities!r}, expected a sequence of floats in [0, 1)")
    for value in values.tolist():
        if not 0 <= value < 1:
            hint = f" It is a fraction: did you mean {value / 100:g}?" if 1 < value < 100 else ""
            raise ValueError(f"sparsities holds {value:g}, expected floats in [0, 1).{hint}")
    return [float(value) for value in values]


def path_scores(
    head: LinearHead,
    mean_activation: NDArray[np.float64],
    shaping: Any,
    rows: SlicedRows,
    sparsities: Sequence[float],
    score_func: str | Callable[[FloatArray], FloatArray],
    options: Options,
) -> FloatArray:
    """Return the scores of `sparsity_path`, from a mean activation and a fitted shaping."""
    masks = threshold_masks(contribution(head.weight, mean_activation), sparsities)
    path = LayerPath(
        head.weight,
        head.bias,
        [mask for mask, _ in masks],
        describe(shaping, head.n_features),
        score_func,
    )
    out = np.empty((len(sparsities), len(rows)), scoring_dtype(rows.dtype))
    for row_slice, scores in run(path, rows, options):
        out[:, row_slice] = scores.T
    return out


class _KnownScores(OutlierMixin, BaseEstimator):
    """A detector that returns scores computed before, for scikit-learn's scorers.

    A scorer takes a fitted estimator and rows, and asks the estimator for the scores.
    """

    def __init__(self, scores: FloatArray) -> None:
        self.scores = scores

    def decision_function(self, X: Any) -> FloatArray:
        """Return the scores."""
        return self.scores

    score_samples = decision_function


def _fold_scores(
    head: LinearHead,
    rows: SlicedRows,
    labels: NDArray[np.int_],
    outliers: SlicedRows | None,
    fold: tuple[NDArray[Any], NDArray[Any]],
    shapings: Sequence[Any],
    sparsities: Sequence[float],
    *,
    score_func: str | Callable[[FloatArray], FloatArray],
    scoring: Any,
    batch_size: int | None,
    n_jobs: int | None,
    verbose: int,
) -> list[float]:
    """Return the metric of each candidate on one fold.

    A candidate is a shaping together with a sparsity. The labels are +1 for in-distribution rows
    and -1 for known outliers. Every fold scores all further outliers, because no candidate is
    fitted on them.
    """
    is_train, is_test = np.zeros((2, len(labels)), np.bool_)
    is_train[fold[0]], is_test[fold[1]] = True, True
    is_train &= labels == 1
    if not is_train.any():
        raise ValueError("a fold has no in-distribution row to fit on; shuffle the folds")
    fitted_rows = SelectedRows(rows, is_train)
    scored_rows: list[SlicedRows] = [SelectedRows(rows, is_test)]
    y_true = labels[is_test]
    if outliers is not None:
        scored_rows.append(outliers)
        y_true = np.concatenate([y_true, np.full(outliers.shape[0], -1)])
    for label, kind in ((1, "in-distribution rows"), (-1, "outliers")):
        if label not in y_true:
            raise ValueError(f"a fold has no {kind} to score; shuffle and stratify the folds")
    mean = gather_statistics(fitted_rows, batch_size=batch_size, n_jobs=n_jobs).mean()
    options = Options(batch_size=batch_size, verbose=verbose)
    scorer = get_scorer(scoring)
    # Scorers ask for rows as well as an estimator; the scores are known, so these stay unread.
    unread = np.zeros((len(y_true), 1))
    results: list[float] = []
    for shaping in shapings:
        fitted_shaping = fit_shaping(shaping, fitted_rows)
        paths = [
            path_scores(head, mean, fitted_shaping, source, sparsities, score_func, options)
            for source in scored_rows
        ]
        results += [
            float(scorer(_KnownScores(y_score), unread, y_true))
            for y_score in np.concatenate(paths, axis=1)
        ]
    return results


class DICEDetectorCV(BaseDICE):
    """A `DICEDetector` whose sparsity is chosen by cross-validation.

    `fit` takes in-distribution rows and known outliers. It scores the held-out rows of each
    fold at every sparsity, takes the sparsity with the best mean metric, and fits a detector
    with this sparsity on all in-distribution rows. Afterwards the estimator is that detector.
    The results are those of `sklearn.model_selection.GridSearchCV` over the same folds, up to
    the rounding of the scores. The search is several times faster because each fold needs one
    mean and one selection among the contributions for all sparsities.

    Parameters
    ----------
    head : LinearHead, tuple (weight, bias) or "identity"
        The last linear layer, as in `DICEDetector`.
    sparsities : array-like of float in [0, 1), default=None
        The candidates. None means 0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9 and 0.95.
    cv : int, splitter or iterable, default=None
        The folds. None means 5 folds. An int or None makes folds that are stratified by label
        and shuffled with a fixed seed, because labels are often sorted; where `fit` is given
        groups, these folds keep each group together.
    scoring : str or scorer, default="roc_auc"
        The metric, on the labels +1 and -1, in a form that scikit-learn takes. Higher is
        better. The metric must depend only on the order of the scores: ``"roc_auc"``,
        ``"average_precision"`` and `skdice.metrics.neg_fpr95_scorer` do.
    shaping : transformer, list of transformers, or None, default=None
        The shaping, as in `DICEDetector`. Each shaping of a list, which may contain None, is
        tried with each sparsity.
    score_func : {"energy", "max_logit", "msp", "gen"} or callable, default="energy"
        The score, as in `DICEDetector`.
    contamination : float in (0, 0.5], default=0.05
        The share of in-distribution rows below the threshold, as in `DICEDetector`.
    device : str, default=None
        The device that scores rows after `fit`. The search itself runs on the CPU.
    batch_size : int, default=None
        The number of rows per block; None lets skdice choose.
    n_jobs : int, default=None
        The number of threads, as in `DICEDetector`.
    verbose : int, default=0
        Above 0, progress bars are shown on stderr.

    Attributes
    ----------
    sparsity_ : float
        The best sparsity.
    best_shaping_ : transformer or None
        The best shaping, unfitted.
    best_score_ : float
        The mean metric of the best candidate over the folds.
    best_index_ : int
        The place of the best candidate in `cv_results_`.
    cv_results_ : dict of str to ndarray
        The results under the names of `sklearn.model_selection.GridSearchCV`:
        ``param_sparsity``, ``param_shaping`` where `shaping` is a list, ``params``,
        ``split0_test_score`` and so on, ``mean_test_score``, ``std_test_score``,
        ``rank_test_score``.
    n_splits_ : int
        The number of folds.
    mean_activation_, mask_, coef_, intercept_, contribution_threshold_, head_agreement_, \
    shaping_, offset_, n_samples_seen_, n_features_in_, feature_names_in_
        The attributes of the detector that is fitted on all in-distribution rows, as in
        `DICEDetector`.

    See Also
    --------
    sparsity_path : Returns the scores of rows at each sparsity.
    sklearn.model_selection.GridSearchCV : Searches over any parameter.

    Notes
    -----
    `best_score_` is the best of several values and therefore a little too good. Measure the
    chosen detector on rows that had no part in the choice. Then `calibrate` the detector on
    unseen in-distribution rows.

    Candidates are not warned about: only the detector with the chosen sparsity is checked for
    its `head_agreement_` and for ties.

    Choose with real outliers. Artificial outliers, made of in-distribution features, did not
    find the best sparsity in our measurements, and one kind led to a harmful choice
    (docs/user_guide/choosing.rst).

    Examples
    --------
    >>> import numpy as np
    >>> from skdice import DICEDetectorCV
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> data = load_fashion_mnist_ood()
    >>> X = np.concatenate([data.id_train, data.ood["mnist"][:500]])
    >>> y = np.repeat([1, -1], [len(data.id_train), 500])
    >>> detector = DICEDetectorCV(data.head, sparsities=[0, 0.1, 0.9]).fit(X, y)
    >>> detector.sparsity_
    0.1

    Outliers in an array or file of their own need no labels:

    >>> detector = DICEDetectorCV(data.head, sparsities=[0, 0.1, 0.9])
    >>> detector.fit(data.id_train, outliers=data.ood["mnist"][:500]).sparsity_
    0.1
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **{
            name: each
            for name, each in DICEDetector._parameter_constraints.items()
            if name != "sparsity"
        },
        "sparsities": ["array-like", None],
        "cv": ["cv_object"],
        "scoring": [str, callable],
        "shaping": [BaseEstimator, list, tuple, None],
    }

    sparsity_: float
    best_shaping_: Any
    best_score_: float
    best_index_: int
    cv_results_: dict[str, Any]
    n_splits_: int

    def __init__(
        self,
        head: Any,
        *,
        sparsities: ArrayLike | None = None,
        cv: Any = None,
        scoring: Any = "roc_auc",
        shaping: Any = None,
        score_func: str | Callable[[FloatArray], FloatArray] = "energy",
        contamination: float = 0.05,
        device: str | None = None,
        batch_size: int | None = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.head = head
        self.sparsities = sparsities
        self.cv = cv
        self.scoring = scoring
        self.shaping = shaping
        self.score_func = score_func
        self.contamination = contamination
        self.device = device
        self.batch_size = batch_size
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        outliers: Any = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Choose the sparsity, and fit a detector with it on all in-distribution rows.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features of in-distribution inputs; known outliers may be among them.
        y : array-like of shape (n_samples,), default=None
            The labels of X. -1 marks a known outlier; every other label is in-distribution.
            None means that all rows of X are in-distribution.
        outliers : array-like or source of rows, of shape (n_outliers, n_features), default=None
            Penultimate features of further known outliers, which every fold scores.
        groups : array-like of shape (n_samples,), default=None
            The group of each row of X, for the splitter. A splitter such as
            `sklearn.model_selection.StratifiedGroupKFold` keeps the rows of a group together.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            There are no outliers, a fold lacks one of the two kinds of rows, widths do not
            match, a value is not finite, or a parameter is out of its range.
        """
        self._validate_parameters(X)
        sparsities = check_sparsities(SPARSITIES if self.sparsities is None else self.sparsities)
        listed = isinstance(self.shaping, list | tuple)
        shapings = list(self.shaping) if listed else [self.shaping]
        if not shapings:
            raise ValueError("shaping is an empty list, expected at least one")
        with self._unchanged_on_error():
            rows = as_sliced_source(X)
            self._open(X, reset=True)
            head = as_linear_head(self.head, rows.shape[1])
            inliers = None if y is None else rows.inlier_mask(y)
            labels = np.ones(len(rows), np.int_) if inliers is None else np.where(inliers, 1, -1)
            outlier_rows = _check_outliers(outliers, rows.shape[1], labels)
            folds = self._folds(labels, groups)
            names = ("score_func", "scoring", "batch_size", "n_jobs", "verbose")
            options = {name: getattr(self, name) for name in names}
            # Folds run in parallel only in a `joblib.parallel_config` context, and only on rows in
            # memory: an open file cannot be sent to other processes.
            in_memory = isinstance(rows, NumpyRows) and (
                outlier_rows is None or isinstance(outlier_rows, NumpyRows)
            )
            jobs = (
                # Head and rows are arguments by themselves because Dask sends a large argument
                # to each worker once, but the attributes of an object with every task.
                delayed(_fold_scores)(
                    head, rows, labels, outlier_rows, fold, shapings, sparsities, **options
                )
                for fold in folds
            )
            parallel = Parallel(n_jobs=None if in_memory else 1, prefer="threads")
            scores = np.array(parallel(jobs))
            self._set_results(scores, shapings if listed else None, sparsities)
            self.n_splits_ = len(folds)
            candidates = list(product(shapings, sparsities))
            self.best_shaping_, self.sparsity_ = candidates[self.best_index_]
            self._fit_rows(X, y, None)
        return self

    @property
    def _pruning(self) -> tuple[float, Any]:
        return self.sparsity_, self.best_shaping_

    def _detector_parameters(self) -> dict[str, Any]:
        parameters = self.get_params(deep=False)
        chosen = {"sparsity": self.sparsity_, "shaping": self.best_shaping_}
        names = DICEDetector(self.head).get_params(deep=False)
        return {name: parameters[name] for name in names if name not in chosen} | chosen

    def _folds(
        self, labels: NDArray[np.int_], groups: ArrayLike | None
    ) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """Return the indices to train on and to test of each fold."""
        if self.cv is None or isinstance(self.cv, int):
            kind = StratifiedKFold if groups is None else StratifiedGroupKFold
            splitter = kind(self.cv or 5, shuffle=True, random_state=0)
        else:
            splitter = check_cv(self.cv, labels, classifier=True)
        return list(splitter.split(np.zeros((len(labels), 1)), labels, groups))

    def _set_results(
        self, scores: FloatArray, shapings: Sequence[Any] | None, sparsities: Sequence[float]
    ) -> None:
        """Set the results of the search from scores of shape (n_splits, n_candidates)."""
        params = [
            {"sparsity": sparsity} | ({} if shapings is None else {"shaping": shaping})
            for shaping, sparsity in product(shapings or [None], sparsities)
        ]
        results: dict[str, Any] = {"params": params}
        for name in params[0]:
            column = np.ma.empty(len(params), dtype=object if name == "shaping" else np.float64)
            column[:] = [each[name] for each in params]
            results[f"param_{name}"] = column
        results |= {f"split{n}_test_score": each for n, each in enumerate(scores)}
        mean = scores.mean(axis=0)
        rank = rankdata(-np.nan_to_num(mean, nan=-np.inf), method="min").astype(np.int32)
        results |= {
            "mean_test_score": mean,
            "std_test_score": scores.std(axis=0),
            "rank_test_score": rank,
        }
        self.cv_results_ = results
        self.best_index_ = int(rank.argmin())
        self.best_score_ = float(mean[self.best_index_])


def _check_outliers(outliers: Any, n_features: int, labels: NDArray[np.int_]) -> SlicedRows | None:
    """Return the outliers that `fit` was given as a source of rows; None if y labels some."""
    if outliers is not None:
        rows = as_sliced_source(outliers, "outliers")
        if rows.shape[1] != n_features:
            raise ValueError(f"outliers has {rows.shape[1]} features, but X has {n_features}")
        return rows
    if -1 not in labels:
        raise ValueError(
            "there are no outliers to choose by: label known outliers -1 in y, or give their "
            "features to fit as outliers="
        )
    return None
