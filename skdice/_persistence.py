"""Saving a fitted detector to a file that runs no code when it is loaded.

The file is a .safetensors file: arrays, and JSON in its metadata. A digest over both reveals
an altered file. The digest is not a signature, because whoever can write the file can also
write the digest. To change the stored content, raise SCHEMA and keep the old reader.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skdice import shaping as shaping_module
from skdice._compat.arrays import to_numpy
from skdice._compat.sklearn import validate_parameters
from skdice._dice import BaseDICE, DICEDetector
from skdice._head import LinearHead, as_linear_head
from skdice._passes.mean import FeatureStatistics
from skdice._passes.threshold import Calibration
from skdice._rows.door import wrap
from skdice._version import __version__
from skdice.io import _safetensors
from skdice.io._archive import clean_errors, require_file, to_path
from skdice.io._atomic import replacing

SCHEMA = 1
KIND = "skdice.DICEDetector"
_SHAPINGS = {name: getattr(shaping_module, name) for name in shaping_module.__all__}


def save(detector: BaseDICE, path: str | Path) -> None:
    """Write a fitted detector to a file that runs no code when it is loaded.

    The file is in the .safetensors format, with JSON metadata. `skdice.load` reads it
    back, bit for bit, on any machine. An interrupted save leaves the old file or none.

    Parameters
    ----------
    detector : DICEDetector or DICEDetectorCV
        A fitted detector. The result of a search is written as a `DICEDetector` with the best
        sparsity.
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
    # A derived class is refused, because it may compute something else than the loaded detector.
    if not isinstance(detector, BaseDICE) or not type(detector).__module__.startswith("skdice."):
        raise TypeError(
            f"save writes a DICEDetector or a DICEDetectorCV, got a {type(detector).__name__}"
        )
    check_is_fitted(detector)
    parameters = detector._detector_parameters()
    if not isinstance(detector.score_func, str):
        raise ValueError(
            f"score_func is {detector.score_func!r}: a function cannot be saved without saving "
            "code; use one of the named scores, or pickle the detector"
        )
    arrays: dict[str, NDArray[Any]] = {
        "mask": to_numpy(detector.mask_),
        "mean_activation": to_numpy(detector.mean_activation_).astype(np.float64),
        "activation_total": detector._statistics.total,
        "activation_error": detector._statistics.error,
    }
    is_identity = isinstance(detector.head, str)
    if not is_identity:
        arrays |= {"weight": detector.head_.weight, "bias": detector.head_.bias}
    if hasattr(detector, "calibration_scores_"):
        arrays["calibration_scores"] = detector.calibration_scores_
    names = getattr(detector, "feature_names_in_", None)
    calibration = getattr(detector, "calibration_", None)
    document = {
        "kind": KIND,
        "schema": SCHEMA,
        "versions": {"skdice": __version__, "scikit-learn": sklearn.__version__},
        "parameters": {
            name: _encode(value)
            for name, value in parameters.items()
            if name not in ("head", "shaping")
        },
        "head": detector.head if is_identity else "arrays",
        "shaping": _encode_shaping(parameters["shaping"]),
        "fitted": {
            "contribution_threshold": _encode(detector.contribution_threshold_),
            "offset": _encode(getattr(detector, "offset_", None)),
            "contamination": _encode(getattr(detector, "contamination_", None)),
            "calibration": None if calibration is None else asdict(calibration),
            "n_samples_seen": int(detector.n_samples_seen_),
            "sum_of_weights": detector._statistics.sum_of_weights,
            "feature_names": None if names is None else list(map(str, names)),
            "shaping": _encode_shaping(detector.shaping_),
        },
    }
    text = json.dumps(document, allow_nan=False)
    metadata = {"skdice": text, "sha256": _digest(text, arrays)}
    path = to_path(path)
    with replacing(path) as temporary:
        sources = {name: wrap(array) for name, array in arrays.items()}
        _safetensors.write(temporary, sources, metadata)


def load(path: str | Path) -> DICEDetector:
    """Load a detector that `skdice.save` wrote. No code in the file is executed.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    DICEDetector
        A fitted detector, whose results equal those of the saved detector bit for bit.

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
        return _build(document, arrays)


def read_document(path: Path) -> dict[str, Any]:
    """Return the JSON document of a detector file, after all checks that `load` makes."""
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    require_file(path)
    with clean_errors(path, "load"):
        try:
            entries, _, metadata = _safetensors.read_header(path)
        except Exception as error:  # a file of another format can cause any error in the library
            raise ValueError(f"it is damaged, or not a detector file ({error})") from error
        if "skdice" not in metadata:
            raise ValueError("it is a .safetensors file, but holds no skdice detector")
        document: dict[str, Any] = json.loads(metadata["skdice"])
        if document.get("kind") != KIND:
            raise ValueError(f"it holds a {document.get('kind')!r}, expected {KIND!r}")
        if not isinstance(document["schema"], int) or document["schema"] < 1:
            raise ValueError(f"its schema is {document['schema']!r}, expected a number from 1")
        if document["schema"] > SCHEMA:
            raise ValueError(
                f"it has schema {document['schema']}, written by skdice "
                f"{document['versions']['skdice']}; this is skdice {__version__}, which "
                f"reads schemas up to {SCHEMA}: upgrade it"
            )
        archive = _safetensors.read(path)
        arrays = {name: np.array(archive.open(name)[:]) for name in entries}
        if _digest(metadata["skdice"], arrays) != metadata.get("sha256"):
            raise ValueError("it was altered or damaged after it was written")
        return document, arrays


def _build(document: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> DICEDetector:
    fitted = document["fitted"]
    n_features = len(arrays["mean_activation"])
    head = "identity" if document["head"] == "identity" else None
    detector = DICEDetector(
        head or LinearHead(arrays["weight"], arrays["bias"]),
        shaping=_decode_shaping(document["shaping"]),
        **{name: _decode(value) for name, value in document["parameters"].items()},
    )
    validate_parameters(detector)
    resolved = as_linear_head(detector.head, n_features)
    shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
        "mask": (np.dtype(np.bool_), resolved.weight.shape)
    }
    for name in ("mean_activation", "activation_total", "activation_error"):
        shapes[name] = (np.dtype(np.float64), (n_features,))
    for name, (dtype, shape) in shapes.items():
        array = arrays[name]
        if (array.dtype, array.shape) != (dtype, shape):
            raise ValueError(f"its {name} is {array.dtype} {array.shape}, expected {dtype} {shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"its {name} is not finite")
    names = fitted["feature_names"]
    if names is not None and (
        len(names) != n_features or not all(isinstance(name, str) for name in names)
    ):
        raise ValueError(f"it has {len(names)} feature names, expected {n_features}")
    if not isinstance(fitted["n_samples_seen"], int) or fitted["n_samples_seen"] < 1:
        raise ValueError(f"its n_samples_seen is {fitted['n_samples_seen']!r}")
    statistics = FeatureStatistics(n_features)
    statistics.n_samples = fitted["n_samples_seen"]
    statistics.sum_of_weights = _number("sum_of_weights", fitted["sum_of_weights"])
    statistics.total = arrays["activation_total"]
    statistics.error = arrays["activation_error"]
    detector.n_features_in_ = n_features
    if names is not None:
        detector.feature_names_in_ = np.array(names, dtype=object)
    shaping = _decode_shaping(fitted["shaping"])
    if getattr(shaping, "n_features_in_", n_features) != n_features:
        raise ValueError(f"its shaping was fitted on {shaping.n_features_in_!r} features")
    detector._set_fitted(
        resolved,
        statistics,
        arrays["mean_activation"],
        arrays["mask"],
        _number("contribution_threshold", fitted["contribution_threshold"]),
        shaping,
    )
    if fitted["offset"] is not None:
        detector.offset_ = _number("offset", fitted["offset"])
        if not math.isfinite(detector.offset_):
            raise ValueError(f"its offset is {detector.offset_}")
        detector.contamination_ = _number("contamination", fitted["contamination"])
    if fitted["calibration"] is not None:
        detector.calibration_ = Calibration(**fitted["calibration"])
    if "calibration_scores" in arrays:
        scores = arrays["calibration_scores"]
        if scores.dtype not in (np.float32, np.float64) or scores.ndim != 1 or not len(scores):
            raise ValueError(f"its calibration scores are {scores.dtype} {scores.shape}")
        if not (np.diff(scores) >= 0).all() or not np.isfinite(scores).all():
            raise ValueError("its calibration scores are not in ascending order")
        detector.calibration_scores_ = scores
    return detector


def _number(name: str, encoded: Any) -> float:
    value = _decode(encoded)
    if not isinstance(value, float) or math.isnan(value):
        raise ValueError(f"its {name} is {value!r}, expected a number")
    return value


def _encode(value: Any) -> Any:
    """Return a parameter or fitted number as a JSON value; infinities become text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def _decode(value: Any) -> Any:
    return float(value["float"]) if isinstance(value, dict) else value


def _encode_shaping(shaping: Any) -> dict[str, Any] | None:
    if shaping is None:
        return None
    name = type(shaping).__name__
    if _SHAPINGS.get(name) is not type(shaping):
        raise ValueError(
            f"shaping is {shaping!r}, which cannot be saved without saving code; use one of "
            f"skdice.shaping ({', '.join(_SHAPINGS)}), or pickle the detector"
        )
    fitted = {key: value for key, value in vars(shaping).items() if key.endswith("_")}
    fitted.pop("feature_names_in_", None)
    return {
        "class": name,
        "parameters": {key: _encode(value) for key, value in shaping.get_params().items()},
        "fitted": {key: _encode(value) for key, value in fitted.items()},
    }


def _decode_shaping(encoded: dict[str, Any] | None) -> Any:
    if encoded is None:
        return None
    parameters = {key: _decode(value) for key, value in encoded["parameters"].items()}
    shaping = _SHAPINGS[encoded["class"]](**parameters)
    validate_parameters(shaping)
    for key, value in encoded["fitted"].items():
        if key == "n_features_in_" and isinstance(value, int):
            setattr(shaping, key, value)
        elif key in ("threshold_", "alpha_", "beta_"):
            setattr(shaping, key, _number(key, value))
        else:
            raise ValueError(f"{key!r} is no fitted attribute of a {encoded['class']}")
    return shaping


def _digest(text: str, arrays: dict[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of the document and of every array with its name, dtype and shape."""
    digest = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
