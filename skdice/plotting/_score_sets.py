"""What the displays of scores share: the scores of in-distribution rows and of named OOD sets."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_consistent_length
from sklearn.utils.validation import check_is_fitted

from skdice._rows.sources import FloatArray
from skdice.metrics import auroc, fpr_at_tpr
from skdice.metrics._counts import fpr_name
from skdice.metrics._rates import finite_scores, labelled, validated
from skdice.metrics._report import ID_NAME, error_prefix, score_rows
from skdice.plotting._style import DisplayMixin, plain

OOD_NAME = "out-of-distribution"


class ScoreSetsMixin(DisplayMixin):
    """Scores, their metrics, and the ways to make a display of them."""

    def __init__(
        self,
        *,
        id_scores: ArrayLike,
        ood_scores: Any,
        tpr: float = 0.95,
        rule: str = "paper",
        id_name: str = ID_NAME,
    ) -> None:
        scores_of = {id_name: id_scores, **named_sets(ood_scores, id_name)}
        for name, scores in scores_of.items():
            with error_prefix(name):
                scores_of[name] = finite_scores(scores, "scores")
        self.id_scores: FloatArray = scores_of.pop(id_name)
        self.ood_scores: dict[str, FloatArray] = scores_of
        self.tpr = tpr
        self.rule = rule
        self.id_name = id_name
        pairs = {name: labelled(self.id_scores, each) for name, each in self.ood_scores.items()}
        self.fpr_at_tpr = {
            name: fpr_at_tpr(*pair, tpr=tpr, rule=rule) for name, pair in pairs.items()
        }
        self.auroc = {name: auroc(*pair) for name, pair in pairs.items()}

    @classmethod
    def from_estimator(
        cls,
        detector: Any,
        X_id: Any,
        ood: Any,
        *,
        tpr: float = 0.95,
        rule: str = "paper",
        id_name: str = ID_NAME,
        ax: Any = None,
        **options: Any,
    ) -> Self:
        """Score rows by a fitted detector and draw the display.

        Rows are scored in blocks; sources may be larger than memory.

        Parameters
        ----------
        detector : outlier detector
            A fitted detector of skdice, a fitted Pipeline that ends in one, or any other
            fitted detector with ``score_samples``.
        X_id : array-like or source of rows, of shape (n_samples, n_features)
            Features of in-distribution inputs that neither the network nor the detector has
            seen.
        ood : array-like, source of rows, or mapping of str to these
            Features of one out-of-distribution set, or of several by name.
        tpr : float in (0, 1], default=0.95
            The true-positive rate at which the false-positive rate is shown.
        rule : {"paper", "roc_curve"}, default="paper"
            The rule of the false-positive rate (see `skdice.metrics.fpr_at_tpr`).
        id_name : str, default="in-distribution"
            The name of the in-distribution rows.
        ax : matplotlib Axes, default=None
            The axes to draw on; None makes a figure.
        **options
            Further parameters of the display.

        Returns
        -------
        display
            The display, drawn.

        Raises
        ------
        ValueError
            No set is given, widths do not match, a value is not finite, or a parameter is out
            of its range.
        sklearn.exceptions.NotFittedError
            The detector is not fitted.
        """
        sets = named_sets(ood, id_name)
        check_is_fitted(detector)
        scores = {}
        for name, X in {id_name: X_id, **sets}.items():
            with error_prefix(name):
                scores[name] = score_rows(detector, X)
        display = cls(
            id_scores=scores.pop(id_name),
            ood_scores=scores,
            tpr=tpr,
            rule=rule,
            id_name=id_name,
            **{**cls._options_from_detector(detector), **options},
        )
        return display.plot(ax)

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_score: ArrayLike,
        *,
        ood_names: Any = OOD_NAME,
        tpr: float = 0.95,
        rule: str = "paper",
        id_name: str = ID_NAME,
        ax: Any = None,
        **options: Any,
    ) -> Self:
        """Draw the display of labelled scores.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            The labels: +1 for in-distribution rows, -1 for out-of-distribution rows.
        y_score : array-like of shape (n_samples,)
            The scores; a higher score means more in-distribution.
        ood_names : str or array-like of shape (n_samples,), default="out-of-distribution"
            The name of the OOD set or, if there are several, the name of the set of each row.
            The names of in-distribution rows are ignored.
        tpr : float in (0, 1], default=0.95
            The true-positive rate at which the false-positive rate is shown.
        rule : {"paper", "roc_curve"}, default="paper"
            The rule of the false-positive rate (see `skdice.metrics.fpr_at_tpr`).
        id_name : str, default="in-distribution"
            The name of the in-distribution rows.
        ax : matplotlib Axes, default=None
            The axes to draw on; None makes a figure.
        **options
            Further parameters of the display.

        Returns
        -------
        display
            The display, drawn.

        Raises
        ------
        ValueError
            A class has no rows, a score is not finite, lengths do not match, or a parameter is
            out of its range.
        """
        labels, scores = validated(y_true, y_score)
        if isinstance(ood_names, str):
            ood_names = [ood_names] * len(labels)
        check_consistent_length(labels, ood_names)
        names = np.array([str(name) for name in ood_names])
        is_ood = labels == -1
        display = cls(
            id_scores=scores[~is_ood],
            # The sets stay in the order in which they first occur.
            ood_scores={
                name: scores[is_ood & (names == name)]
                for name in dict.fromkeys(names[is_ood].tolist())
            },
            tpr=tpr,
            rule=rule,
            id_name=id_name,
            **options,
        )
        return display.plot(ax)

    @classmethod
    def _options_from_detector(cls, detector: Any) -> dict[str, Any]:
        """Return further parameters of the display that the detector knows."""
        return {}

    @property
    def _legend_title(self) -> str:
        return f"{fpr_name(self.tpr, self.rule)} / AUROC, %"

    def _legend_label(self, name: str) -> str:
        return f"{plain(name)}: {100 * self.fpr_at_tpr[name]:.1f} / {100 * self.auroc[name]:.1f}"


def named_sets(ood: Any, id_name: str) -> dict[str, Any]:
    """Return OOD sets by name; a set without a name is called "out-of-distribution"."""
    sets = dict(ood) if isinstance(ood, Mapping) else {OOD_NAME: ood}
    if not sets:
        raise ValueError("ood is an empty mapping, expected at least one set")
    if id_name in sets:
        raise ValueError(f"an OOD set is named {id_name!r}, as are the in-distribution rows")
    return sets
