"""Every public name is in the API reference, and nothing else is."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import skdice

pytest.importorskip("matplotlib")

PAGE = Path(__file__).parents[2] / "docs" / "api.rst"


def public_names() -> set[str]:
    names = {f"skdice.{name}" for name in skdice.__all__}
    for module in pkgutil.iter_modules(skdice.__path__, "skdice."):
        if not module.name.startswith("skdice._"):
            names |= {
                f"{module.name}.{each}" for each in importlib.import_module(module.name).__all__
            }
    return names


def documented_names() -> list[str]:
    names, module, in_summary = [], None, False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith(".. module:: "):
            module = line.split()[-1]
        elif line.startswith(".. autosummary::"):
            in_summary = True
        elif in_summary and re.fullmatch(r"   \w+", line):
            names.append(f"{module}.{line.strip()}")
        elif line and not line.startswith("   "):
            in_summary = False
    return names


def test_every_public_name_is_in_the_reference():
    documented = documented_names()
    assert set(documented) == public_names()
    assert len(documented) == len(set(documented))
