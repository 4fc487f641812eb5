import platform
import sys
from importlib import metadata

import numpy as np
import pytest

import skdice


@pytest.fixture
def sections(capsys):
    """What show_versions prints: the lines of each section."""
    skdice.show_versions()
    blocks = [block.splitlines() for block in capsys.readouterr().out.split("\n\n")]
    return {title: [line.strip() for line in lines] for title, *lines in blocks}


def test_python_platform_and_dependencies_are_named(sections):
    assert f"executable: {sys.executable}" in sections["System"]
    assert f"platform: {platform.platform()}" in sections["System"]
    assert sections["Packages"][0] == f"skdice: {skdice.__version__}"
    assert f"numpy: {np.__version__}" in sections["Packages"]
    assert {line.split(":")[0] for line in sections["Packages"]} >= {"scipy", "threadpoolctl"}


def test_extras_are_listed_exactly_if_they_are_installed(sections):
    def is_installed(name):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            return False
        return True

    listed = {line.split(":")[0] for line in sections["Packages of extras"]}
    for name in ("torch", "numba", "dask", "h5py", "zarr", "pyarrow", "onnx", "matplotlib"):
        assert (name in listed) == is_installed(name)
    # Tools that test or document skdice are not part of what a user installs.
    assert "pytest" not in listed


def test_libraries_with_threads_are_listed(sections):
    from threadpoolctl import threadpool_info

    assert len(sections["Libraries with threads"]) == len(threadpool_info()) >= 1


def test_a_source_tree_that_is_not_installed_shows_its_version(monkeypatch, capsys):
    def not_found(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", not_found)
    skdice.show_versions()
    assert f"skdice: {skdice.__version__}" in capsys.readouterr().out
