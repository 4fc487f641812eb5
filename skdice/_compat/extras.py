"""Imports of optional packages, with an error that names the extra to install."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

# Of the extra `fast`.
LEAST_NUMBA = (0, 59)


def import_extra(module: str, extra: str) -> Any:
    """Import `module`, or say which extra of skdice brings it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        # A broken installation of the module itself must not look like a missing extra.
        if error.name not in (module, module.partition(".")[0]):
            raise
        raise ImportError(
            f"{module.partition('.')[0]} is not installed: run pip install 'skdice[{extra}]'."
        ) from error


@cache
def has_numba() -> bool:
    """Tell whether numba is there and compiles; warn, once, where it is there and does not."""
    if find_spec("numba") is None:
        return False
    try:
        numba = import_module("numba")
    except Exception as error:
        # As one that is too old for the NumPy that is installed.
        reason = str(error)
    else:
        if numba.config.DISABLE_JIT:
            return False
        if numba.version_info.short >= LEAST_NUMBA:
            return True
        reason = f"it is version {numba.__version__}"
    warnings.warn(
        f"numba is installed but cannot be used ({reason}), so that skdice computes without it; "
        "pip install 'skdice[fast]' brings one that can.",
        stacklevel=2,
    )
    return False
