"""skdice detects out-of-distribution inputs of any trained classifier, the scikit-learn way.

>>> import skdice
>>> skdice.DICEDetector(head="identity", sparsity=0)
DICEDetector(head='identity', sparsity=0)
"""

from importlib import import_module

from skdice._compat.version import __version__ as __version__

# Type checkers take this name for typing.TYPE_CHECKING. Importing typing takes longer than
# importing the rest of this module.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from skdice._compat.versions import show_versions
    from skdice._dice import DICEDetector
    from skdice._ensemble import ConformalEnsemble, make_ensemble
    from skdice._fdbd import FDBDDetector
    from skdice._head import LinearHead
    from skdice._open_set import OpenSetClassifier
    from skdice._passes.mean import FeatureStatistics
    from skdice._persistence.files import load, save
    from skdice._pipeline import calibrate
    from skdice._search import DICEDetectorCV, sparsity_path
    from skdice._skl2onnx import register_skl2onnx
    from skdice._vim import ViMDetector

__all__ = [
    "ConformalEnsemble",
    "DICEDetector",
    "DICEDetectorCV",
    "FDBDDetector",
    "FeatureStatistics",
    "LinearHead",
    "OpenSetClassifier",
    "ViMDetector",
    "calibrate",
    "load",
    "make_ensemble",
    "register_skl2onnx",
    "save",
    "show_versions",
    "sparsity_path",
]

# Names are imported when they are first used (PEP 562), because importing this package must not
# import scikit-learn: the `skdice` command prints its help and its errors without it.
_MODULES = {
    "ConformalEnsemble": "skdice._ensemble",
    "DICEDetector": "skdice._dice",
    "DICEDetectorCV": "skdice._search",
    "FDBDDetector": "skdice._fdbd",
    "FeatureStatistics": "skdice._passes.mean",
    "LinearHead": "skdice._head",
    "OpenSetClassifier": "skdice._open_set",
    "ViMDetector": "skdice._vim",
    "calibrate": "skdice._pipeline",
    "load": "skdice._persistence.files",
    "make_ensemble": "skdice._ensemble",
    "register_skl2onnx": "skdice._skl2onnx",
    "save": "skdice._persistence.files",
    "show_versions": "skdice._compat.versions",
    "sparsity_path": "skdice._search",
}
_SUBPACKAGES = {
    "datasets",
    "extraction",
    "io",
    "metrics",
    "monitoring",
    "plotting",
    "report",
    "shaping",
}


def __getattr__(name: str) -> object:
    if name in _SUBPACKAGES:
        return import_module(f"skdice.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'skdice' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
