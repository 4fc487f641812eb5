"""The torch engine, on the CPU and on a GPU where there is one."""

import gc
import pickle

import pytest

pytest.importorskip("torch")

import numpy as np
import torch

from skdice import DICEDetector
from skdice._engines import torch as torch_engine
from skdice._engines.layer import MaskedLayer
from skdice._engines.torch import TorchEngine
from skdice.io import open_features, save_features
from skdice.shaping import ReAct

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
on_gpu = pytest.mark.parametrize("device", [pytest.param("cuda", marks=gpu)])


def layer_of(head, score="energy"):
    return MaskedLayer(head.weight, head.bias, None, score)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
@pytest.mark.parametrize("score", ["energy", None])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_block_of_the_host_comes_back_to_the_host(wide, device, dtype, score):
    head, X = wide
    block = torch.from_numpy(X[:700]).to(dtype)
    precision = np.dtype(np.float64 if dtype == torch.float64 else np.float32)
    engine = TorchEngine(layer_of(head, score), torch.device(device), precision)
    logits = block.double().numpy() @ head.weight.T.astype(float)
    expected = logits if score is None else np.logaddexp.reduce(logits, axis=1)
    for given in [block] if dtype == torch.bfloat16 else [block, block.numpy()]:
        values = engine.compute_host(given)
        assert type(values) is np.ndarray
        assert values.dtype == precision
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)


class LittleMemory(TorchEngine):
    """A device whose memory is too small for blocks of more than `limit` rows."""

    def __init__(self, limit, *arguments):
        super().__init__(*arguments)
        self.limit, self.sizes = limit, []

    def _compute(self, block):
        if len(block) > self.limit:
            raise torch.OutOfMemoryError("out of memory")
        self.sizes.append(len(block))
        return super()._compute(block)


@pytest.mark.parametrize("limit", [1, 3, 64])
def test_too_little_memory_halves_the_block_and_goes_on(wide, limit):
    head, X = wide
    arguments = layer_of(head), torch.device("cpu"), np.dtype(np.float32)
    engine, expected = LittleMemory(limit, *arguments), TorchEngine(*arguments)
    for rows in (slice(0, 700), slice(700, 1000)):
        np.testing.assert_allclose(
            engine.compute_host(X[rows]), expected.compute_host(X[rows]), rtol=1e-6
        )
    # The size that fits is kept for the next block.
    assert engine.sizes[0] == max(engine.sizes) > limit / 2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), RuntimeError("shapes")])
def test_an_error_that_halving_does_not_mend_is_raised(wide, error):
    class Broken(TorchEngine):
        def _compute(self, block):
            raise error

    engine = Broken(layer_of(wide[0]), torch.device("cpu"), np.dtype(np.float32))
    with pytest.raises(type(error), match=str(error)):
        engine.compute_host(wide[1][:8])


@on_gpu
@pytest.mark.parametrize("shaping", [None, ReAct()], ids=repr)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "int32"])
def test_every_source_on_a_gpu(wide, device, dtype, shaping, tmp_path):
    head, X = wide
    X = (X * 100).astype(dtype) if dtype == "int32" else X.astype(dtype)
    expected = DICEDetector(head, shaping=shaping).fit(X)
    detector = DICEDetector(head, shaping=shaping, device=device, batch_size=333).fit(X)
    rtol = 1e-12 if expected.score_samples(X[:1]).dtype == np.float64 else 1e-5
    np.testing.assert_allclose(detector.offset_, expected.offset_, rtol=rtol)
    np.save(tmp_path / "X.npy", X)
    sources = [X, np.load(tmp_path / "X.npy", mmap_mode="r"), open_features(tmp_path / "X.npy")]
    if dtype == "float32":
        save_features(tmp_path / "X.h5", X)
        sources += [open_features(tmp_path / "X.h5"), torch.from_numpy(X)]
        sources.append(torch.from_numpy(X).pin_memory())
    for source in sources:
        scores = detector.score_samples(source)
        assert type(scores) is (torch.Tensor if torch.is_tensor(source) else np.ndarray)
        np.testing.assert_allclose(scores, expected.score_samples(X), rtol=rtol)
        logits = detector.logits(source)
        np.testing.assert_allclose(logits, expected.logits(X), rtol=10 * rtol, atol=10 * rtol)


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_tensor_on_a_gpu_stays_there(wide, device, dtype):
    head, X = wide
    tensor = torch.from_numpy(X).to(dtype)
    expected = DICEDetector(head).fit(tensor)
    detector = DICEDetector(head).fit(tensor.to(device))
    np.testing.assert_allclose(detector.mean_activation_, expected.mean_activation_, rtol=1e-12)
    for method in ("score_samples", "decision_function", "logits", "predict"):
        result = getattr(detector, method)(tensor.to(device))
        assert result.device.type == device
        np.testing.assert_allclose(
            result.cpu(), getattr(expected, method)(tensor), rtol=1e-5, atol=1e-5
        )


@on_gpu
def test_a_bad_value_on_a_gpu_is_named(wide, device):
    head, X = wide
    detector = DICEDetector(head, device=device, shaping=ReAct(), batch_size=100).fit(X)
    bad = X.copy()
    bad[4321, 5] = np.inf
    for source in (bad, torch.from_numpy(bad).to(device)):
        for method in (detector.score_samples, detector.logits, detector.fit):
            with pytest.raises(ValueError, match=r"infinity \(inf\) in row 4321, column 5"):
                method(source)


@on_gpu
def test_memory_of_a_gpu_is_given_back_and_too_little_is_enough(wide, device, monkeypatch):
    head, X = wide
    detector = DICEDetector(head, device=device).fit(X)
    expected = detector.score_samples(X)
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    np.testing.assert_array_equal(detector.score_samples(X), expected)
    assert torch.cuda.memory_reserved() <= before
    with pytest.raises(ValueError, match="NaN"):
        detector.score_samples(np.full_like(X, np.nan))
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before
    monkeypatch.setattr(torch_engine, "STAGED_BYTES", 1 << 30)
    total = torch.cuda.get_device_properties(0).total_memory
    large = np.tile(X, (400, 1))  # 512 MB
    torch.cuda.set_per_process_memory_fraction(200e6 / total)
    try:
        np.testing.assert_allclose(
            detector.score_samples(large).reshape(400, -1), np.tile(expected, (400, 1)), rtol=1e-5
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
def test_modes_of_the_caller_change_nothing(wide, device):
    head, X = wide
    detector = DICEDetector(head, batch_size=700).fit(X)
    streamed = DICEDetector(head, batch_size=700, device=device).fit(X)
    expected = detector.score_samples(X)
    tensor = torch.from_numpy(X).to(device)
    with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16):
        for found in (detector.score_samples(tensor).cpu(), streamed.score_samples(X)):
            np.testing.assert_allclose(found, expected, rtol=1e-5)


@on_gpu
def test_tf32_is_left_as_the_user_has_it(wide, device):
    head, X = wide
    before = torch.backends.cuda.matmul.allow_tf32
    DICEDetector(head, device=device).fit(X).score_samples(X)
    assert torch.backends.cuda.matmul.allow_tf32 == before


@on_gpu
def test_fitted_on_a_gpu_and_used_without_one(wide, device):
    from sklearn import config_context

    head, X = wide
    expected = DICEDetector(head).fit(X)
    with config_context(array_api_dispatch=True):
        detector = DICEDetector(head).fit(torch.from_numpy(X).to(device))
    assert detector.coef_.device.type == device
    copy = pickle.loads(pickle.dumps(detector))
    assert type(copy.coef_) is np.ndarray
    np.testing.assert_allclose(copy.score_samples(X), expected.score_samples(X), rtol=1e-5)
