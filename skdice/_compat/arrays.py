"""Array namespaces and devices: arrays of torch, CuPy, JAX and others, in and out."""

import re
from typing import Any, NamedTuple

import array_api_compat
import numpy as np
from numpy.typing import DTypeLike, NDArray
from sklearn import get_config


class Namespace(NamedTuple):
    """The array library of some rows, and the device on which the rows lie."""

    xp: Any
    device: Any


def namespace_of(array: Any) -> Any:
    """Return the array API namespace of an array."""
    # Asking array_api_compat takes microseconds, which is long next to the score of a single row.
    return np if type(array) is np.ndarray else array_api_compat.array_namespace(array)


def device_of(array: Any) -> Any:
    """Return the device of an array."""
    return array_api_compat.device(array)


def keeps_namespace(X: Any) -> bool:
    """Return whether results for X are arrays of its own library, on its device.

    This is so for a torch tensor, and for an array of any other library but NumPy while
    scikit-learn's ``array_api_dispatch`` is on.
    """
    return array_api_compat.is_torch_array(X) or (
        get_config()["array_api_dispatch"]
        and array_api_compat.is_array_api_obj(X)
        and not array_api_compat.is_numpy_array(X)
        and not array_api_compat.is_dask_array(X)
    )


def is_dask(X: Any) -> bool:
    """Return whether X is a Dask array, DataFrame or Series, without importing Dask."""
    return type(X).__module__.partition(".")[0] in ("dask", "dask_expr") and hasattr(
        X, "__dask_graph__"
    )


def is_torch(X: Any) -> bool:
    """Return whether X is a torch tensor, without importing torch."""
    return bool(array_api_compat.is_torch_array(X))


def to_numpy(array: Any) -> NDArray[Any]:
    """Return an array of any library as a NumPy array; dtypes that NumPy lacks become float32."""
    if array_api_compat.is_torch_array(array):
        array = array.detach().cpu().resolve_neg()
        try:
            values: NDArray[Any] = array.numpy()
        except TypeError:  # NumPy has no bfloat16
            values = array.float().numpy()
        return values
    if isinstance(array, np.ndarray) or not array_api_compat.is_array_api_obj(array):
        return np.asarray(array)
    if array_api_compat.is_cupy_array(array):
        return np.asarray(array.get())
    if array_api_compat.is_jax_array(array):
        # JAX knows how to copy from any device, and has dtypes that DLPack lacks.
        values = np.asarray(array)
        return values.astype(np.float32) if is_narrow_float(values.dtype) else values
    return np.from_dlpack(array)


def is_narrow_float(dtype: DTypeLike) -> bool:
    """Tell whether a dtype is a floating-point type of ml_dtypes, such as bfloat16.

    NumPy takes most of them for bytes without a meaning. float32 holds all of their values.
    """
    dtype = np.dtype(dtype)
    return dtype.kind in "fV" and re.fullmatch(r"bfloat16|float[468]_\w+", dtype.name) is not None


def to_host(X: Any) -> Any:
    """Return an array that `keeps_namespace` as a NumPy array, and anything else unchanged."""
    return to_numpy(X) if keeps_namespace(X) else X


def from_numpy(array: NDArray[Any], namespace: Namespace) -> Any:
    """Return a copy of a NumPy array in another library, on a device of that library.

    The copy is in single precision where the device has no double precision.
    """
    if array.dtype == np.float64 and not has_float64(namespace):
        array = array.astype(np.float32)
    return namespace.xp.asarray(np.array(array), device=namespace.device)


def has_float64(namespace: Namespace) -> bool:
    """Return whether a device computes in double precision."""
    information = namespace.xp.__array_namespace_info__()
    return "float64" in information.dtypes(device=namespace.device, kind="real floating")


def default_integer(xp: Any) -> Any:
    """Return the dtype that a library gives to integers: int32 for JAX unless it is configured."""
    return xp.__array_namespace_info__().default_dtypes()["integral"]


def is_accelerator(namespace: Namespace) -> bool:
    """Return whether a device sums faster than the host, and in double precision."""
    on_gpu = array_api_compat.is_cupy_namespace(namespace.xp) or (
        array_api_compat.is_torch_namespace(namespace.xp) and namespace.device.type != "cpu"
    )
    return on_gpu and has_float64(namespace)


def namespace_name(X: Any) -> str:
    """Return the name of the library and the device of an array, for `check_same_namespace`."""
    if not keeps_namespace(X):
        return type(X).__name__
    return f"{array_api_compat.array_namespace(X).__name__} on {device_of(X)}"


def check_same_namespace(X: Any, fitted: str, method: str) -> None:
    """Raise if X and the arrays of a fitted estimator are of different libraries or devices.

    scikit-learn asks for this error while ``array_api_dispatch`` is on.

    Parameters
    ----------
    X : array-like
        The argument of a method.
    fitted : str
        `namespace_name` of the rows of `fit`.
    method : str
        Name of the method for the message, such as ``"DICEDetector.predict"``.
    """
    given = namespace_name(X)
    if get_config()["array_api_dispatch"] and given != fitted:
        raise ValueError(
            f"Inputs passed to {method}() must use the same namespace and the same device as "
            f"those passed to fit(): got {given}, expected {fitted}"
        )
