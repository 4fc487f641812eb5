"""Imports of optional packages, with an error that names the extra to install."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any


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


def has_extra(module: str) -> bool:
    """Tell whether an optional package is installed, without importing it."""
    return find_spec(module) is not None
