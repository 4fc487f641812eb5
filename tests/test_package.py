import subprocess
import sys

import pytest

import skdice
from skdice._compat.extras import import_extra

EXTRAS = ["torch", "matplotlib", "numba", "dask", "h5py", "zarr", "pyarrow", "onnx", "pandas"]


def test_importing_skdice_imports_no_extra():
    program = (
        "import sys, skdice, skdice.shaping, skdice.datasets, skdice.cli;"
        "skdice.datasets.load_fashion_mnist_ood();"
        f"print(*[name for name in {EXTRAS} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    # What scikit-learn itself imports where it is installed is not ours.
    alone = subprocess.run(
        [
            sys.executable,
            "-c",
            program.replace("skdice.datasets.load_fashion_mnist_ood();", "").replace(
                "skdice, skdice.shaping, skdice.datasets, skdice.cli", "sklearn.metrics"
            ),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) <= set(alone.stdout.split())


def test_public_names():
    assert skdice.__all__ == [
        "DICEDetector",
        "DICEDetectorCV",
        "FeatureStatistics",
        "LinearHead",
        "load",
        "save",
        "sparsity_path",
    ]
    assert all(hasattr(skdice, name) for name in skdice.__all__)


def test_a_missing_extra_is_named():
    with pytest.raises(ImportError, match=r"pip install 'skdice\[fast\]'"):
        import_extra("no_such_module", "fast")


def test_a_broken_installation_is_not_mistaken_for_a_missing_extra(tmp_path, monkeypatch):
    (tmp_path / "broken_extra.py").write_text("import something_it_needs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_it_needs"):
        import_extra("broken_extra", "fast")
