"""Optional packages: present, absent, or unusable."""

import types

import pytest

from skdice._compat import extras


def test_a_numba_that_cannot_be_used_is_done_without(monkeypatch):
    pytest.importorskip("numba")
    numba = types.SimpleNamespace(
        config=types.SimpleNamespace(DISABLE_JIT=False),
        version_info=types.SimpleNamespace(short=(0, 58)),
        __version__="0.58.1",
    )

    def import_module(name):
        if numba is None:
            raise ImportError("Numba needs NumPy 2.2 or less")
        return numba

    monkeypatch.setattr(extras, "import_module", import_module)
    has_numba = extras.has_numba.__wrapped__
    with pytest.warns(UserWarning, match="numba is installed but cannot be used .*0.58.1"):
        assert not has_numba()
    numba.version_info.short = (0, 59)
    assert has_numba()
    numba.config.DISABLE_JIT = True
    assert not has_numba()
    numba = None
    with pytest.warns(UserWarning, match="needs NumPy 2.2 or less"):
        assert not has_numba()
