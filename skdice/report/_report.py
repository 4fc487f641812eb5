"""OODReport: the evidence on one detector, as a page to sign or as part of a model card."""

import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skdice._base import BaseDetector
from skdice._compat.arrays import to_numpy
from skdice._ensemble import ConformalEnsemble
from skdice._passes.threshold import digest_of_blocks
from skdice._persistence.files import load
from skdice._rows.sources import RowSource
from skdice.io._archive import to_path
from skdice.io._atomic import replacing
from skdice.metrics._counts import metric_on_counts
from skdice.metrics._report import ID_NAME, MEAN, error_prefix
from skdice.monitoring._flags import flagged_rows
from skdice.report._detector import DetectorFacts, describe_detector, versions
from skdice.report._inputs import DataSet, describe_rows, is_path, open_rows
from skdice.report._measures import (
    InDistribution,
    Metric,
    OutlierSet,
    Scored,
    mean_metrics,
    measure_inside,
    measure_outside,
    predicted_classes,
)
from skdice.report._path import SparsityPath, measure_path
from skdice.report._promise import Promise, describe_promise
from skdice.report._render import render_html, render_markdown
from skdice.report._seen import (
    CALIBRATION,
    TRAINING,
    check_seen,
    n_same_rows,
    n_same_scores,
    row_keys,
)
from skdice.report._warnings import (
    warnings_about_detector,
    warnings_about_promise,
    warnings_about_rows,
)


@dataclass(frozen=True, repr=False)
class OODReport:
    """The evidence on one fitted detector: what it is, what it promises, and how it did.

    Make it by `from_detector`. `to_html` writes one file that a person can read, print and sign,
    and `to_markdown` the text for a model card.

    Parameters
    ----------
    created : str
        Time of the report, UTC, in ISO 8601.
    versions : dict of str to str
        Versions of the packages that computed the figures.
    rule : {"paper", "roc_curve"}
        The rule of the FPR95 (see `skdice.metrics.fpr_at_tpr`).
    detector : DetectorFacts
        The detector: `kind`, `source`, `digest`, `written_by`, `n_samples`, `n_features`,
        `head`, `own` (its parameters and fitted values) and `members` (the same of each).
    promise : Promise
        The threshold: `statement`, `assumption` and `details` in words, and `threshold`,
        `method`, `rate`, `confidence`, `n_rows`, `rank`, `date`, `digest`, `by` and
        `fallback_classes`, and `n_fitted`, the number of calibration rows among those of fit.
    data : tuple of DataSet
        The rows, those of the in-distribution rows first, and those of the calibration and of
        fit last if they were given: `name`, `source`, `n_rows`, `n_features`, `dtype` and `digest`.
    inside : InDistribution
        The in-distribution rows: `n_rows`, `n_flagged`, `flagged` (their share),
        `flagged_interval` (its interval at 95 % by Clopper and Pearson), `pvalue` (the
        probability of so many flags among rows like those of the calibration), `n_tested` and
        `n_tested_flagged` (the rows that this compares, and those flagged), `classes` (the
        numbers of each predicted class), `least_typical` and `most_typical`.
    sets : tuple of OutlierSet
        The sets of out-of-distribution rows: `name`, `n_rows`, `n_flagged`, `flagged`,
        `flagged_interval`, `passing`, `fpr95`,
        `auroc`, `histogram`, `roc`, `operating`, `least_typical` and `most_typical`.
    fpr95, auroc : Metric
        The means over the sets: `value`, and `interval` at 95 %, as fractions.
    path : SparsityPath or None
        The metrics at several `sparsities`: `deployed`, `auroc`, `fpr95`, `mean_auroc` and
        `mean_fpr95`. None for a detector that prunes no head.
    warnings : tuple of str
        What a reader should know before trusting the figures, one sentence or more for each.
    command : tuple of str or None
        The command, without its output, that computes the report again; None if something was
        given in memory.

    See Also
    --------
    skdice.metrics.compare : Compares several detectors in a table.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from skdice import DICEDetector
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> from skdice.report import OODReport
    >>> data = load_fashion_mnist_ood()
    >>> detector = DICEDetector(data.head).fit(data.id_train)
    >>> detector = detector.calibrate(data.id_test[:1500], method="conformal")
    >>> unseen, mnist = data.id_test[1500:], data.ood["mnist"]
    >>> report = OODReport.from_detector(detector, unseen, {"mnist": mnist})
    >>> report
    OODReport(DICEDetector, sets=['mnist'], mean FPR95=9.5%, mean AUROC=98.2%, warnings=1)
    >>> print(report.promise.statement)
    Of future in-distribution rows, at most 5 % are flagged on average.
    >>> report.to_html(pathlib.Path(tempfile.mkdtemp()) / "report.html")
    """

    created: str
    versions: dict[str, str]
    rule: str
    detector: DetectorFacts
    promise: Promise
    data: tuple[DataSet, ...]
    inside: InDistribution
    sets: tuple[OutlierSet, ...]
    fpr95: Metric
    auroc: Metric
    path: SparsityPath | None
    warnings: tuple[str, ...]
    command: tuple[str, ...] | None

    @classmethod
    def from_detector(
        cls,
        detector: Any,
        X_id: Any,
        ood: Mapping[str, Any],
        *,
        calibration: Any = None,
        training: Any = None,
        key: str | None = None,
        rule: str = "paper",
    ) -> Self:
        """Measure a fitted detector on in-distribution rows and on named sets of others.

        Rows are read in blocks and may be larger than memory; the scores of all rows are held in
        memory, and the report keeps figures only. Give paths of files where you can: the report
        then has the digests that ``sha256sum`` prints, and the command that computes it again.

        Parameters
        ----------
        detector : detector of skdice, str or Path
            A fitted detector, or the path of a file that `skdice.save` wrote.
        X_id : array-like, source of rows or path, of shape (n_samples, n_features)
            Features of in-distribution inputs that neither the network, nor the detector, nor
            its calibration has seen.
        ood : mapping of str to array-like, source of rows or path
            Features of out-of-distribution sets by name.
        calibration : array-like, source of rows or path, default=None
            The rows that the detector was calibrated on. The report names them by their digest, and
            compares their scores with those of the calibration, or only the threshold if the
            detector keeps no scores (``method="quantile"``).
        training : array-like, source of rows or path, default=None
            The rows that the detector was fitted on, without rows that were labelled -1 or had the
            weight 0. The report compares their number, and names them by their digest. With
            `calibration` or `training`, it warns of rows of `X_id` that are among them.
        key : str, default=None
            Name of the array in the files that the other parameters name by their paths.
        rule : {"paper", "roc_curve"}, default="paper"
            The rule of the FPR95 (see `skdice.metrics.fpr_at_tpr`).

        Returns
        -------
        OODReport
            The report.

        Raises
        ------
        TypeError
            `detector` is not a detector of skdice.
        ValueError
            No set is given, a set has the name "in-distribution", "mean", "calibration" or "fit",
            widths do not match, a value is not finite, the rule is unknown, or `calibration` or
            `training` has other rows than those that the detector has seen.
        sklearn.exceptions.NotFittedError
            The detector is not fitted.
        FileNotFoundError
            There is no such file.

        Examples
        --------
        ``OODReport.from_detector("detector.safetensors", "test.npy", {"svhn": "svhn.npy"})``
        """
        _check_arguments(ood, rule)
        path = to_path(detector) if is_path(detector) else None
        fitted = _fitted_detector(detector if path is None else load(path))
        inputs = {ID_NAME: X_id, **ood}
        seen = {CALIBRATION: calibration, TRAINING: training}
        inputs |= {name: X for name, X in seen.items() if X is not None}
        opened = {name: open_rows(X, key) for name, X in inputs.items()}
        shown = {name: X if is_path(X) else name for name, X in inputs.items()}
        sources, scored = {}, {}
        for name, X in opened.items():
            with error_prefix(shown[name]):
                sources[name] = fitted._open(X, "score_samples")
        for name, source in sources.items():
            with error_prefix(shown[name]):
                scored[name] = _score(fitted, name, opened[name], source)
        inside, outside = scored[ID_NAME], [scored[name] for name in ood]
        given = [name for name in seen if name in scored]
        for name in given:
            with error_prefix(shown[name]):
                check_seen(fitted, name, scored[name].scores)
        repeated, n_fitted = _repeated_rows(fitted, sources, scored)
        data = tuple(
            describe_rows(name, inputs[name], source, len(scored[name].scores))
            for name, source in sources.items()
        )
        measured = measure_inside(fitted, inside)
        sets = tuple(measure_outside(fitted, inside, each, rule) for each in outside)
        fpr95, auroc = mean_metrics(inside, outside, sets, rule)
        promise = describe_promise(fitted, n_fitted)
        warnings = [
            *warnings_about_promise(promise),
            *warnings_about_rows(
                measured,
                sets,
                {each.name: each.digest.sha256 for each in data},
                rate=promise.rate,
                is_calibration=digest_of_blocks(iter([inside.scores])) == promise.digest,
                repeated={name: n for name, n in repeated.items() if n},
            ),
            *warnings_about_detector(fitted),
        ]
        outliers = {name: sources[name] for name in ood}
        return cls(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
            rule=rule,
            detector=describe_detector(fitted, path),
            promise=promise,
            data=data,
            inside=measured,
            sets=sets,
            fpr95=fpr95,
            auroc=auroc,
            path=measure_path(fitted, sources[ID_NAME], outliers, rule),
            warnings=tuple(warnings),
            command=_command(path, inputs, key, rule),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain dicts, lists, numbers and text.

        Returns
        -------
        dict of str to object
            The attributes by name.
        """
        return asdict(self)

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write the report as one HTML file, which needs nothing else.

        The page has no address of anything outside. It can be read without its script, which
        sorts tables and shows the values of points. It follows the light or the dark theme
        of the reader, and prints on A4 with a place for signatures.

        Parameters
        ----------
        path : str or Path
            The file, such as ``report.html``.

        Raises
        ------
        ImportError
            jinja2 is not installed.
        OSError
            The file cannot be written.
        """
        path = to_path(Path(path))
        text = render_html(self, path.name)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def to_markdown(self, path: str | PathLike[str] | None = None) -> str:
        """Return the report as sections of Markdown, for a model card.

        The sections begin at the third level and have no front matter, so that they fit below a
        heading of the card.

        Parameters
        ----------
        path : str or Path, default=None
            A file that the text is written to as well.

        Returns
        -------
        str
            The text.

        Raises
        ------
        ImportError
            jinja2 is not installed.
        OSError
            The file cannot be written.

        Examples
        --------
        ``card.add(**{"Out-of-distribution detection": report.to_markdown()})``, where ``card``
        is a ``skops.card.Card``.
        """
        target = None if path is None else to_path(Path(path))
        text = render_markdown(self, "report.md" if target is None else target.name)
        if target is not None:
            with replacing(target) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return text

    def __repr__(self) -> str:
        names = reprlib.repr([each.name for each in self.sets])
        return (
            f"OODReport({self.detector.kind}, sets={names}, "
            f"mean FPR95={self.fpr95.value:.1%}, "
            f"mean AUROC={self.auroc.value:.1%}, warnings={len(self.warnings)})"
        )


def _check_arguments(ood: Any, rule: str) -> None:
    if not isinstance(ood, Mapping) or not ood:
        raise ValueError(
            f"ood is {reprlib.repr(ood)}, expected a mapping of names to rows with at least one set"
        )
    for name in ood:
        if not isinstance(name, str) or name in (ID_NAME, MEAN, CALIBRATION, TRAINING):
            raise ValueError(
                f"an OOD set is named {name!r}, expected text other than {ID_NAME!r}, {MEAN!r}, "
                f"{CALIBRATION!r} and {TRAINING!r}"
            )
    metric_on_counts("fpr_at_tpr", rule=rule)  # raises before any work if the rule is unknown


def _fitted_detector(detector: Any) -> BaseDetector:
    if not isinstance(detector, BaseDetector):
        raise TypeError(
            f"detector is a {type(detector).__name__}, expected a detector of skdice or the path "
            "of its file. For a Pipeline give its last step, pipeline[-1], and rows that went "
            "through the steps before it, pipeline[:-1].transform(X)"
        )
    check_is_fitted(detector)
    return detector


def _score(detector: BaseDetector, name: str, X: Any, rows: RowSource) -> Scored:
    """Return the scores of one set, and what the detector decides."""
    blocks = rows.iterate_values(detector._block_values())
    scores = np.concatenate([values for _, values in blocks])
    flags: NDArray[np.bool_] | None = None
    if hasattr(detector, "class_offsets_"):
        flags = flagged_rows(detector, X)
    elif hasattr(detector, "offset_"):
        # In the dtype of the scores, as `decision_function` subtracts.
        flags = scores - detector.offset_ < 0
    classes = predicted_classes(detector, rows) if name == ID_NAME else None
    return Scored(name, scores, flags, classes)


def _repeated_rows(
    detector: BaseDetector, sources: Mapping[str, RowSource], scored: Mapping[str, Scored]
) -> tuple[dict[str, int], int]:
    """Return how often in-distribution rows are among seen rows, and calibration rows among fit.

    Rows that were given are compared by their features. Of a calibration that was not given, the
    detector may have kept the scores.
    """
    keys = {
        name: row_keys(sources[name])
        for name in (ID_NAME, CALIBRATION, TRAINING)
        if name in sources and (CALIBRATION in sources or TRAINING in sources)
    }
    seen = [name for name in keys if name != ID_NAME]
    repeated = {name: n_same_rows(keys[ID_NAME], keys[name]) for name in seen}
    if CALIBRATION in keys and TRAINING in keys:
        return repeated, n_same_rows(keys[CALIBRATION], keys[TRAINING])
    if CALIBRATION in keys or not hasattr(detector, "calibration_scores_"):
        return repeated, 0
    kept, inside = to_numpy(detector.calibration_scores_), scored[ID_NAME].scores
    repeated[CALIBRATION] = n_same_scores(inside, kept)
    if TRAINING not in keys:
        return repeated, 0
    unseen = None
    if isinstance(detector, ConformalEnsemble):
        # Its scores are means of p-values that are ranks among the rows of fit, so that unseen rows
        # may have the score of a row of fit. The rows of the report tell how often.
        unseen = inside[~np.isin(keys[ID_NAME], keys[TRAINING])]
        if not len(unseen):
            return repeated, 0
    return repeated, n_same_scores(kept, scored[TRAINING].scores, unseen)


def _command(
    path: Path | None, inputs: Mapping[str, Any], key: str | None, rule: str
) -> tuple[str, ...] | None:
    """Return the command that computes the report again, if all inputs are files."""
    if path is None or not all(map(is_path, inputs.values())) or rule != "paper":
        return None
    words = ["skdice", "report", str(path)]
    options = {ID_NAME: "--id", CALIBRATION: "--calibration", TRAINING: "--training"}
    for name, file in inputs.items():
        option = options.get(name)
        words += ["--ood", f"{name}={file}"] if option is None else [option, str(file)]
    return tuple(words if key is None else [*words, "--key", key])
