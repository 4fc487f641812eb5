"""Tests of heads from torch layers and tensors."""

import pytest

pytest.importorskip("torch")

import numpy as np
import torch

from skdice import LinearHead
from skdice._head import as_linear_head


def test_a_layer_where_arrays_are_expected_is_named():
    with pytest.raises(TypeError, match=r"got Linear.*LinearHead\.from_torch"):
        LinearHead(torch.nn.Linear(3, 2))
    with pytest.raises(TypeError, match=r"got Linear.*LinearHead\.from_torch"):
        as_linear_head(torch.nn.Linear(3, 2), 3)
    with pytest.raises(TypeError, match="expects a linear classifier, got"):
        LinearHead.from_estimator(torch.nn.Linear(3, 2))


def test_tensors_that_require_gradients_are_taken():
    layer = torch.nn.Linear(3, 2)
    assert LinearHead(layer.weight, layer.bias) == LinearHead.from_torch(layer)
    assert as_linear_head(layer.weight, 3) == LinearHead(layer.weight)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_from_torch_linear(bias, dtype):
    layer = torch.nn.Linear(3, 2, bias=bias).to(dtype)
    head = LinearHead.from_torch(layer)
    expected = np.float64 if dtype == torch.float64 else np.float32
    assert head.weight.dtype == expected
    np.testing.assert_array_equal(head.weight, layer.weight.detach().to(torch.float64).numpy())
    if bias:
        np.testing.assert_array_equal(head.bias, layer.bias.detach().to(torch.float64).numpy())
    else:
        np.testing.assert_array_equal(head.bias, [0, 0])
    with torch.no_grad():
        layer.weight.zero_()
    assert head.weight.any()


def test_from_torch_convolution():
    layer = torch.nn.Conv2d(3, 2, 1)
    head = LinearHead.from_torch(layer)
    maps = torch.randn(4, 3, 5, 5)
    expected = layer(maps).mean((2, 3)).detach().numpy()
    pooled = maps.mean((2, 3)).numpy()
    np.testing.assert_allclose(pooled @ head.weight.T + head.bias, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (torch.nn.Sequential(torch.nn.Linear(3, 2)), TypeError, "got Sequential; pass the class"),
        (torch.nn.Embedding(3, 2), TypeError, "got Embedding"),
        (torch.nn.LayerNorm(3), TypeError, "got LayerNorm"),
        (torch.nn.Conv1d(3, 2, 1), TypeError, "got Conv1d"),
        ("fc", TypeError, "got str"),
        (torch.nn.ConvTranspose2d(3, 2, 1), TypeError, "got ConvTranspose2d"),
        (torch.nn.Conv2d(3, 2, 1, padding=1), ValueError, r"\(1, 1\), 1\); expected"),
        (torch.nn.Conv2d(3, 2, 3), ValueError, r"groups \(\(3, 3\), "),
        (torch.nn.Conv2d(4, 2, 1, groups=2), ValueError, r"\(0, 0\), 2\)"),
    ],
)
def test_from_torch_refuses_other_modules(module, error, message):
    with pytest.raises(error, match=message):
        LinearHead.from_torch(module)
