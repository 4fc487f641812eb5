"""What a reader should know before trusting a report, in sentences."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from skdice._base import BaseDetector
from skdice._compat.arrays import to_numpy
from skdice._dice import LEAST_AGREEMENT, BaseDICE
from skdice.report._detector import members_of
from skdice.report._measures import InDistribution, OutlierSet
from skdice.report._numbers import percent, rate_percent
from skdice.report._promise import Promise, range_of_share
from skdice.report._seen import CALIBRATION, REPEATED

# Intervals of sets with fewer rows are too wide for most decisions: at an AUROC of 90 % and with
# many in-distribution rows, 100 outliers give an interval 6 points wide.
FEW_ROWS = 100


def warnings_about_promise(promise: Promise) -> Iterator[str]:
    """Yield a sentence for each way in which a threshold promises less than a reader may think."""
    if promise.n_fitted:
        yield (
            f"{promise.n_fitted:,} of the {promise.n_rows:,} calibration rows are probably rows of "
            "fit, so the promise does not hold. Calibrate with rows that neither the network nor "
            "fit has seen."
        )
    if promise.method == "none":
        yield "The detector has no threshold, so it flags nothing. Call calibrate."
    elif promise.method == "fit":
        yield (
            "The detector was not calibrated. Its threshold comes from the rows of fit, and "
            "nothing is promised about the share of other rows that is flagged. Call calibrate "
            "with held-out rows."
        )
    elif promise.method == "quantile":
        yield (
            "The threshold is a quantile of the calibration scores, which promises nothing about "
            "future rows. calibrate with method='conformal' does."
        )
    elif promise.confidence is None and promise.by is None:
        assert promise.n_rows is not None
        assert promise.rank is not None
        assert promise.rate is not None
        _, high = range_of_share(promise.rank, promise.n_rows)
        if high > 2 * promise.rate:
            yield (
                f"There were only {promise.n_rows:,} calibration rows. The promise holds on "
                f"average, but a calibration of this size may flag up to {percent(high)} of the "
                "in-distribution rows. More rows, or a confidence in calibrate, make it safer."
            )
    if promise.fallback_classes:
        yield (
            f"{len(promise.fallback_classes):,} classes had too few calibration rows for a "
            "threshold of their own and have that of all rows. Nothing is promised for each of "
            "these classes."
        )


def warnings_about_rows(
    inside: InDistribution,
    outside: Sequence[OutlierSet],
    digests: Mapping[str, str | None],
    *,
    rate: float | None,
    is_calibration: bool,
    repeated: Mapping[str, int],
) -> Iterator[str]:
    """Yield a sentence for each thing about the rows that a reader should know.

    `digests` are those of the sets, by name. `is_calibration` says whether the in-distribution rows
    are exactly those of the calibration, and `repeated` how many of them are probably rows of the
    calibration or of fit.
    """
    if is_calibration:
        yield (
            "The in-distribution rows of this report are the rows of the calibration. The share "
            "of them that is flagged is no evidence, because the threshold was set by them."
        )
    for name, n_repeated in repeated.items():
        if name == CALIBRATION and is_calibration:
            continue
        yield (
            f"{n_repeated:,} of the {inside.n_rows:,} in-distribution rows of this report are "
            f"probably rows of {name}, {REPEATED}. The figures of this report hold for unseen "
            "rows only."
        )
    first: dict[str, str] = {}
    for name, digest in digests.items():
        if digest is not None and first.setdefault(digest, name) != name:
            yield f"The sets {first[digest]} and {name} hold the same rows."
    for measured in (inside, *outside):
        if measured.n_rows < FEW_ROWS:
            yield (
                f"The set {measured.name} has only {measured.n_rows:,} rows, so its figures are "
                "uncertain: look at the intervals."
            )
    if inside.pvalue is not None and inside.pvalue < 0.01 and not is_calibration:
        yield (
            f"{percent(inside.flagged)} of the in-distribution rows are flagged. Rows like those "
            f"of the calibration give so many or more with probability {inside.pvalue:.2g} only. "
            "The rows of this report and of the calibration are probably not alike."
        )
    if inside.pvalue is not None and inside.n_tested < inside.n_rows:
        yield (
            f"{inside.n_rows - inside.n_tested:,} of the {inside.n_rows:,} in-distribution rows "
            "are of classes without a threshold of their own. They cannot be compared with the "
            "calibration, and nothing is known about the rate of flags of these classes."
        )
    for measured in outside:
        if measured.auroc.value < 0.5:
            yield (
                f"On the set {measured.name} the detector is worse than chance: its rows get "
                "higher scores than the in-distribution rows."
            )
    uneven = [
        each
        for each in inside.classes
        if rate is not None and each.n_rows >= FEW_ROWS and each.flagged > 2 * rate
    ]
    if uneven:
        worst = max(uneven, key=lambda each: each.flagged)
        yield (
            f"{len(uneven):,} predicted {'class is' if len(uneven) == 1 else 'classes are'} "
            "flagged more than twice as often as the rate of the threshold. The highest share is "
            f"that of class {worst.predicted}, {percent(worst.flagged)}."
        )


def warnings_about_detector(detector: BaseDetector) -> Iterator[str]:
    """Yield a sentence for each thing about a detector that a reader should know."""
    named = [("The detector", detector)]
    named += [(f"The member {name}", member) for name, member in members_of(detector)]
    # In an ensemble nothing has to be done about one member, because others do not prune.
    advice = "" if len(named) > 1 else " Try a sparsity of 0."
    for name, member in named:
        if isinstance(member, BaseDICE):
            yield from _warnings_about_dice(name, member, advice)
    means = [member.mean_activation_ for _, member in named if hasattr(member, "mean_activation_")]
    if means:
        n_dead = int(np.count_nonzero(to_numpy(means[0]) == 0))
        if n_dead:
            yield (
                f"{n_dead:,} of {len(means[0]):,} features have a mean of exactly 0 over the rows "
                "of fit: dead units, which are usual for networks with ReLU. An outlier may excite "
                "them, and no row of fit has shown how the score then changes. The "
                "figures of this report include the effect for the outliers that it has, so this "
                "is no reason against the detector if they are like the outliers that you expect."
            )


def _warnings_about_dice(name: str, detector: BaseDICE, advice: str) -> Iterator[str]:
    agreement = getattr(detector, "head_agreement_", None)
    if agreement is not None and agreement < LEAST_AGREEMENT:
        yield (
            f"{name} prunes weights that decide: its masked head gives only {percent(agreement)} "
            "of the rows of fit the class of the full head. Where less than "
            f"{rate_percent(LEAST_AGREEMENT)} agreed, DICE was measured to be worse than the "
            f"energy on all networks but one.{advice}"
        )
    empty = int(np.count_nonzero(~to_numpy(detector.mask_).any(axis=1)))
    if empty:
        yield (
            f"{name} leaves {empty:,} of {len(detector.mask_):,} classes without any weight: their "
            "logit is the bias alone. A lower sparsity keeps more of the classes."
        )
