"""Imports inside the package point down the levels of its architecture, and run in no circle."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import skdice

PACKAGE = Path(skdice.__file__).parent

# The levels, upwards. A group is a folder or a module of the top of the package. A module imports
# from its own group and from groups of lower levels: groups of one level know nothing of each
# other.
LEVELS = [
    {"_compat"},
    {"_scores", "_sparsify"},
    {"_rows"},
    {"_passes", "io", "_engines"},
    {"shaping", "_head", "_last_layer"},
    {"_calibration", "_export"},
    {"_base"},
    {"_dice", "_vim", "_fdbd", "_pipeline"},
    {"_search", "_ensemble", "datasets"},
    {"_open_set", "_persistence", "_skl2onnx", "metrics", "monitoring"},
    {"plotting", "report", "extraction"},
    {"cli"},
    {"__main__"},
]
# The names of the package itself are imported when they are used, from the modules that define
# them. To import such a name from `skdice` inside the package is to import that module.
DEFINED_IN = skdice._MODULES


def module_name(path: Path) -> str:
    """Return ``skdice.io._npy`` for the file skdice/io/_npy.py."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_modules(source: str, module: str, is_package: bool) -> set[str]:
    """Return the modules of skdice that a module imports, in its functions too.

    Imports for type checkers alone count as well. They do not run, but a module that names the
    types of a higher level knows of that level.
    """
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names if name.name.split(".")[0] == "skdice"}
        elif isinstance(node, ast.ImportFrom):
            parent = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                package = package[: len(package) - node.level + 1]
                parent = ".".join([*package, *filter(None, [node.module])])
            if parent.split(".")[0] == "skdice":
                imported |= {imported_module(parent, name.name) for name in node.names}
    return imported - {module}


def imported_module(parent: str, name: str) -> str:
    """Return the module that ``from parent import name`` imports."""
    if f"{parent}.{name}" in MODULES:
        return f"{parent}.{name}"
    if parent == "skdice":
        return DEFINED_IN.get(name, "skdice._compat.version" if name == "__version__" else "skdice")
    return parent


@cache
def graph() -> dict[str, set[str]]:
    """Return the modules that each module of skdice imports.

    The package itself is left out: its names are what users import, from all levels.
    """
    return {
        module: imported_modules(
            path.read_text(encoding="utf-8"), module, path.name == "__init__.py"
        )
        for module, path in MODULES.items()
        if module != "skdice"
    }


LEVEL_OF = {group: number for number, groups in enumerate(LEVELS) for group in groups}


def group(module: str) -> str:
    """Return the folder or the module at the top of the package that a module belongs to."""
    return (module + ".").split(".")[1]


def test_every_module_has_a_level():
    assert {group(module) for module in graph()} - LEVEL_OF.keys() == set()


def test_imports_point_down():
    top = len(LEVELS)  # The level of the package itself, and of groups without a level.
    wrong = []
    for module, all_imported in graph().items():
        for imported in sorted(all_imported):
            levels = [LEVEL_OF.get(group(name), top) for name in (module, imported)]
            if group(module) != group(imported) and levels[1] >= levels[0]:
                wrong.append(f"{module} (level {levels[0]}) imports {imported} (level {levels[1]})")
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_imports_run_in_a_circle():
    # A package is imported before its modules, but its __init__ may import them.
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        circle = error.args[1][::-1]
        pytest.fail(" imports ".join(circle))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import numpy, skdice.io", {"skdice.io"}),
        ("from skdice.io import open_features", {"skdice.io"}),
        ("from skdice.io import _npz", {"skdice.io._npz"}),
        ("from skdice import shaping, DICEDetector", {"skdice.shaping", "skdice._dice"}),
        ("import skdice", {"skdice"}),
        ("def f():\n    from skdice._head import LinearHead", {"skdice._head"}),
        ("if TYPE_CHECKING:\n    import skdice._base", {"skdice._base"}),
        ("from . import _npz\nfrom .._head import LinearHead", {"skdice.io._npz", "skdice._head"}),
        ("import skdices, skdice_", set()),
    ],
)
def test_imports_are_found_wherever_they_are(source, expected):
    assert imported_modules(source, "skdice.io._npy", is_package=False) == expected
