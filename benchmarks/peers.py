"""How others compute the DICE score of a block of features, from the same masked weight.

Each function takes rows (n, m), masked weight (C, m) and bias (C,), and returns scores (n,) that
are higher for more in-distribution rows. pytorch-ood's own detector is called through
`pytorch_ood_scores`; it imports torchvision, which computes nothing here, so that an empty one
stands in where it is missing::

    pip install --no-deps pytorch-ood==0.4.0
"""

import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import logsumexp

FloatArray = NDArray[np.floating[Any]]


class _EmptyTorchvision(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        is_it = fullname.partition(".")[0] == "torchvision"
        return ModuleSpec(fullname, self, is_package=True) if is_it else None

    def create_module(self, spec: ModuleSpec) -> Any:
        return MagicMock(name=spec.name, __path__=[])

    def exec_module(self, module: Any) -> None:
        pass


def pytorch_ood_detectors() -> Any:
    """Return the module with the detectors of pytorch-ood."""
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(_EmptyTorchvision())
    return importlib.import_module("pytorch_ood.detector")


def pytorch_ood_detector(weight: FloatArray, bias: FloatArray, sparsity: float) -> Any:
    """Return an unfitted DICE detector of pytorch-ood."""
    tensors = torch.from_numpy(weight), torch.from_numpy(bias)
    return pytorch_ood_detectors().DICE(None, *tensors, sparsity)


def pytorch_ood_geometric(
    name: str, weight: FloatArray, bias: FloatArray, train: FloatArray, n_components: int
) -> Any:
    """Return a ViM or fDBD detector of pytorch-ood, fitted on rows."""
    tensors = torch.from_numpy(weight), torch.from_numpy(bias)
    if name == "ViM":
        detector = pytorch_ood_detectors().ViM(None, n_components, *tensors)
    else:
        layer = torch.nn.Linear(weight.shape[1], len(weight))
        layer.weight.data, layer.bias.data = tensors
        detector = pytorch_ood_detectors().fDBD(None, layer)
    rows = torch.from_numpy(train)
    return detector.fit_features(rows, torch.zeros(len(rows), dtype=torch.long))


def pytorch_ood_scores(X: FloatArray, coef: FloatArray, bias: FloatArray) -> FloatArray:
    """Call pytorch-ood's detector with the masked weight given, as it cannot fit large heads."""
    detector = pytorch_ood_detector(coef, bias, 0)
    detector.masked_w = detector.weight
    return -detector.predict_features(torch.from_numpy(X)).numpy()


@torch.no_grad()
def torch_broadcast(X: FloatArray, coef: FloatArray, bias: FloatArray) -> FloatArray:
    """The form of the authors' code and of OpenOOD: an (n, C, m) temporary."""
    vote = torch.from_numpy(X)[:, None, :] * torch.from_numpy(coef)
    return torch.logsumexp(vote.sum(2) + torch.from_numpy(bias), dim=1).numpy()


@torch.no_grad()
def torch_linear(X: FloatArray, coef: FloatArray, bias: FloatArray) -> FloatArray:
    """A plain product of all rows in one call."""
    logits = torch.nn.functional.linear(*(torch.from_numpy(each) for each in (X, coef, bias)))
    return torch.logsumexp(logits, dim=1).numpy()


def numpy_scipy(X: FloatArray, coef: FloatArray, bias: FloatArray) -> FloatArray:
    """NumPy's product and SciPy's logsumexp."""
    return logsumexp(X @ coef.T + bias, axis=1)


def scipy_csr(X: FloatArray, coef: Any, bias: FloatArray) -> FloatArray:
    """SciPy's product with a compressed sparse weight."""
    weight = coef if sparse.issparse(coef) else sparse.csr_array(coef)
    return logsumexp((weight @ X.T).T + bias, axis=1)
