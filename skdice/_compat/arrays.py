"""Array namespaces and devices: arrays of torch, CuPy and others, in and out."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray
from sklearn import get_config


def is_followed(X: Any) -> bool:
    """Tell whether results for X are arrays of its own library, on its device.

    True for a torch tensor, and for an array of any other library but NumPy while
    scikit-learn's ``array_api_dispatch`` is on.
    """
    return array_api_compat.is_torch_array(X) or (
        get_config()["array_api_dispatch"]
        and array_api_compat.is_array_api_obj(X)
        and not array_api_compat.is_numpy_array(X)
        and not array_api_compat.is_dask_array(X)
    )


def is_dask(X: Any) -> bool:
    """Tell whether X is a Dask array, DataFrame or Series, without importing Dask."""
    return type(X).__module__.partition(".")[0] in ("dask", "dask_expr") and hasattr(
        X, "__dask_graph__"
    )


def device_of(array: Any) -> Any:
    """Return the device of an array."""
    return array_api_compat.device(array)


def to_numpy(array: Any) -> NDArray[Any]:
    """Return an array of any library as NumPy's; dtypes that NumPy lacks as float32."""
    if array_api_compat.is_torch_array(array):
        array = array.detach().cpu().resolve_neg()
        try:
            values: NDArray[Any] = array.numpy()
        except TypeError:  # bfloat16
            values = array.float().numpy()
        return values
    if isinstance(array, np.ndarray) or not array_api_compat.is_array_api_obj(array):
        return np.asarray(array)
    if array_api_compat.is_cupy_array(array):
        return np.asarray(array.get())
    return np.from_dlpack(array)


def on_host(X: Any) -> Any:
    """Return an array that is followed as NumPy's, for what looks at it on the CPU; else X."""
    return to_numpy(X) if is_followed(X) else X


def from_numpy(array: NDArray[Any], xp: Any, device: Any) -> Any:
    """Return a copy of a NumPy array in another namespace, on a device of it.

    In single precision where the device has no other.
    """
    if array.dtype == np.float64 and not has_float64(xp, device):
        array = array.astype(np.float32)
    return xp.asarray(np.array(array), device=device)


def has_float64(xp: Any, device: Any) -> bool:
    """Tell whether a device computes in double precision."""
    kinds = xp.__array_namespace_info__().dtypes(device=device, kind="real floating")
    return "float64" in kinds


def is_accelerator(xp: Any, device: Any) -> bool:
    """Tell whether a device is better left to sum by itself, in double precision."""
    on_gpu = array_api_compat.is_cupy_namespace(xp) or (
        array_api_compat.is_torch_namespace(xp) and device.type != "cpu"
    )
    return on_gpu and has_float64(xp, device)


def check_same_namespace(X: Any, fitted: Any, method: str) -> None:
    """Raise where X and the arrays of a fitted estimator are of different libraries or devices.

    As scikit-learn asks while ``array_api_dispatch`` is on. Arrays of NumPy, such as those
    of an estimator that was loaded, follow X anywhere.

    Parameters
    ----------
    X : array-like
        Given to the method.
    fitted : array
        A fitted attribute.
    method : str
        ``"DICEDetector.predict"``, say.
    """
    if not get_config()["array_api_dispatch"] or isinstance(fitted, np.ndarray):
        return
    expected = f"{array_api_compat.array_namespace(fitted).__name__} on {device_of(fitted)}"
    if is_followed(X):
        given = f"{array_api_compat.array_namespace(X).__name__} on {device_of(X)}"
    else:
        given = type(X).__name__
    if given != expected:
        raise ValueError(
            f"Inputs passed to {method}() must use the same namespace and the same device as "
            f"those passed to fit(): got {given}, expected {expected}"
        )
