"""The document and the arrays of a fitted detector."""

from dataclasses import asdict
from typing import Any

import numpy as np
import sklearn
from sklearn.utils.validation import check_is_fitted

from skdice._base import BaseDetector
from skdice._compat.arrays import to_numpy
from skdice._compat.version import __version__
from skdice._dice import BaseDICE
from skdice._ensemble import ConformalEnsemble
from skdice._fdbd import FDBDDetector
from skdice._head import as_linear_head
from skdice._passes.threshold import Calibration
from skdice._persistence.schema import HEAD_ARRAYS, KINDS, SCHEMA
from skdice._persistence.values import (
    Arrays,
    encode_shaping,
    encode_value,
)
from skdice._vim import ViMDetector


def encode(detector: BaseDetector) -> tuple[dict[str, Any], Arrays]:
    """Return the JSON document and the arrays of a fitted detector."""
    if type(detector) is ConformalEnsemble:
        return _encode_ensemble(detector)
    kind = "DICEDetector" if isinstance(detector, BaseDICE) else type(detector).__name__
    # A derived class may do something else than its file would say.
    is_own = type(detector).__module__.startswith("skdice.") and f"skdice.{kind}" in KINDS
    if not isinstance(detector, BaseDetector) or not is_own:
        raise TypeError(
            "save writes a DICEDetector, a DICEDetectorCV, an FDBDDetector, a ViMDetector or a "
            f"ConformalEnsemble of these, got a {type(detector).__name__}"
        )
    check_is_fitted(detector)
    parameters = detector.get_params(deep=False)
    arrays: Arrays = {}
    own: dict[str, Any] = {}
    if isinstance(detector, BaseDICE):
        parameters = detector._detector_parameters()
        own, fitted = _encode_dice(detector, parameters, arrays)
    elif isinstance(detector, FDBDDetector):
        fitted = _encode_mean(detector, arrays)
    else:
        assert isinstance(detector, ViMDetector)
        arrays["origin"] = to_numpy(detector.origin_)
        arrays["residual_components"] = to_numpy(detector.residual_components_)
        fitted = {"alpha": detector.alpha_}
    # The parameter may have been set after the fit, and the file is that of the fitted head.
    is_identity = isinstance(detector.head, str) and detector.head_ == as_linear_head(
        detector.head, detector.n_features_in_
    )
    if not is_identity:
        arrays |= {"weight": detector.head_.weight, "bias": detector.head_.bias}
    arrays |= _encode_scores(detector)
    document = {
        **_encode_kind(kind),
        "parameters": {
            name: encode_value(value)
            for name, value in parameters.items()
            if name not in ("head", "shaping")
        },
        "head": detector.head if is_identity else "arrays",
        **own,
        "fitted": {**_encode_fitted(detector), **fitted},
    }
    return document, arrays


def _encode_kind(name: str) -> dict[str, Any]:
    versions = {"skdice": __version__, "scikit-learn": sklearn.__version__}
    return {"kind": f"skdice.{name}", "schema": SCHEMA, "versions": versions}


def _encode_scores(detector: BaseDetector) -> Arrays:
    """Return the arrays of a conformal calibration, which give all thresholds on loading."""
    names = ("calibration_scores", "calibration_classes")
    kept = [name for name in names if hasattr(detector, f"{name}_")]
    arrays = {name: getattr(detector, f"{name}_") for name in kept}
    if "calibration_classes" in arrays:
        arrays["calibration_classes"] = arrays["calibration_classes"].astype(np.int64)
    return arrays


def _encode_calibration(calibration: Calibration | None) -> dict[str, Any] | None:
    if calibration is None:
        return None
    encoded = asdict(calibration)
    if calibration.by is None:
        del encoded["by"]  # so that earlier versions read the file
    return encoded


def _encode_fitted(detector: BaseDetector) -> dict[str, Any]:
    """Return the fitted values that all detectors have."""
    names = getattr(detector, "feature_names_in_", None)
    calibration = getattr(detector, "calibration_", None)
    return {
        "offset": encode_value(getattr(detector, "offset_", None)),
        "contamination": encode_value(getattr(detector, "contamination_", None)),
        "calibration": _encode_calibration(calibration),
        "n_samples_seen": int(detector.n_samples_seen_),
        "feature_names": None if names is None else list(map(str, names)),
    }


def _encode_ensemble(ensemble: ConformalEnsemble) -> tuple[dict[str, Any], Arrays]:
    """Return the JSON document and the arrays of a fitted ensemble, whose head is stored once."""
    check_is_fitted(ensemble)
    if ensemble.combination != ensemble._layer.combination:
        # The file holds the parameter alone, and the threshold belongs to the one of the fit.
        raise ValueError(
            f"combination is {ensemble.combination!r}, but the ensemble was fitted with "
            f"{ensemble._layer.combination!r}: fit it again before you save it"
        )
    arrays: Arrays = {}
    members = []
    for n, (name, detector) in enumerate(ensemble.named_estimators_.items()):
        if not isinstance(detector, BaseDetector):
            raise ValueError(
                f"the member {name!r} is {detector!r}: a detector of another library cannot be "
                "saved without saving code; leave it out, or pickle the ensemble"
            )
        document, own = encode(detector)
        reference = ensemble._layer.references[n]
        own |= {"reference_scores": reference.scores, "reference_counts": reference.counts}
        for key, array in own.items():
            arrays[key if key in HEAD_ARRAYS else f"{n}.{key}"] = array
        tail = {"tail_start": reference.tail_start, "tail_mean": reference.tail_mean}
        members.append({"name": name, "document": document, **tail})
    arrays |= _encode_scores(ensemble)
    parameters = ensemble.get_params(deep=False)
    del parameters["estimators"]
    document = {
        **_encode_kind("ConformalEnsemble"),
        "parameters": {name: encode_value(value) for name, value in parameters.items()},
        "members": members,
        "fitted": _encode_fitted(ensemble),
    }
    return document, arrays


def _encode_mean(detector: Any, arrays: Arrays) -> dict[str, Any]:
    """Add the mean activation, and the sums that it comes from, to the arrays."""
    arrays["mean_activation"] = to_numpy(detector.mean_activation_).astype(np.float64)
    arrays["activation_total"] = detector._statistics.total
    arrays["activation_error"] = detector._statistics.error
    return {"sum_of_weights": detector._statistics.sum_of_weights}


def _encode_dice(
    detector: BaseDICE, parameters: dict[str, Any], arrays: Arrays
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Add the arrays of DICE; return its parts of the document and of its fitted values."""
    if not isinstance(detector.score_func, str):
        raise ValueError(
            f"score_func is {detector.score_func!r}: a function cannot be saved without saving "
            "code; use one of the named scores, or pickle the detector"
        )
    if detector.score_func != detector._layer.score:
        # The file holds the parameter alone, and the threshold belongs to the score of the fit.
        raise ValueError(
            f"score_func is {detector.score_func!r}, but the detector was fitted with "
            f"{detector._layer.score!r}: fit it again before you save it"
        )
    arrays["mask"] = to_numpy(detector.mask_)
    return {"shaping": encode_shaping(parameters["shaping"])}, {
        "contribution_threshold": encode_value(detector.contribution_threshold_),
        "head_agreement": getattr(detector, "head_agreement_", None),
        "shaping": encode_shaping(detector.shaping_),
        **_encode_mean(detector, arrays),
    }
