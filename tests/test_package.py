import ast
import subprocess
import sys
from pathlib import Path

import pytest

import skdice
from skdice._compat.extras import import_extra

EXTRAS = [
    "torch",
    "matplotlib",
    "jinja2",
    "numba",
    "dask",
    "h5py",
    "zarr",
    "pyarrow",
    "onnx",
    "skl2onnx",
    "pandas",
]


def test_importing_skdice_imports_no_extra():
    modules = "skdice, skdice.shaping, skdice.datasets, skdice.report, skdice.cli._commands"
    program = (
        f"import sys, {modules};"
        "skdice.datasets.load_fashion_mnist_ood();"
        f"print(*[name for name in {EXTRAS} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    # scikit-learn itself imports some of these packages if they are installed.
    alone = subprocess.run(
        [
            sys.executable,
            "-c",
            program.replace("skdice.datasets.load_fashion_mnist_ood();", "").replace(
                "skdice, skdice.shaping, skdice.datasets, skdice.report, skdice.cli._commands",
                "sklearn.metrics",
            ),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) <= set(alone.stdout.split())


def test_public_names():
    assert skdice.__all__ == [
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
    assert set(skdice.__all__) <= set(dir(skdice))
    for name in skdice.__all__:
        assert getattr(skdice, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'skdice' has no attribute 'DICE'"):
        skdice.DICE  # noqa: B018


def test_public_names_are_imported_on_first_use():
    program = (
        "import pickle, sys, skdice; assert 'sklearn' not in sys.modules;"
        "detector = skdice.DICEDetector('identity'); assert 'sklearn' in sys.modules;"
        "assert skdice.io.open_features is sys.modules['skdice.io'].open_features;"
        "assert skdice.shaping.ReAct() is not None;"
        "assert type(pickle.loads(pickle.dumps(detector))) is skdice.DICEDetector;"
        "from skdice import *; assert DICEDetectorCV is skdice.DICEDetectorCV"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_type_checkers_see_every_public_name():
    # The imports for type checkers and the table for __getattr__ repeat the same names.
    (block,) = (
        node
        for node in ast.parse(Path(skdice.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.If)
    )
    declared = {name.name: node.module for node in block.body for name in node.names}
    assert declared == skdice._MODULES
    assert sorted(declared) == sorted(skdice.__all__)


def test_a_missing_extra_is_named():
    with pytest.raises(ImportError, match=r"pip install 'skdice\[fast\]'"):
        import_extra("no_such_module", "fast")


def test_a_broken_installation_is_not_mistaken_for_a_missing_extra(tmp_path, monkeypatch):
    (tmp_path / "broken_extra.py").write_text("import something_it_needs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_it_needs"):
        import_extra("broken_extra", "fast")
