"""Imports of optional packages, with an error that names the extra to install."""

import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

# The extra `fast` asks for this version at least.
LEAST_NUMBA = (0, 59)


def import_extra(module: str, extra: str) -> Any:
    """Import `module`, or raise an ImportError that names the extra of skdice to install."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        # A broken installation of the module itself must not look like a missing extra.
        if error.name not in (module, module.partition(".")[0]):
            raise
        raise ImportError(
            f"{module.partition('.')[0]} is not installed: run pip install 'skdice[{extra}]', or "
            f"in a clone of skdice pip install -e '.[{extra}]'."
        ) from error


@cache
def has_numba() -> bool:
    """Return whether numba can compile; warn once if it is installed but cannot."""
    if find_spec("numba") is None:
        return False
    try:
        numba = import_module("numba")
    except Exception as error:
        # For example, numba may be too old for the NumPy that is installed.
        reason = str(error)
    else:
        if numba.config.DISABLE_JIT:
            return False
        if numba.version_info.short >= LEAST_NUMBA:
            return True
        reason = f"it is version {numba.__version__}"
    warnings.warn(
        f"numba is installed but cannot be used ({reason}), so skdice computes without it; "
        "pip install 'skdice[fast]' installs a version that can.",
        stacklevel=2,
    )
    return False
