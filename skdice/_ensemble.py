"""ConformalEnsemble: one verdict from several detectors, with nothing to choose."""

import warnings
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import get_config
from sklearn.base import clone
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted

from skdice._base import BaseDetector
from skdice._compat.arrays import is_dask, keeps_namespace, namespace_name, to_host
from skdice._compat.extras import import_extra
from skdice._compat.sklearn import Composition, Interval, StrOptions, VisualBlock
from skdice._dice import DICEDetector
from skdice._engines.combination import FittedEnsemble, run_ensemble
from skdice._engines.reference_scores import (
    Combination,
    ReferenceDistribution,
    combine_log_pvalues,
)
from skdice._engines.run import Options
from skdice._engines.together import Member, columns_of, groups_of, run_together
from skdice._export.description import CombinedLayers
from skdice._fdbd import FDBDDetector
from skdice._head import LinearHead, as_linear_head
from skdice._passes.mean import Wanted, measure
from skdice._passes.threshold import score_threshold
from skdice._rows.sources import BlockValues, RowSource, SlicedRows, scoring_dtype
from skdice._vim import ViMDetector
from skdice.shaping import ReAct

Float64Array = NDArray[np.float64]

# Detectors that need the same passes over the rows. A derived class may fit in another way.
FITTED_TOGETHER = (DICEDetector, FDBDDetector, ViMDetector)


class ConformalEnsemble(BaseDetector, Composition):
    """One out-of-distribution detector from several, combined by their p-values.

    No single score suits every network, and without outliers nobody can tell which one suits
    theirs. This detector asks several detectors that are wrong in different ways. Each
    member's score becomes a p-value among the scores of the rows of `fit`, and the score of a row
    is the mean of the logarithms of its p-values, or their minimum. This is novelty detection
    in scikit-learn's terms. `make_ensemble` returns the ensemble that needs no choice.

    The combination is a fixed function once the ensemble is fitted. So after
    ``calibrate(X, method="conformal")`` on rows apart from those of `fit` the false-alarm rate
    is guaranteed for any number of members and any dependence between them.

    Parameters
    ----------
    estimators : list of (str, detector)
        Names and detectors: those of skdice, or any outlier detector of scikit-learn with
        `score_samples`, such as `IsolationForest`, ``LocalOutlierFactor(novelty=True)`` or a
        `Pipeline`. They are cloned in `fit`. Their own thresholds are not used.
    combination : {"fisher", "min"}, default="fisher"
        ``"fisher"`` is the mean of the log p-values: several moderate objections add up.
        ``"min"`` is the smallest: one strong objection is enough. At level a it flags at least
        what each of K members flags at a / K.
    contamination : float in (0, 0.5], default=0.05
        Share of the in-distribution rows given to `fit` or `calibrate` that falls below the
        threshold.
    batch_size : int, default=None
        Rows per block; None chooses them so that a block stays in cache.
    n_jobs : int, default=None
        Members of other libraries that are fitted at a time, and threads that work on blocks of
        rows, as in `DICEDetector`.
    verbose : int, default=0
        Above 0, progress bars on stderr.

    Attributes
    ----------
    estimators_ : list of detector
        The fitted members.
    named_estimators_ : dict of str to detector
        The fitted members by name.
    head_ : LinearHead or None
        The head of the members of skdice; None if there are none.
    offset_ : float
        The threshold on the scores.
    contamination_ : float
        The contamination in force: that of `calibrate` after a call of it.
    calibration_ : Calibration
        Record of the last `calibrate`.
    calibration_scores_ : ndarray of shape (n_calibration,)
        Sorted scores of the rows given to `calibrate` with ``method="conformal"``.
    n_samples_seen_ : int
        Number of reference rows.
    n_features_in_ : int
        Number of features seen in fit.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, where X had them, all strings.

    See Also
    --------
    make_ensemble : The ensemble of four detectors for a head.
    DICEDetector : One detector, where its setting was measured on the network.

    Notes
    -----
    The p-value of a member is ``(1 + #{reference scores at or below}) / (n + 1)``. Below the
    2 % quantile of the reference an exponential tail takes over, so that far outliers do not
    tie. At most 10,000 quantiles of each reference are kept. The guarantee does not depend on
    the tail or on the quantiles, because it comes from the calibration rows alone.

    References
    ----------
    Fisher, "Statistical Methods for Research Workers", 1932; Bates, Candes, Lei, Romano & Sesia,
    "Testing for outliers with conformal p-values", Annals of Statistics 2023, arXiv:2104.08279.

    Examples
    --------
    >>> from skdice import ConformalEnsemble, DICEDetector
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> from sklearn.ensemble import IsolationForest
    >>> data = load_fashion_mnist_ood()
    >>> members = [("dice", DICEDetector(data.head)), ("forest", IsolationForest(random_state=0))]
    >>> ensemble = ConformalEnsemble(members).fit(data.id_train)
    >>> ensemble = ensemble.calibrate(data.id_test[:2000], method="conformal")
    >>> bool((ensemble.predict(data.id_test[2000:]) == -1).mean() < 0.08)
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "estimators": [list],
        "combination": [StrOptions({"fisher", "min"})],
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    estimators_: list[Any]
    named_estimators_: dict[str, Any]
    _layer: FittedEnsemble  # type: ignore[assignment]
    # Each member has a device of its own.
    device = None

    def __init__(
        self,
        estimators: list[tuple[str, Any]],
        *,
        combination: Combination = "fisher",
        contamination: float = 0.05,
        batch_size: int | None = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.estimators = estimators
        self.combination = combination
        self.contamination = contamination
        self.batch_size = batch_size
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Fit the members, and keep the distributions of their scores.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features of in-distribution inputs, as they enter the head.
        y : array-like of shape (n_samples,), default=None
            Rows labelled -1 are known outliers and are left out.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            There are no members, two have the same name, their heads differ, a member returns a
            score that is not finite, or a parameter is out of its range.
        TypeError
            A member has no `score_samples`.
        """
        self._validate_parameters(X)
        self._validate_members()
        with self._unchanged_on_error():
            rows = self._open(X, reset=True)
            inliers = rows if y is None else rows.inliers(y)
            reference = self._fit_members(X, y, inliers)
            self._warn_of_constant(reference)
            members = self._set_members(self.estimators_)
            references = tuple(map(ReferenceDistribution.from_scores, reference.T))
            self._layer = FittedEnsemble(members, references, self.combination)
            self.n_samples_seen_ = len(reference)
            combined = combine_log_pvalues(self._layer.log_pvalues(reference), self.combination)
            self._forget_threshold()
            # In the dtype of `score_samples`, so that the same rows lie below the threshold there.
            scores = combined.astype(scoring_dtype(rows.dtype))
            self.offset_ = score_threshold(scores, self.contamination)
            self.contamination_ = float(self.contamination)
            self._fit_namespace = namespace_name(X) if keeps_namespace(X) else None
        return self

    def member_scores(self, X: ArrayLike) -> Any:
        """Return the score of each row by each member: higher = more in-distribution.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features.

        Returns
        -------
        array of the kind of X, of shape (n_samples, n_members), float64
            A data frame with the names of the members as columns, where `set_output` or
            scikit-learn's configuration asks for one.
        """
        return self._member_values(X, "member_scores")

    def member_pvalues(self, X: ArrayLike) -> Any:
        """Return the p-value of each row by each member: the small ones object to the row.

        These p-values come from the rows of `fit`, so they tell which member objects and how much.
        The guarantee is that of `pvalues`, which come from the calibration rows.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features.

        Returns
        -------
        array of the kind of X, of shape (n_samples, n_members), float64
            A data frame with the names of the members as columns, where `set_output` or
            scikit-learn's configuration asks for one.
        """
        return self._member_values(X, "member_pvalues")

    def to_torch(self) -> Any:
        """Return a torch module that scores features as this ensemble does.

        Returns
        -------
        torch.nn.Module
            In evaluation mode, on the CPU; its methods are those of `DICEDetector.to_torch`.

        Raises
        ------
        ValueError
            A member is of another library than skdice, or holds a function of the user.
        ImportError
            torch is not installed.
        """
        check_is_fitted(self)
        import_extra("torch", "torch")
        from skdice._engines.module import ensemble_module

        foreign = [member.name for member in self._layer.members if member.layer is None]
        if foreign:
            raise ValueError(
                f"the member {foreign[0]!r} is {self.named_estimators_[foreign[0]]!r}: only "
                "detectors of skdice become a torch module"
            )
        module = ensemble_module(
            [member.layer for member in self._layer.members],
            list(self._layer.references),
            by_minimum=self._layer.combination == "min",
            threshold=getattr(self, "offset_", np.nan),
        )
        return self._with_calibration(module).eval()

    def _exported_layer(self) -> CombinedLayers:
        """Return what computes the scores of the members, and how they are combined."""
        for name, detector in self.named_estimators_.items():
            if not isinstance(detector, BaseDetector):
                raise ValueError(
                    f"the member {name!r} is {detector!r}: only detectors of skdice are exported "
                    "to ONNX; leave this member out"
                )
        return CombinedLayers(
            tuple(detector._exported_layer() for detector in self.estimators_),
            self._layer.references,
            self._layer.combination,
        )

    def set_output(
        self, *, transform: Literal["default", "pandas", "polars"] | None = None
    ) -> Self:
        """Choose what `member_scores` and `member_pvalues` return.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"}, default=None
            Arrays of the kind of X, or data frames of that library; None changes nothing.

        Returns
        -------
        self
        """
        if transform is not None:
            if transform not in ("default", "pandas", "polars"):
                raise ValueError(
                    f"transform is {transform!r}, expected 'default', 'pandas' or 'polars'"
                )
            self._sklearn_output_config = {"transform": transform}
        return self

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters, those of the members under ``name__parameter``.

        Parameters
        ----------
        deep : bool, default=True
            Whether the members and their parameters are included.

        Returns
        -------
        dict of str to object
        """
        parameters: dict[str, Any] = self._get_params("estimators", deep=deep)
        return parameters

    def set_params(self, **params: Any) -> Self:
        """Set parameters; ``name=detector`` replaces a member.

        Parameters
        ----------
        **params : object
            Parameters by name.

        Returns
        -------
        self
        """
        self._set_params("estimators", **params)
        return self

    @property
    def _names(self) -> list[str]:
        return [name for name, _ in self.estimators]

    def _block_values(self, layer: Any = None, values: str = "scores") -> BlockValues:
        options = Options(None, self.batch_size, self.n_jobs, self.verbose)
        return partial(run_ensemble, self._layer, options, values)

    def _scores_with_members(self, X: Any) -> tuple[Any, dict[str, Float64Array]]:
        """Return what `score_samples` returns, and the scores of each member, in one pass."""
        rows = self._open(X, "score_samples")
        names = list(self.named_estimators_)
        function = self._block_values(values="member_scores")
        blocks = [v for _, v in rows.iterate_values(function, np.float64, len(names))]
        members = np.concatenate([np.empty((0, len(names))), *blocks])
        combined = combine_log_pvalues(self._layer.log_pvalues(members), self._layer.combination)
        scores = combined.astype(scoring_dtype(rows.dtype))
        return scores, dict(zip(names, members.T, strict=True))

    def _has_threshold_of_fit(self, X: Any, scores: Any) -> bool:
        """Return whether the scores of a member give the threshold that `fit` set to the member.

        The scores of the ensemble come from a grid of p-values, which other rows share.
        """
        for n, detector in enumerate(self.estimators_):
            if isinstance(detector, BaseDetector) and hasattr(detector, "offset_"):
                values = self.member_scores(X)
                values = values.compute() if is_dask(values) else np.asarray(to_host(values))
                own = values[:, n].astype(scoring_dtype(self._open(X).dtype))
                return detector._has_threshold_of_fit(X, own)
        return False

    def _judgements(self) -> tuple[BlockValues, tuple[str, ...]]:
        return self._block_values(values="judgements"), tuple(self.named_estimators_)

    def _member_values(self, X: Any, values: str) -> Any:
        rows = self._open(X, values)
        collected = rows.collect(
            self._block_values(values=values), np.float64, len(self.estimators_)
        )
        configured = getattr(self, "_sklearn_output_config", {}).get("transform")
        library = configured or get_config()["transform_output"]
        if library == "default":
            return collected
        frames = import_extra(library, "test")
        names = list(self.named_estimators_)  # the parameter may have been set after the fit
        collected = collected.compute() if is_dask(collected) else to_host(collected)
        if library == "pandas":
            return frames.DataFrame(collected, getattr(X, "index", None), names)
        return frames.DataFrame(collected, schema=names)

    def _validate_members(self) -> None:
        if not self.estimators:
            raise ValueError("estimators is an empty list, expected (name, detector) pairs")
        for pair in self.estimators:
            if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
                raise TypeError(f"estimators holds {pair!r}, expected pairs (name, detector)")
            if isinstance(pair[1], type) or not hasattr(pair[1], "score_samples"):
                hint = ""
                if type(pair[1]).__name__ == "LocalOutlierFactor":
                    hint = "; LocalOutlierFactor has it with novelty=True"
                raise TypeError(
                    f"the member {pair[0]!r} is {pair[1]!r}, expected an outlier detector with "
                    f"score_samples{hint}"
                )
        seen: set[str] = set()
        parameters = self.get_params(deep=False)
        for name in self._names:
            if name in seen:
                raise ValueError(f"two members have the name {name!r}, expected different names")
            seen.add(name)
            if "__" in name or name in parameters:
                raise ValueError(
                    f"a member has the name {name!r}, expected a name without '__' that is no "
                    "parameter of the ensemble"
                )

    def _fit_members(self, X: Any, y: Any, inliers: RowSource) -> Float64Array:
        """Fit clones of the members; return the scores of the in-distribution rows.

        The detectors of skdice are fitted together, in two passes over the rows. Those of other
        libraries are fitted in parallel.
        """
        self.estimators_ = [clone(detector) for _, detector in self.estimators]
        self._fit_foreign_members(inliers)
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "n_jobs": self.n_jobs,
            "verbose": self.verbose,
        }
        wanted = Wanted()
        heads: dict[int, LinearHead] = {}
        for n, detector in enumerate(self.estimators_):
            if type(detector) in FITTED_TOGETHER:
                detector._validate_parameters(X)
                detector._open(X, reset=True)
                head = as_linear_head(detector.head, inliers.shape[1])
                # Equal heads become one object, which is stored and compared once.
                heads[n] = next((other for other in heads.values() if other == head), head)
                wanted |= detector._wanted(heads[n], inliers)
            elif isinstance(detector, BaseDetector):
                detector.fit(X, y)
        layers = {}
        if heads:
            measured = measure(inliers, wanted, **options)
            if measured.statistics.n_samples == 0:
                raise self._no_rows(inliers.shape[0], labelled=y is not None)
            for n, head in heads.items():
                layers[n] = self.estimators_[n]._set_measured(head, inliers, measured)
        members = [
            _member_of(name, detector, layers.get(n))
            for n, (name, detector) in enumerate(zip(self._names, self.estimators_, strict=True))
        ]
        values = self._collected(inliers, members, Options(**options))
        scores = np.empty((len(values), len(members)))
        for n, (detector, columns) in enumerate(
            zip(self.estimators_, columns_of(members), strict=True)
        ):
            own = values[:, columns]
            if n in layers:
                own = own.astype(scoring_dtype(inliers.dtype), copy=False)
                own = detector._set_values(inliers, own, measured)
                detector._set_threshold(inliers, own)
                if get_config()["array_api_dispatch"]:
                    detector._follow(X)
            scores[:, n] = own
        return scores

    def _fit_foreign_members(self, inliers: RowSource) -> None:
        places = [n for n, d in enumerate(self.estimators_) if not isinstance(d, BaseDetector)]
        if not places:
            return
        if not isinstance(inliers, SlicedRows):
            raise TypeError(
                f"{type(self.estimators_[places[0]]).__name__} needs its rows in memory, but X is "
                "a Dask collection; leave this member out, or give X.compute()"
            )
        array = np.asarray(inliers)
        jobs = (delayed(_fit_foreign)(self.estimators_[n], array) for n in places)
        for n, fitted in zip(places, Parallel(n_jobs=self.n_jobs)(jobs), strict=True):
            self.estimators_[n] = fitted

    def _set_members(self, fitted: list[Any]) -> tuple[Member, ...]:
        """Set the fitted members; return them as they are computed."""
        self.estimators_ = fitted
        self.named_estimators_ = dict(zip(self._names, fitted, strict=True))
        self.head_ = self._common_head()
        return tuple(map(_member_of, self._names, fitted))

    def _common_head(self) -> Any:
        """Return the head that all members of skdice share."""
        heads = [
            (name, member.head_)
            for name, member in self.named_estimators_.items()
            if isinstance(member, BaseDetector) and member.head_ is not None
        ]
        for name, head in heads[1:]:
            if head != heads[0][1]:
                raise ValueError(
                    f"the members {heads[0][0]!r} and {name!r} have different heads, "
                    f"{heads[0][1]!r} and {head!r}, expected the head of one classifier"
                )
        return heads[0][1] if heads else None

    def _collected(self, rows: RowSource, members: list[Member], options: Options) -> Float64Array:
        """Return the values of the rows of `fit` by each member, which are looked at once."""
        width = sum(1 if each.layer is None else each.layer.n_columns or 1 for each in members)
        values = rows.collect(
            partial(run_together, members, groups_of(members), options), np.float64, width
        )
        array = np.asarray(values.compute() if is_dask(values) else to_host(values), np.float64)
        if len(array) == 0:
            raise self._no_rows(0, labelled=False)
        return array

    def _warn_of_constant(self, reference: Float64Array) -> None:
        """Warn of members that give all rows of `fit` one score."""
        for name, column in zip(self._names, reference.T, strict=True):
            if len(reference) > 1 and (column == column[0]).all():
                warnings.warn(
                    f"the member {name!r} gives all {len(reference)} rows the score "
                    f"{column[0]:g}: it has no voice in the ensemble",
                    UserWarning,
                    stacklevel=3,
                )

    def _sk_visual_block_(self) -> Any:
        names, detectors = zip(*self.estimators, strict=True)
        return VisualBlock("parallel", detectors, names=names)


def make_ensemble(
    head: Any,
    *,
    combination: Combination = "fisher",
    contamination: float = 0.05,
    device: str | None = None,
    batch_size: int | None = None,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> ConformalEnsemble:
    """Return the ensemble of four detectors that needs no choice and no outliers.

    The members are the energy and DICE at sparsity 0.1, both with activations clipped at their
    0.99 quantile (ReAct), the distance to the decision boundaries (fDBD) and virtual-logit
    matching (ViM). They are wrong in different ways: whether pruning helps is just what is not
    known before outliers are seen, so a score with and one without it are in.

    Parameters
    ----------
    head : LinearHead, tuple (weight, bias), array of shape (n_classes, n_features) or "identity"
        The last linear layer of the classifier.
    combination : {"fisher", "min"}, default="fisher"
        Combination of the p-values, as in `ConformalEnsemble`.
    contamination : float in (0, 0.5], default=0.05
        Share of in-distribution rows below the threshold, as in `ConformalEnsemble`.
    device : {None, "auto", "cpu", "cuda", "cuda:1", "mps"}, default=None
        Device of each member, as in `DICEDetector`.
    batch_size : int, default=None
        Rows per block; None chooses them.
    n_jobs : int, default=None
        Threads that work on blocks of rows, as in `DICEDetector`.
    verbose : int, default=0
        Above 0, progress bars on stderr.

    Returns
    -------
    ConformalEnsemble
        Unfitted, with the members ``"energy"``, ``"dice"``, ``"fdbd"`` and ``"vim"``.

    Examples
    --------
    >>> from skdice import make_ensemble
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> data = load_fashion_mnist_ood()
    >>> detector = make_ensemble(data.head).fit(data.id_train)
    >>> detector = detector.calibrate(data.id_test[:2000], method="conformal")
    >>> bool((detector.predict(data.ood["mnist"]) == -1).mean() > 0.8)
    True
    """
    options: dict[str, Any] = {
        "device": device,
        "batch_size": batch_size,
        "n_jobs": n_jobs,
        "verbose": verbose,
    }
    estimators = [
        ("energy", DICEDetector(head, sparsity=0, shaping=ReAct(quantile=0.99), **options)),
        ("dice", DICEDetector(head, sparsity=0.1, shaping=ReAct(quantile=0.99), **options)),
        ("fdbd", FDBDDetector(head, **options)),
        ("vim", ViMDetector(head, **options)),
    ]
    return ConformalEnsemble(
        estimators,
        combination=combination,
        contamination=contamination,
        batch_size=batch_size,
        n_jobs=n_jobs,
        verbose=verbose,
    )


def _member_of(name: str, detector: Any, layer: Any = None) -> Member:
    """Return a fitted detector as it is computed, or a layer in its place."""
    if isinstance(detector, ConformalEnsemble) or not isinstance(detector, BaseDetector):
        return Member(name, score_samples=detector.score_samples)
    return Member(name, detector._layer if layer is None else layer, detector.device)


def _fit_foreign(detector: Any, rows: NDArray[Any]) -> Any:
    return detector.fit(rows)
