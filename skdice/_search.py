"""DICEDetectorCV: the sparsity by cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Self

import numpy as np
from joblib import effective_n_jobs
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.metrics import get_scorer
from sklearn.model_selection import StratifiedKFold, check_cv
from sklearn.utils.parallel import Parallel, delayed

from skdice._base import BaseDICE, inlier_rows
from skdice._dice import DICEDetector
from skdice._engines import block_threads
from skdice._engines.scoring import fitted_shaping
from skdice._head import LinearHead
from skdice._passes.mean import FeatureStatistics, add_rows
from skdice._path import check_sparsities, path_scores
from skdice._rows.dask import sliceable
from skdice._rows.sources import Rows, check_rows
from skdice._trials import LEAVE_OUT, PSEUDO_OUTLIERS, Trial, fold_trials, predicted_classes

FloatArray = NDArray[np.floating[Any]]

SPARSITIES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)


class _Scored(OutlierMixin, BaseEstimator):
    """Stands for a fitted detector where a scorer asks for scores that are known."""

    def __init__(self, scores: FloatArray) -> None:
        self.scores = scores

    def decision_function(self, X: Any) -> FloatArray:
        """Return the scores."""
        return self.scores

    score_samples = decision_function


@dataclass(frozen=True)
class _Candidates:
    """What a fold compares, and how.

    Parameters
    ----------
    shapings : sequence of transformer or None
        Each with each of the sparsities.
    sparsities : sequence of float
        In ascending order.
    score_func, scoring, batch_size, verbose
        Of the search.
    """

    shapings: Sequence[Any]
    sparsities: Sequence[float]
    score_func: str | Callable[[FloatArray], FloatArray]
    scoring: Any
    batch_size: int | None
    verbose: int | bool

    def measure(self, trial: Trial, n_threads: int) -> list[float]:
        """Return the metric of each candidate on one trial."""
        statistics = FeatureStatistics(trial.head.n_features)
        add_rows(statistics, trial.fitted, batch_size=self.batch_size, n_threads=n_threads)
        scorer = get_scorer(self.scoring)
        results: list[float] = []
        for shaping in self.shapings:
            shaped = fitted_shaping(shaping, trial.fitted)
            y_score = np.concatenate(
                [
                    path_scores(
                        trial.head,
                        statistics.mean(),
                        shaped,
                        each,
                        self.sparsities,
                        self.score_func,
                        self.batch_size,
                        self.verbose,
                    )
                    for each in trial.sources
                ],
                axis=1,
            )
            unused = np.zeros((len(trial.y_true), 1))
            results += [float(scorer(_Scored(each), unused, trial.y_true)) for each in y_score]
        return results


def fold_scores(
    head: LinearHead,
    rows: Rows,
    labels: NDArray[np.int_],
    outliers: Any,
    classes: NDArray[np.intp] | None,
    fold: tuple[NDArray[Any], NDArray[Any]],
    candidates: _Candidates,
    n_threads: int,
) -> FloatArray:
    """Return the metric of each candidate on one fold, the mean over its trials.

    Parameters
    ----------
    head, rows, labels, fold, outliers, classes
        As in `fold_trials`.
    candidates : _Candidates
        What is compared.
    n_threads : int
        Threads that sum the rows.
    """
    trials = fold_trials(head, rows, labels, fold, outliers, classes)
    measured: FloatArray = np.mean([candidates.measure(each, n_threads) for each in trials], axis=0)
    return measured


class DICEDetectorCV(BaseDICE):
    """`DICEDetector` whose sparsity is chosen by cross-validation.

    Fitted on in-distribution and known out-of-distribution rows, it scores the held-out rows
    of each fold at every sparsity, from one mean and one selection in the contributions per
    fold, takes the sparsity with the best mean metric, and fits a detector with it on all
    in-distribution rows. Afterwards it is that detector. The results are those of
    `GridSearchCV` over the same folds, to the rounding of the scores, several times faster.

    Parameters
    ----------
    head : LinearHead, tuple (weight, bias) or "identity"
        As in `DICEDetector`.
    sparsities : array-like of float in [0, 1), default=None
        Candidates. None takes 0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9 and 0.95.
    cv : int, splitter or iterable, default=None
        Folds. None and an int are that many (5) stratified folds, shuffled with a fixed
        seed, as labels in sorted order need.
    scoring : str or scorer, default="roc_auc"
        What scikit-learn takes, on the labels +1 and -1, if it looks at nothing but the order
        of the scores: ``"roc_auc"``, ``"average_precision"``,
        `skdice.metrics.neg_fpr95_scorer`. Higher is better.
    outliers : array-like, source of rows, {"permutation", "mixture", "noise", \
            "leave-one-class-out"} or None, default=None
        Known outliers, scored in every fold, besides those that `y` labels -1. Or the name of
        a kind of pseudo-outliers, made of each fold's held-out in-distribution rows: each
        column permuted by itself, means of two rows that the head takes for different
        classes, or normal noise with each column's moments. Or the rows that the head takes
        for one class, with that class left out of the head and of the fitted rows: the mean
        over up to 10 classes per fold, at as many times the cost. Prefer real outliers: on
        the two networks measured none of these found the pruning that helps, and the last once
        chose one that hurts (docs/user_guide/choosing_sparsity.rst).
    shaping : transformer, list of transformers, or None, default=None
        As in `DICEDetector`; of a list, which may hold None, each is tried with each sparsity.
    score_func, contamination, device, batch_size, n_jobs, verbose
        As in `DICEDetector`. The search is computed on the CPU in any case.

    Attributes
    ----------
    sparsity_ : float
        The best sparsity.
    best_shaping_ : transformer or None
        The best shaping, unfitted.
    best_score_ : float
        Its mean metric over the folds.
    best_index_ : int
        Its place in `cv_results_`.
    cv_results_ : dict of str to ndarray
        As of `GridSearchCV`: ``param_sparsity``, ``param_shaping`` where there is a list,
        ``params``, ``split0_test_score`` and so on, ``mean_test_score``, ``std_test_score``,
        ``rank_test_score``.
    n_splits_ : int
        Number of folds.
    mean_activation_, mask_, coef_, intercept_, contribution_threshold_, shaping_, offset_, \
    n_samples_seen_, n_features_in_, feature_names_in_
        Of the detector fitted on all in-distribution rows, as in `DICEDetector`.

    See Also
    --------
    sparsity_path : The scores at each sparsity.
    sklearn.model_selection.GridSearchCV : Searches over any parameter.

    Notes
    -----
    `best_score_` is the best of several and so a little too good; measure the chosen detector
    on rows that had no part in the choice. Then `calibrate` it on unseen in-distribution rows.

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
        "outliers": "no_validation",
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
        head: Any = None,
        sparsities: ArrayLike | None = None,
        *,
        cv: Any = None,
        scoring: Any = "roc_auc",
        outliers: Any = None,
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
        self.outliers = outliers
        self.shaping = shaping
        self.score_func = score_func
        self.contamination = contamination
        self.device = device
        self.batch_size = batch_size
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Choose the sparsity, and fit a detector with it on all in-distribution rows.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features of in-distribution inputs and of known outliers.
        y : array-like of shape (n_samples,), default=None
            -1 for known outliers; all others are in-distribution. Not needed where
            `outliers` is given.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            There are no outliers, a fold lacks a class, widths do not match, a value is not
            finite, or a parameter is out of its range.
        """
        self._validate_parameters(X)
        sparsities = check_sparsities(SPARSITIES if self.sparsities is None else self.sparsities)
        listed = isinstance(self.shaping, list | tuple)
        shapings = list(self.shaping) if listed else [self.shaping]
        if not shapings:
            raise ValueError("shaping is an empty list, expected at least one")
        with self._unchanged_on_error():
            rows = sliceable(self._validate_rows(X, reset=True))
            head = self._resolve_head(rows.shape[1])
            inliers = inlier_rows(rows, y)
            is_inlier = np.ones(rows.shape[0], np.bool_) if inliers is None else inliers
            outliers = self._outliers(rows.shape[1], is_inlier)
            leaves_out = isinstance(outliers, str) and outliers == LEAVE_OUT
            classes = predicted_classes(head, rows) if leaves_out else None
            labels = np.where(is_inlier, 1, -1)
            folds = list(self._folds(labels))
            candidates = _Candidates(
                shapings, sparsities, self.score_func, self.scoring, self.batch_size, self.verbose
            )
            # In a `joblib.parallel_config` context, folds at a time; rows in a file stay here.
            in_memory = isinstance(rows, np.ndarray) and (
                outliers is None or isinstance(outliers, str | np.ndarray)
            )
            together = effective_n_jobs(None) > 1 and in_memory
            n_threads = 1 if together else max(2, block_threads(self.n_jobs))
            jobs = (
                # What is large and the same is a value of its own, which a cluster is sent once.
                delayed(fold_scores)(
                    head, rows, labels, outliers, classes, fold, candidates, n_threads
                )
                for fold in folds
            )
            parallel = Parallel(n_jobs=None if in_memory else 1, prefer="threads")
            scores = np.array(parallel(jobs))
            self._set_results(scores, shapings if listed else None, sparsities)
            self.n_splits_ = len(folds)
            best = self._candidates(shapings, sparsities)[self.best_index_]
            self.best_shaping_, self.sparsity_ = best
            self.__dict__.pop("calibration_scores_", None)
            fitted = vars(self._detector().fit(X, y))
            parameters = self._detector().get_params(deep=False)
            self.__dict__.update(
                {name: each for name, each in fitted.items() if name not in parameters}
            )
        return self

    def save(self, path: Any) -> None:
        """Write the fitted detector to a file, as a `DICEDetector` with the best sparsity.

        Parameters
        ----------
        path : str or Path
            As in `DICEDetector.save`.
        """
        detector = self._detector()
        parameters = self.get_params(deep=False)
        detector.__dict__.update(
            {name: each for name, each in vars(self).items() if name not in parameters}
        )
        detector.save(path)

    def _detector(self) -> DICEDetector:
        """Return the chosen detector, unfitted."""
        names = ("head", "score_func", "contamination", "device", "batch_size", "n_jobs", "verbose")
        return DICEDetector(
            sparsity=self.sparsity_,
            shaping=self.best_shaping_,
            **{name: getattr(self, name) for name in names},
        )

    def _outliers(self, n_features: int, is_inlier: NDArray[np.bool_]) -> Any:
        """Return a source of outliers, the name of a generator, or None."""
        if isinstance(self.outliers, str):
            if self.outliers not in PSEUDO_OUTLIERS:
                raise ValueError(
                    f"outliers is {self.outliers!r}, expected one of {', '.join(PSEUDO_OUTLIERS)}, "
                    "or features of outliers"
                )
            return self.outliers
        if self.outliers is not None:
            outliers = sliceable(check_rows(self.outliers, "outliers"))
            if outliers.shape[1] != n_features:
                raise ValueError(
                    f"outliers has {outliers.shape[1]} features, but X has {n_features}"
                )
            return outliers
        if is_inlier.all():
            raise ValueError(
                "there are no outliers to choose by: label known ones -1 in y, or give outliers= "
                f"as features or as one of {', '.join(PSEUDO_OUTLIERS)}"
            )
        return None

    def _folds(self, labels: NDArray[np.int_]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        if self.cv is None or isinstance(self.cv, int):
            splitter = StratifiedKFold(self.cv or 5, shuffle=True, random_state=0)
        else:
            splitter = check_cv(self.cv, labels, classifier=True)
        return iter(splitter.split(np.zeros((len(labels), 1)), labels))

    @staticmethod
    def _candidates(
        shapings: Sequence[Any], sparsities: Sequence[float]
    ) -> list[tuple[Any, float]]:
        return list(product(shapings, sparsities))

    def _set_results(
        self, scores: FloatArray, shapings: Sequence[Any] | None, sparsities: Sequence[float]
    ) -> None:
        """Set what `GridSearchCV` does from scores of shape (n_splits, n_candidates)."""
        candidates = self._candidates(shapings or [None], sparsities)
        params = [
            {"sparsity": sparsity} | ({} if shapings is None else {"shaping": shaping})
            for shaping, sparsity in candidates
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
