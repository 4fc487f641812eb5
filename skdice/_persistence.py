"""Saving a fitted detector to a file that runs no code when it is loaded.

The file is a .safetensors file: arrays, and JSON in its metadata. A digest over both reveals
an altered file. The digest is not a signature, because whoever can write the file can also
write the digest. To change the stored content, raise SCHEMA and keep the old reader.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import sklearn
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from skdice._base import BaseDetector
from skdice._compat.arrays import to_numpy
from skdice._compat.sklearn import validate_parameters
from skdice._detector_values import (
    Arrays,
    check_array,
    check_keys,
    decode_number,
    decode_shaping,
    decode_value,
    encode_shaping,
    encode_value,
)
from skdice._dice import BaseDICE, DICEDetector
from skdice._engines.reference import MOST_SCORES, ReferenceDistribution
from skdice._ensemble import ConformalEnsemble, FittedEnsemble
from skdice._fdbd import FDBDDetector
from skdice._head import LinearHead, as_linear_head
from skdice._passes.mean import FeatureStatistics
from skdice._passes.threshold import Calibration
from skdice._rows.door import wrap
from skdice._rows.sources import scoring_dtype
from skdice._version import __version__
from skdice._vim import ViMDetector
from skdice.io import _safetensors
from skdice.io._archive import clean_errors, listed, require_file, to_path
from skdice.io._atomic import replacing

SCHEMA = 1
# The classes that `load` makes, by the names that their files have.
KINDS: dict[str, type[BaseDetector]] = {
    "skdice.DICEDetector": DICEDetector,
    "skdice.FDBDDetector": FDBDDetector,
    "skdice.ViMDetector": ViMDetector,
    "skdice.ConformalEnsemble": ConformalEnsemble,
}
# The keys of the document and of its parts. A file with others is refused, because a field that
# this version does not know could change what the detector does.
_VERSIONS = {"skdice", "scikit-learn"}
_DOCUMENT = {"kind", "schema", "versions", "parameters", "head", "fitted"}
_FITTED = {"offset", "contamination", "calibration", "n_samples_seen", "feature_names"}
_FITTED_OF: dict[type[BaseDetector], set[str]] = {
    DICEDetector: {"contribution_threshold", "head_agreement", "shaping", "sum_of_weights"},
    FDBDDetector: {"sum_of_weights"},
    ViMDetector: {"alpha"},
}
_MEAN_ARRAYS = {"mean_activation", "activation_total", "activation_error"}
_ARRAYS_OF: dict[type[BaseDetector], set[str]] = {
    DICEDetector: {"mask"} | _MEAN_ARRAYS,
    FDBDDetector: _MEAN_ARRAYS,
    ViMDetector: {"origin", "residual_components"},
}
_CALIBRATION = {field.name for field in fields(Calibration)}
# An ensemble holds the documents of its members, whose arrays have a prefix in their names.
_ENSEMBLE = {"kind", "schema", "versions", "parameters", "members", "fitted"}
_MEMBER = {"name", "document", "tail_start", "tail_mean"}
_HEAD_ARRAYS = {"weight", "bias"}
_SCORE_ARRAYS = {"calibration_scores", "calibration_classes"}
_REFERENCE_ARRAYS = {"reference_scores", "reference_counts"}


def save(detector: BaseDetector, path: str | Path) -> None:
    """Write a fitted detector to a file that runs no code when it is loaded.

    The file is in the .safetensors format, with JSON metadata. `skdice.load` reads it
    back, bit for bit, on any machine. An interrupted save leaves the old file or none.

    Parameters
    ----------
    detector : DICEDetector, DICEDetectorCV, FDBDDetector or ViMDetector
        Fitted. The result of a search is written as a `DICEDetector` with the best sparsity. The
        second moments of a `ViMDetector` are left out, so that `partial_fit` cannot go on from
        the file.
    path : str or Path
        The file, such as ``detector.safetensors``.

    Raises
    ------
    TypeError
        `detector` is of another class.
    ValueError
        `score_func` is a function, or `shaping` is not one of `skdice.shaping`: these
        cannot be saved without saving code.
    sklearn.exceptions.NotFittedError
        The detector is not fitted.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import skdice
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> data = load_fashion_mnist_ood()
    >>> detector = skdice.DICEDetector(data.head).fit(data.id_train)
    >>> skdice.save(detector, pathlib.Path(tempfile.mkdtemp()) / "detector.safetensors")
    """
    document, arrays = encode(detector)
    text = json.dumps(document, allow_nan=False)
    metadata = {"skdice": text, "sha256": _digest(text, arrays)}
    path = to_path(path)
    with replacing(path) as temporary:
        sources = {name: wrap(array) for name, array in arrays.items()}
        _safetensors.write(temporary, sources, metadata)


def load(path: str | Path) -> Any:
    """Load a detector that `skdice.save` wrote. No code in the file is executed.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    DICEDetector, FDBDDetector or ViMDetector
        Fitted; its results are those of the saved one, bit for bit.

    Raises
    ------
    ValueError
        The file is damaged or altered, is of another kind, or was written by a newer
        version of skdice.
    FileNotFoundError
        There is no such file.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import skdice
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> data = load_fashion_mnist_ood()
    >>> detector = skdice.DICEDetector(data.head, sparsity=0.1).fit(data.id_train)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "detector.safetensors"
    >>> skdice.save(detector, path)
    >>> bool((skdice.load(path).predict(data.id_test) == detector.predict(data.id_test)).all())
    True
    """
    path = to_path(path)
    document, arrays = _read(path)
    with clean_errors(path, "load"):
        return build(document, arrays)


def read_document(path: Path) -> dict[str, Any]:
    """Return the JSON document of a detector file, after all checks that `load` makes."""
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, Any], Arrays]:
    require_file(path)
    with clean_errors(path, "load"):
        try:
            entries, _, metadata = _safetensors.read_header(path)
        except Exception as error:  # a file of another format can cause any error in the library
            raise ValueError(f"it is damaged, or not a detector file ({error})") from error
        if "skdice" not in metadata:
            raise ValueError("it is a .safetensors file, but holds no skdice detector")
        document: dict[str, Any] = json.loads(metadata["skdice"], parse_constant=_refuse_constant)
        if not isinstance(document, dict):
            raise ValueError(f"its document is a {type(document).__name__}, expected an object")
        kind = document.get("kind")
        if not isinstance(kind, str) or kind not in KINDS:
            expected = ", ".join(map(repr, KINDS))
            raise ValueError(f"it holds a {kind!r}, expected {expected}")
        schema, versions = document.get("schema"), document.get("versions")
        if type(schema) is not int or not 1 <= schema < 1 << 31:
            raise ValueError(f"its schema is {schema!r}, expected a number from 1")
        if not isinstance(versions, dict) or not all(
            isinstance(versions.get(name), str) for name in _VERSIONS
        ):
            raise ValueError(f"its versions are {versions!r}, expected text")
        if schema > SCHEMA:
            raise ValueError(
                f"it has schema {schema}, written by skdice {versions['skdice']}; this is skdice "
                f"{__version__}, which reads schemas up to {SCHEMA}: upgrade it"
            )
        archive = _safetensors.read(path)
        arrays = {name: np.array(archive.open(name)[:]) for name in entries}
        if _digest(metadata["skdice"], arrays) != metadata.get("sha256"):
            raise ValueError("it was altered or damaged after it was written")
        return document, arrays


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
            arrays[key if key in _HEAD_ARRAYS else f"{n}.{key}"] = array
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


def _build_ensemble(document: dict[str, Any], arrays: Arrays) -> ConformalEnsemble:
    """Return the fitted ensemble of a document and its arrays, after a check of every field."""
    check_keys("the document", document, _ENSEMBLE)
    fitted = check_keys("the fitted state", document["fitted"], _FITTED)
    calibration = _decode_calibration(fitted["calibration"])
    names = set(ConformalEnsemble._parameter_constraints) - {"estimators"}
    parameters = check_keys("the parameters", document["parameters"], names)
    if not isinstance(document["members"], list) or not document["members"]:
        raise ValueError(f"its members are {document['members']!r}, expected a list")
    rest = dict(arrays)
    scores = {name: rest.pop(name) for name in _SCORE_ARRAYS if name in rest}
    if scores.keys() != _score_arrays(calibration):
        raise ValueError("its calibration scores and its calibration do not fit one another")
    # One object, so that the members share one head in memory and its product with the rows.
    has_head = arrays.keys() >= _HEAD_ARRAYS
    head = LinearHead(arrays["weight"], arrays["bias"]) if has_head else None
    named, references = [], []
    of_members: dict[str, Arrays] = {}
    for key in [key for key in rest if "." in key]:
        number, _, name = key.partition(".")
        of_members.setdefault(number, {})[name] = rest.pop(key)
    for n, member in enumerate(document["members"]):
        check_keys("a member", member, _MEMBER)
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
            own |= {key: arrays[key] for key in _HEAD_ARRAYS if key in arrays}
        named.append((name, build(part, own, head)))
    surplus = [f"{number}.{key}" for number, own in of_members.items() for key in own]
    surplus += rest.keys() - _HEAD_ARRAYS
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
    check_keys("the document", document, _DOCUMENT | ({"shaping"} if is_dice else set()))
    fitted = check_keys(
        "the fitted state", document["fitted"], _FITTED | _FITTED_OF[detector_class]
    )
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
        layer = detector._set_subspace(head, arrays["origin"], components)
        alpha = decode_number("alpha", fitted["alpha"])
        if not math.isfinite(alpha):
            raise ValueError(f"its alpha is {alpha}, expected a finite number")
        detector._set_alpha(layer, alpha)
    _set_threshold(detector, fitted, calibration, arrays)
    return detector


def _decode_calibration(encoded: Any) -> Calibration | None:
    if encoded is None:
        return None
    has_by = isinstance(encoded, dict) and "by" in encoded
    record = Calibration(
        **check_keys("the calibration", encoded, _CALIBRATION - (set() if has_by else {"by"}))
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
    expected = _ARRAYS_OF[detector_class] | of_head | _score_arrays(calibration)
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
    for name in sorted(_MEAN_ARRAYS):
        check_array(arrays, name, np.float64, (n_features,))
    if detector_class is DICEDetector:
        check_array(arrays, "mask", np.bool_, (n_classes, n_features))
        if not arrays["mask"].any():
            raise ValueError("its mask keeps no weight, expected one at least")
    return n_features


def _encode_mean(detector: Any, arrays: Arrays) -> dict[str, Any]:
    """Add the mean activation, and the sums that it comes from, to the arrays."""
    arrays["mean_activation"] = to_numpy(detector.mean_activation_).astype(np.float64)
    arrays["activation_total"] = detector._statistics.total
    arrays["activation_error"] = detector._statistics.error
    return {"sum_of_weights": detector._statistics.sum_of_weights}


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


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of JSON")


def _digest(text: str, arrays: Arrays) -> str:
    """Return the SHA-256 of the document and of every array with its name, dtype and shape."""
    digest = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
