"""The detector as a torch module: eager, scripted, exported and in ONNX Runtime."""

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

import numpy as np
import torch
from exporting import onnx_run
from sklearn.preprocessing import FunctionTransformer
from torch import nn

from skdice import DICEDetector, DICEDetectorCV, LinearHead
from skdice.extraction import attach
from skdice.shaping import ASH, VRA, ReAct, Scale

# The exporter of torch itself causes these warnings.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*treespec.*:FutureWarning", "ignore::DeprecationWarning", "ignore:.*torch.jit.script"
)

SETTINGS = [
    {},
    {"sparsity": 0, "score_func": "msp"},
    {"sparsity": 0.5, "score_func": "max_logit"},
    {"score_func": "gen"},
    {"shaping": ReAct()},
    {"shaping": ReAct(threshold=0.5)},
    {"shaping": VRA()},
    {"shaping": ASH(0.5)},
    {"shaping": Scale(0.5)},
]


def rows_of(X, dtype):
    return torch.from_numpy(X.astype(dtype))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_module_gives_the_scores_of_the_detector(small, settings, dtype):
    head, X = small
    X = X.astype(dtype)
    detector = DICEDetector(head, **settings).fit(X)
    module = detector.to_torch()
    expected = detector.score_samples(X)
    for form in (module, torch.jit.script(module)):
        scores = form(rows_of(X, dtype)).numpy()
        assert scores.dtype == dtype
        np.testing.assert_allclose(scores, expected, rtol=1e-5 if dtype == "float32" else 1e-12)
        # Rows next to the threshold may fall on either side by rounding.
        clear = np.abs(expected - detector.offset_) > 1e-4
        flagged = form.is_ood(rows_of(X, dtype)).numpy()
        np.testing.assert_array_equal(flagged[clear], (detector.predict(X) == -1)[clear])
    assert "threshold" in dict(module.named_buffers())
    assert float(module.threshold) == detector.offset_
    half = module(rows_of(X, "float16"))
    assert half.dtype == torch.float32


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_onnx_gives_the_scores_of_the_detector(small, settings, tmp_path):
    head, X = small
    X = X.astype(np.float32)
    detector = DICEDetector(head, **settings).fit(X)
    scores = onnx_run(detector.to_torch(), rows_of(X[:8], "float32"), X, tmp_path)
    np.testing.assert_allclose(scores[0], detector.score_samples(X), rtol=1e-5)


def test_a_caller_that_casts_to_less_precision_changes_nothing(small):
    head, X = small
    X = X.astype(np.float32)
    detector = DICEDetector(head).fit(X)
    model = nn.Linear(12, 5)
    attached = attach(model, detector, layer="")
    for form in (detector.to_torch(), lambda rows: attached(rows)[1]):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            scores = form(rows_of(X, "float32"))
        assert scores.dtype == torch.float32
        np.testing.assert_allclose(scores, detector.score_samples(X), rtol=1e-5)


def test_modules_of_single_precision_hold_nothing_double(small):
    # A device such as mps has no double precision, and could not take them.
    head, X = small
    head, X = LinearHead(*(np.float32(each) for each in (head.weight, head.bias))), np.float32(X)
    for detector in (DICEDetector(head).fit(X), DICEDetector(head).partial_fit(X)):
        module = detector.to_torch()
        of_numbers = [each.dtype for each in module.buffers() if each.is_floating_point()]
        assert set(of_numbers) == {torch.float32}
        assert float(module.threshold) == pytest.approx(
            getattr(detector, "offset_", np.nan), rel=0, nan_ok=True
        )


@pytest.mark.parametrize("threshold", [0.1, 1e300, 16.5, -np.inf])
def test_the_threshold_of_a_module_is_that_of_the_detector(small, threshold):
    head, X = small
    detector = DICEDetector(head).fit(X)
    detector.offset_ = threshold
    assert float(detector.to_torch().threshold) == threshold


def test_without_a_threshold_nothing_is_flagged(small):
    head, X = small
    module = DICEDetector(head).partial_fit(X).to_torch()
    assert torch.isnan(module.threshold)
    assert not module.is_ood(rows_of(X, "float64")).any()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_the_detector_would_refuse_is_flagged(small, settings, value):
    head, X = small
    module = DICEDetector(head, **settings).fit(X).to_torch()
    rows = rows_of(X, "float64")
    expected = module.is_ood(rows)
    rows[7, 3] = value
    expected[7] = True
    for form in (module, torch.jit.script(module)):
        assert torch.equal(form.is_ood(rows), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score_func": lambda logits: logits[:, 0]}, "only the named scores"),
        ({"shaping": FunctionTransformer()}, "only those of skdice.shaping"),
    ],
)
def test_code_does_not_become_a_module(small, settings, message):
    head, X = small
    with pytest.raises(ValueError, match=message):
        DICEDetector(head, **settings).fit(X).to_torch()


def test_what_a_search_chose_becomes_a_module(small):
    head, X = small
    y = np.where(np.arange(len(X)) % 4 == 0, -1, 1)
    detector = DICEDetectorCV(head, sparsities=[0.0, 0.5], cv=2).fit(X, y)
    scores = detector.to_torch()(torch.from_numpy(X))
    np.testing.assert_allclose(scores, detector.score_samples(X), rtol=1e-12)
