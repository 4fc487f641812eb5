"""Fixtures that several test modules share."""

import os
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from skdice import DICEDetector, LinearHead
from skdice._compat.extras import has_numba
from skdice.datasets import load_fashion_mnist_ood

# Examples have no deadline, because their duration is not what the tests are about.
hypothesis.settings.register_profile("skdice", deadline=None)
hypothesis.settings.load_profile("skdice")


def pytest_addoption(parser):
    parser.addoption(
        "--least-passed",
        type=int,
        default=0,
        help="fail if fewer tests pass: what is skipped for want of an extra must not be all",
    )


def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    least = session.config.getoption("--least-passed")
    passed = len(reporter.stats.get("passed", ())) if reporter else 0
    if passed < least:
        reporter.write_line(f"\n{passed} tests passed, expected at least {least}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def fashion():
    return load_fashion_mnist_ood()


@pytest.fixture(scope="session")
def cifar10():
    """Folder of the real CIFAR-10 features of the paper's own network."""
    if not os.environ.get("SKDICE_DATA"):
        pytest.skip("SKDICE_DATA does not name the folder of the paper's features")
    return Path(os.environ["SKDICE_DATA"]) / "cifar10-densenet"


@pytest.fixture(scope="session")
def small():
    """A small made-up head with ReLU-like features: (head, features), float64."""
    rng = np.random.default_rng(7)
    head = LinearHead(rng.normal(size=(5, 12)), rng.normal(size=5))
    return head, np.maximum(rng.normal(size=(200, 12)), 0)


@pytest.fixture(scope="session")
def wide():
    """A head and ReLU-like features of several blocks, float32: (head, features)."""
    rng = np.random.default_rng(5)
    head = LinearHead(rng.normal(size=(30, 64)).astype(np.float32))
    return head, np.maximum(rng.normal(size=(5000, 64)), 0).astype(np.float32)


@pytest.fixture(scope="session")
def fitted(fashion):
    return DICEDetector(fashion.head, sparsity=0.7).fit(fashion.id_train)


@pytest.fixture(scope="session")
def labelled(fashion):
    """Rows of the embedded sets, and 1 for in-distribution, -1 for outliers."""
    X = np.concatenate([fashion.id_test[:400], fashion.ood["mnist"][:200]])
    return X, np.repeat([1, -1], [400, 200])


@pytest.fixture
def without_numba(monkeypatch):
    """Have numba missing, as it is without the extra `fast`."""
    monkeypatch.setitem(sys.modules, "numba", None)
    has_numba.cache_clear()
    yield
    monkeypatch.undo()
    has_numba.cache_clear()


@pytest.fixture
def ax():
    from matplotlib.figure import Figure

    return Figure().subplots()


@pytest.fixture
def matplotlib_left_alone():
    """Check that the test leaves the settings of matplotlib as they were."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == before
