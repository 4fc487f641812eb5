"""A model with a detector attached: logits and scores in one pass."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

import numpy as np
import torch
from exporting import onnx_run
from torch import nn

from skdice import DICEDetector, LinearHead
from skdice.extraction import attach, extract_features

# The exporter of torch itself causes these warnings.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*treespec.*:FutureWarning", "ignore::DeprecationWarning", "ignore:.*torch.jit.script"
)


def test_attached_lies_where_the_model_does(small):
    head, X = small
    detector = DICEDetector(head).fit(X)
    attached = attach(nn.Linear(12, 5).to("meta"), detector, layer="")
    assert {buffer.device.type for buffer in attached.buffers()} == {"meta"}
    logits, scores = attached(torch.empty(3, 12, device="meta"))
    assert (logits.device.type, scores.device.type) == ("meta", "meta")


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU())
        self.classifier = nn.Conv2d(12, 5, 1)

    def forward(self, x):
        return self.classifier(self.body(x)).mean((2, 3))


def linear():
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)
    )


@pytest.mark.parametrize("build", [linear, Convolutional])
def test_attached_gives_logits_and_score_in_one_pass(build, tmp_path):
    torch.manual_seed(0)
    model, images = build().train(), torch.rand(40, 3, 8, 8)
    state = copy.deepcopy(model.state_dict())
    extraction = extract_features(model, images)
    detector = DICEDetector(extraction.head, sparsity=0.3).fit(extraction.features)
    attached = attach(model, detector)
    with torch.no_grad():
        logits, scores = attached(images)
        np.testing.assert_array_equal(logits.numpy(), copy.deepcopy(model).eval()(images).numpy())
    np.testing.assert_allclose(
        scores.numpy(), detector.score_samples(extraction.features), rtol=1e-5
    )
    assert model.training
    assert model.state_dict().keys() == state.keys()
    in_onnx = onnx_run(attached, images[:4], images.numpy(), tmp_path)
    np.testing.assert_allclose(in_onnx[0], logits.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(in_onnx[1], scores.numpy(), rtol=1e-5)


def test_an_input_with_nan_may_come_first(small):
    """It gets a NaN score, and the first finite batch is verified."""
    head, X = small
    layer = nn.Linear(12, 5, dtype=torch.float64)
    layer.load_state_dict({"weight": torch.tensor(head.weight), "bias": torch.tensor(head.bias)})
    for wrong in (False, True):
        model = nn.Sequential(layer, nn.Linear(5, 5).double() if wrong else nn.Identity())
        service = attach(model, DICEDetector(head).fit(X))
        assert len(service(torch.tensor(X[:0]))[1]) == 0  # an empty batch may come even before
        broken = torch.tensor(X[:2])
        broken[0, 3] = torch.nan
        _, scores = service(broken)
        assert torch.isnan(scores).tolist() == [True, False]
        if wrong:
            with pytest.raises(ValueError, match="output"):
                service(torch.tensor(X[:2]))
        else:
            service(torch.tensor(X[:2]))


def test_threads_share_an_attached_model(small):
    head, X = small
    layer = nn.Linear(12, 5, dtype=torch.float64)
    layer.load_state_dict({"weight": torch.tensor(head.weight), "bias": torch.tensor(head.bias)})
    attached = attach(nn.Sequential(nn.Identity(), layer), DICEDetector(head).fit(X))
    together = threading.Barrier(2)

    def meet(layer, inputs, output):
        together.wait(10)  # the other thread's rows have entered the layer by now

    attached.model[1].register_forward_hook(meet)
    blocks = [torch.from_numpy(X[:7]), torch.from_numpy(X[7:20])]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(attached, blocks))
    for (_, scores), block in zip(results, blocks, strict=True):
        assert torch.equal(scores, attached.scorer(block))


def test_attach_to_a_linear_layer_alone(small):
    _, X = small
    layer = nn.Linear(12, 5).double()
    detector = DICEDetector(LinearHead.from_torch(layer), sparsity=0).fit(X)
    _, scores = attach(layer, detector)(torch.from_numpy(X))
    np.testing.assert_allclose(scores.detach().numpy(), detector.score_samples(X), rtol=1e-12)


def test_attach_asks_for_the_layer_where_none_has_the_head(small):
    head, X = small
    detector = DICEDetector(head).fit(X)
    with pytest.raises(ValueError, match=r"no layer of the model has the weight .* name the"):
        attach(linear(), detector)


def test_a_decision_scores_the_rows_once(small, monkeypatch):
    head, X = small
    layer = nn.Linear(12, 5, dtype=torch.float64)
    layer.load_state_dict({"weight": torch.tensor(head.weight), "bias": torch.tensor(head.bias)})
    detector = DICEDetector(head).fit(X).calibrate(X[:100], 0.1, method="conformal")
    X = X[100:]  # scores that tie with the calibration would differ by their rounding
    attached = attach(nn.Sequential(nn.Identity(), layer), detector)
    scored, forward = [], attached.scorer.forward
    monkeypatch.setattr(attached.scorer, "forward", lambda rows: scored.append(1) or forward(rows))
    with torch.no_grad():
        _, scores, is_ood, pvalues = attached.decide(torch.from_numpy(X))
    assert len(scored) == 1
    np.testing.assert_allclose(scores, detector.score_samples(X), rtol=1e-12)
    np.testing.assert_array_equal(is_ood, detector.predict(X) == -1)
    np.testing.assert_allclose(pvalues, detector.pvalues(X))
