"""The values of a detector file: numbers, arrays and shapings, encoded and checked."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice import shaping as shaping_module
from skdice._compat.sklearn import validate_parameters
from skdice.io._archive import listed

Arrays = dict[str, NDArray[Any]]
_SHAPINGS = {name: getattr(shaping_module, name) for name in shaping_module.__all__}
# What a shaping learns, beside the number of features.
_LEARNED = {"ReAct": {"threshold_"}, "VRA": {"alpha_", "beta_"}}
_SHAPING = {"class", "parameters", "fitted"}


def check_array(
    arrays: Arrays, name: str, dtype: Any, shape: tuple[int, ...], *, finite: bool = True
) -> None:
    """Raise if an array is of another dtype or shape, or not finite."""
    array, dtype = arrays[name], np.dtype(dtype)
    if (array.dtype, array.shape) != (dtype, shape):
        raise ValueError(f"its {name} is {array.dtype} {array.shape}, expected {dtype} {shape}")
    if finite and not np.isfinite(array).all():
        raise ValueError(f"its {name} is not finite")


def check_keys(name: str, value: Any, keys: set[str]) -> dict[str, Any]:
    """Return an object of the document after a check that it has these keys and no others."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object of JSON, got {value!r}")
    if value.keys() != keys:
        raise ValueError(f"the keys of {name} are {listed(value)}, expected {listed(keys)}")
    return value


def decode_number(name: str, encoded: Any) -> float:
    value = decode_value(encoded)
    if not isinstance(value, float) or math.isnan(value):
        raise ValueError(f"its {name} is {value!r}, expected a number")
    return value


def encode_value(value: Any) -> Any:
    """Return a parameter or fitted number as a JSON value; infinities become text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def decode_value(value: Any) -> Any:
    if type(value) is int and not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"a number is {value}, expected 64 bits at most")
    if not isinstance(value, dict):
        return value
    if value not in ({"float": "inf"}, {"float": "-inf"}):
        raise ValueError(f"a number is {value!r}, expected an infinity")
    return float(value["float"])


def encode_shaping(shaping: Any) -> dict[str, Any] | None:
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
        "parameters": {key: encode_value(value) for key, value in shaping.get_params().items()},
        "fitted": {key: encode_value(value) for key, value in fitted.items()},
    }


def decode_shaping(encoded: Any) -> Any:
    if encoded is None:
        return None
    encoded = check_keys("the shaping", encoded, _SHAPING)
    name = encoded["class"]
    if not isinstance(name, str) or name not in _SHAPINGS:
        raise ValueError(f"its shaping has the class {name!r}, expected one of {listed(_SHAPINGS)}")
    constraints = set(_SHAPINGS[name]._parameter_constraints)
    parameters = check_keys("the parameters of the shaping", encoded["parameters"], constraints)
    shaping = _SHAPINGS[name](**{key: decode_value(value) for key, value in parameters.items()})
    validate_parameters(shaping)
    fitted = encoded["fitted"]
    if not fitted and isinstance(fitted, dict):  # A parameter of a detector is not fitted.
        return shaping
    learned = _LEARNED.get(name, set())
    check_keys("the fitted state of the shaping", fitted, learned | {"n_features_in_"})
    if type(fitted["n_features_in_"]) is not int:
        raise ValueError(f"its shaping was fitted on {fitted['n_features_in_']!r} features")
    shaping.n_features_in_ = fitted["n_features_in_"]
    for key in learned:
        setattr(shaping, key, decode_number(key, fitted[key]))
    return shaping
