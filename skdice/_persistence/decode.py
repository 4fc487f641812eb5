"""The fitted detector of a document and its arrays, after a check of every field.

Whoever can write a file can also write a digest that fits, so the digest proves nothing.
"""

import math
from typing import Any

import numpy as np
from sklearn.base import clone

from skdice._base import BaseDetector
from skdice._compat.sklearn import validate_parameters
from skdice._dice import DICEDetector
from skdice._engines.combination import FittedEnsemble
from skdice._engines.reference_scores import MOST_SCORES, ReferenceDistribution
from skdice._ensemble import ConformalEnsemble
from skdice._fdbd import FDBDDetector
from skdice._head import LinearHead, as_linear_head
from skdice._passes.mean import FeatureStatistics
from skdice._passes.threshold import Calibration
from skdice._persistence.schema import (
    ARRAYS_OF,
    CALIBRATION,
    DOCUMENT,
    ENSEMBLE,
    FITTED,
    FITTED_OF,
    HEAD_ARRAYS,
    KINDS,
    MEAN_ARRAYS,
    MEMBER,
    SCORE_ARRAYS,
)
from skdice._persistence.values import (
    Arrays,
    check_array,
    check_keys,
    decode_number,
    decode_shaping,
    decode_value,
)
from skdice._rows.sources import scoring_dtype
from skdice._vim import ViMDetector
from skdice.io._archive import listed


def _build_ensemble(document: dict[str, Any], arrays: Arrays) -> ConformalEnsemble:
    """Return the fitted ensemble of a document and its arrays, after a check of every field."""
    check_keys("the document", document, ENSEMBLE)
    fitted = check_keys("the fitted state", document["fitted"], FITTED)
    calibration = _decode_calibration(fitted["calibration"])
    names = set(ConformalEnsemble._parameter_constraints) - {"estimators"}
    parameters = check_keys("the parameters", document["parameters"], names)
    if not isinstance(document["members"], list) or not document["members"]:
        raise ValueError(f"its members are {document['members']!r}, expected a list")
    rest = dict(arrays)
    scores = {name: rest.pop(name) for name in SCORE_ARRAYS if name in rest}
    if scores.keys() != _score_arrays(calibration):
        raise ValueError("its calibration scores and its calibration do not fit one another")
    # One object, so that the members share one head in memory and its product with the rows.
    has_head = arrays.keys() >= HEAD_ARRAYS
    head = LinearHead(arrays["weight"], arrays["bias"]) if has_head else None
    named, references = [], []
    of_members: dict[str, Arrays] = {}
    for key in [key for key in rest if "." in key]:
        number, _, name = key.partition(".")
        of_members.setdefault(number, {})[name] = rest.pop(key)
    for n, member in enumerate(document["members"]):
        check_keys("a member", member, MEMBER)
        name, part, own = member["name"], member["document"], of_members.pop(str(n), {})
        if not isinstance(name, str):
            raise ValueError(f"a member has the name {name!r}, expected text")
        references.append(_decode_reference(member, own, fitted["n_samples_seen"]))
        kind = part.get("kind") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in KINDS:
            raise ValueError(f"its member {name!r} is not a detector of skdice")
        for key in ("schema", "versions"):
            if part.get(key) != document[key]:
                raise ValueError(
                    f"its member {name!r} has the {key} {part.get(key)!r}, expected those of the "
                    f"ensemble, {document[key]!r}"
                )
        if part.get("head", "arrays") == "arrays":
            own |= {key: arrays[key] for key in HEAD_ARRAYS if key in arrays}
        named.append((name, build(part, own, head)))
    surplus = [f"{number}.{key}" for number, own in of_members.items() for key in own]
    surplus += rest.keys() - HEAD_ARRAYS
    if surplus:
        raise ValueError(f"it has the arrays {listed(surplus)} besides those of its members")
    if rest and not any(detector.head_ == head for _, detector in named):
        raise ValueError("it has the arrays of a head that none of its members has")
    decoded = {name: decode_value(value) for name, value in parameters.items()}
    ensemble = ConformalEnsemble([(name, clone(each)) for name, each in named], **decoded)
    validate_parameters(ensemble)
    ensemble._validate_members()
    _set_features(ensemble, named[0][1].n_features_in_, fitted)
    members = ensemble._set_members([detector for _, detector in named])
    ensemble._layer = FittedEnsemble(members, tuple(references), ensemble.combination)
    _set_threshold(ensemble, fitted, calibration, scores)
    return ensemble


def _decode_reference(member: dict[str, Any], own: Arrays, n_samples: Any) -> ReferenceDistribution:
    """Return the checked reference distribution of a member; its arrays leave `own`."""
    missing = {"reference_scores", "reference_counts"} - own.keys()
    if missing:
        raise ValueError(f"its member {member['name']!r} has no array {listed(missing)}")
    scores, counts = own.pop("reference_scores"), own.pop("reference_counts")
    n_kept = max(1, min(scores.size, MOST_SCORES + 1))
    for name, array, dtype in (("scores", scores, np.float64), ("counts", counts, np.int64)):
        label = f"array of reference {name}"
        check_array({label: array}, label, dtype, (n_kept,))
        if (np.diff(array) <= 0).any() or (name == "counts" and array[0] < 1):
            raise ValueError(f"its reference {name} are not in ascending order")
    if counts[-1] != n_samples:
        raise ValueError(
            f"its member {member['name']!r} has {counts[-1]} reference scores, but it was fitted "
            f"on {n_samples!r} rows"
        )
    start, mean = (decode_number(name, member[name]) for name in ("tail_start", "tail_mean"))
    # The mean distance of the scores below the start of the tail is at most the largest distance,
    # and at least the share of it that one of all scores adds. It is rounded.
    furthest, rounding = start - scores[0], 1 + 1e-9
    is_possible = furthest / n_samples <= mean * rounding and mean <= furthest * rounding
    if not (scores[0] <= start <= scores[-1] and is_possible):
        raise ValueError(
            f"its tail starts at {start} with the mean {mean}, which does not fit the reference "
            f"scores, from {scores[0]} to {scores[-1]}"
        )
    return ReferenceDistribution(scores, counts, start, mean)


def build(document: dict[str, Any], arrays: Arrays, shared_head: LinearHead | None = None) -> Any:
    """Return the fitted detector of a document and its arrays, after a check of every field.

    Whoever can write a file can also write a digest that fits, so the digest proves nothing.
    """
    detector_class = KINDS[document["kind"]]
    if detector_class is ConformalEnsemble:
        return _build_ensemble(document, arrays)
    is_dice = detector_class is DICEDetector
    check_keys("the document", document, DOCUMENT | ({"shaping"} if is_dice else set()))
    fitted = check_keys("the fitted state", document["fitted"], FITTED | FITTED_OF[detector_class])
    calibration = _decode_calibration(fitted["calibration"])
    n_features = _check_arrays(document["head"], detector_class, calibration, arrays)
    parameters = check_keys(
        "the parameters",
        document["parameters"],
        set(detector_class._parameter_constraints) - {"head", "shaping"},
    )
    own = {"shaping": decode_shaping(document["shaping"])} if is_dice else {}
    detector: Any = detector_class(
        "identity"
        if document["head"] == "identity"
        else shared_head or LinearHead(arrays["weight"], arrays["bias"]),
        **own,
        **{name: decode_value(value) for name, value in parameters.items()},
    )
    validate_parameters(detector)
    head = as_linear_head(detector.head, n_features)
    _set_features(detector, n_features, fitted)
    if isinstance(detector, DICEDetector):
        _build_dice(detector, head, fitted, arrays)
    elif isinstance(detector, FDBDDetector):
        detector._set_fitted(head, _decode_statistics(fitted, arrays))
    else:
        components = arrays["residual_components"]
        detector._set_subspace(head, arrays["origin"], components)
        alpha = decode_number("alpha", fitted["alpha"])
        if not math.isfinite(alpha):
            raise ValueError(f"its alpha is {alpha}, expected a finite number")
        detector._set_alpha(alpha)
    _set_threshold(detector, fitted, calibration, arrays)
    return detector


def _decode_calibration(encoded: Any) -> Calibration | None:
    if encoded is None:
        return None
    has_by = isinstance(encoded, dict) and "by" in encoded
    record = Calibration(
        **check_keys("the calibration", encoded, CALIBRATION - (set() if has_by else {"by"}))
    )
    if has_by and record.by is None:
        raise ValueError("the by of its calibration is None, expected 'prediction' or no such key")
    return record


def _score_arrays(calibration: Calibration | None) -> set[str]:
    """Return the names of the arrays that a calibration comes with."""
    # Only a conformal calibration keeps its scores.
    if calibration is None or calibration.method != "conformal":
        return set()
    return {"calibration_scores"} | ({"calibration_classes"} if calibration.by else set())


def _set_features(detector: BaseDetector, n_features: int, fitted: dict[str, Any]) -> None:
    """Set the numbers of rows and features, and the names of the features, after checks."""
    n_samples = fitted["n_samples_seen"]
    if type(n_samples) is not int or not 1 <= n_samples < 1 << 63:
        raise ValueError(f"its n_samples_seen is {n_samples!r}, expected a number from 1")
    detector.n_samples_seen_, detector.n_features_in_ = n_samples, n_features
    names = fitted["feature_names"]
    if names is None:
        return
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"its feature names are {names!r}, expected a list of text")
    if len(names) != n_features:
        raise ValueError(f"it has {len(names)} feature names, expected {n_features}")
    detector.feature_names_in_ = np.array(names, dtype=object)


def _check_arrays(
    head: Any,
    detector_class: type[BaseDetector],
    calibration: Calibration | None,
    arrays: Arrays,
) -> int:
    """Return the number of features, after a check that the arrays of a file fit one another."""
    if head not in ("arrays", "identity"):
        raise ValueError(f"its head is {head!r}, expected 'arrays' or 'identity'")
    of_head = set() if head == "identity" else {"weight", "bias"}
    expected = ARRAYS_OF[detector_class] | of_head | _score_arrays(calibration)
    if arrays.keys() != expected:
        raise ValueError(f"it has the arrays {listed(arrays)}, expected {listed(expected)}")
    is_vim = detector_class is ViMDetector
    n_features = max(1, arrays["origin" if is_vim else "mean_activation"].size)
    # The mask is checked before an identity is made, as a few bytes could ask for a huge one.
    n_classes = n_features
    if of_head:
        dtype = scoring_dtype(arrays["weight"].dtype)
        n_classes = max(1, arrays["bias"].size)
        for name, shape in (("weight", (n_classes, n_features)), ("bias", (n_classes,))):
            check_array(arrays, name, dtype, shape, finite=False)  # its head names the class
    if is_vim:
        n_residual = min(max(1, len(arrays["residual_components"])), n_features)
        check_array(arrays, "origin", np.float64, (n_features,))
        check_array(arrays, "residual_components", np.float64, (n_residual, n_features))
        return n_features
    for name in sorted(MEAN_ARRAYS):
        check_array(arrays, name, np.float64, (n_features,))
    if detector_class is DICEDetector:
        check_array(arrays, "mask", np.bool_, (n_classes, n_features))
        if not arrays["mask"].any():
            raise ValueError("its mask keeps no weight, expected one at least")
    return n_features


def _decode_statistics(fitted: dict[str, Any], arrays: Arrays) -> FeatureStatistics:
    """Return the sums of a file, if they give its mean activation."""
    statistics = FeatureStatistics(len(arrays["mean_activation"]))
    statistics.n_samples = fitted["n_samples_seen"]
    statistics.sum_of_weights = decode_number("sum_of_weights", fitted["sum_of_weights"])
    if not 0 < statistics.sum_of_weights < math.inf:
        raise ValueError(f"its sum_of_weights is {statistics.sum_of_weights}, expected above 0")
    statistics.total = arrays["activation_total"]
    statistics.error = arrays["activation_error"]
    with np.errstate(over="ignore"):
        mean = statistics.mean()
    # The mean of a detector that was fitted on a device may be in single precision.
    if not np.allclose(arrays["mean_activation"], mean, rtol=1e-6, atol=1e-37):
        raise ValueError("its mean_activation is not the mean of its activation_total")
    return statistics


def _build_dice(
    detector: DICEDetector, head: LinearHead, fitted: dict[str, Any], arrays: Arrays
) -> None:
    statistics = _decode_statistics(fitted, arrays)
    shaping = decode_shaping(fitted["shaping"])
    n_seen = getattr(shaping, "n_features_in_", None)
    if shaping is not None and n_seen != head.n_features:
        raise ValueError(f"its shaping was fitted on {n_seen} features, expected {head.n_features}")
    detector._set_fitted(
        head,
        statistics,
        arrays["mean_activation"],
        arrays["mask"],
        decode_number("contribution_threshold", fitted["contribution_threshold"]),
        shaping,
    )
    if fitted["head_agreement"] is not None:  # `partial_fit` sets none
        agreement = decode_number("head_agreement", fitted["head_agreement"])
        if not 0 <= agreement <= 1:
            raise ValueError(f"its head_agreement is {agreement}, expected a number in [0, 1]")
        detector.head_agreement_ = agreement


def _set_threshold(
    detector: Any,
    fitted: dict[str, Any],
    calibration: Calibration | None,
    arrays: Arrays,
) -> None:
    """Set the threshold and its record on a detector, if they agree with one another."""
    if fitted["offset"] is None:
        for name in ("contamination", "calibration"):
            if fitted[name] is not None:
                raise ValueError(f"its {name} is {fitted[name]!r} without an offset")
        return
    offset = decode_number("offset", fitted["offset"])
    if not math.isfinite(offset):
        raise ValueError(f"its offset is {offset}, expected a finite number")
    contamination = decode_number("contamination", fitted["contamination"])
    if not 0 < contamination <= 0.5:
        raise ValueError(f"its contamination is {contamination}, expected a number in (0, 0.5]")
    detector.offset_, detector.contamination_ = offset, contamination
    if calibration is None:
        return
    if calibration.contamination != contamination:
        raise ValueError(
            f"the contamination of its calibration is {calibration.contamination}, but its "
            f"contamination is {contamination}"
        )
    detector.calibration_ = calibration
    if calibration.method != "conformal":
        return
    scores = arrays["calibration_scores"]
    if scores.dtype not in (np.float32, np.float64) or scores.ndim != 1:
        raise ValueError(f"its calibration scores are {scores.dtype} {scores.shape}")
    if len(scores) != calibration.n_samples:
        raise ValueError(
            f"its calibration has {calibration.n_samples} rows, but {len(scores)} calibration "
            "scores"
        )
    if not (np.diff(scores) >= 0).all() or not np.isfinite(scores).all():
        raise ValueError("its calibration scores are not in ascending order")
    if offset != scores[calibration.rank - 1]:
        raise ValueError(
            f"its offset is {offset}, but the calibration score of rank {calibration.rank} is "
            f"{scores[calibration.rank - 1]}"
        )
    detector.calibration_scores_ = scores
    if calibration.by is not None:
        if detector.head_ is None:
            raise ValueError("its calibration is by prediction, but it has no head that predicts")
        classes, n_classes = arrays["calibration_classes"], detector.head_.n_classes
        check_array(arrays, "calibration_classes", np.int64, scores.shape)
        outside = classes[(classes < 0) | (classes >= n_classes)]
        if len(outside):
            raise ValueError(
                f"its calibration_classes hold {outside[0]}, expected numbers from 0 to "
                f"{n_classes - 1}"
            )
        # The file holds no thresholds of classes, so that none can contradict the scores.
        detector._set_class_offsets(classes.astype(np.intp))
