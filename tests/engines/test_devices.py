"""The parameter `device`: names of devices, and devices that are not there."""

import pytest

pytest.importorskip("torch")

import numpy as np
import torch

from skdice import DICEDetector


@pytest.mark.parametrize("name", ["cuda:0", "cuda", "mps"])
def test_a_device_that_is_not_there_is_named(wide, name, monkeypatch):
    head, X = wide
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    detector = DICEDetector(head, device=name)
    with pytest.raises(ValueError, match=rf"device is '{name}', but torch finds no GPU here"):
        detector.fit(X)
    # The device is checked first, before anything is fitted.
    assert not hasattr(detector, "coef_")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CUDA", ""])
def test_a_device_that_is_none_is_refused(wide, name):
    with pytest.raises(ValueError, match=r"'device' parameter of DICEDetector must be .*'cuda:1'"):
        DICEDetector(wide[0], device=name).fit(wide[1])


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_devices_of_every_machine(wide, name):
    head, X = wide
    expected = DICEDetector(head).fit(X)
    detector = DICEDetector(head, device=name).fit(X)
    np.testing.assert_allclose(detector.score_samples(X), expected.score_samples(X), rtol=1e-5)
    tensor = torch.from_numpy(X)
    assert type(detector.score_samples(tensor)) is torch.Tensor


def test_auto_needs_no_torch(wide, monkeypatch):
    head, X = wide
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    detector = DICEDetector(head, device="auto").fit(X)
    assert detector.score_samples(X).shape == (5000,)
    with pytest.raises(ImportError, match=r"skdice\[torch\]"):
        detector.set_params(device="cuda").score_samples(X)
