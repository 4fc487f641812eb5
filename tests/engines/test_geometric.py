"""fDBD and ViM: all sources and engines agree, and the torch modules are the detectors."""

import pickle

import numpy as np
import pytest

import skdice
from skdice import DICEDetector, FDBDDetector, LinearHead, ViMDetector
from skdice._engines import geometric
from skdice.extraction import attach
from skdice.io import open_features

DETECTORS = [FDBDDetector, ViMDetector]
by_detector = pytest.mark.parametrize("Detector", DETECTORS)


def same_scores(values, expected, dtype):
    rtol = 1e-5 if np.dtype(dtype).itemsize <= 4 else 1e-11
    values, expected = np.asarray(values), np.asarray(expected)
    np.testing.assert_allclose(values, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


@by_detector
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_blocks_threads_and_files_change_nothing(small, Detector, dtype, tmp_path):
    head, X = small
    X = X.astype(dtype)
    np.save(tmp_path / "rows.npy", X)
    whole = Detector(head).fit(X)
    for rows, settings in (
        (X, {"batch_size": 7}),
        (X, {"batch_size": 7, "n_jobs": 2}),
        (open_features(tmp_path / "rows.npy"), {"batch_size": 64}),
    ):
        detector = Detector(head, **settings).fit(rows)
        assert detector.offset_ == pytest.approx(
            whole.offset_, rel=1e-5 if dtype == "f4" else 1e-11
        )
        same_scores(detector.score_samples(rows), whole.score_samples(X), dtype)
        assert (detector.decision_function(rows) < 0).sum() == 10


@by_detector
def test_integers_are_scored_in_double_precision(small, Detector):
    head, X = small
    X = (X * 10).astype(int)
    scores = Detector(head).fit(X).score_samples(X)
    assert scores.dtype == np.float64
    same_scores(scores, Detector(head).fit(X.astype(float)).score_samples(X.astype(float)), "f8")


@by_detector
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tensors_are_scored_by_torch(small, Detector, dtype):
    torch = pytest.importorskip("torch")
    head, X = small
    X = X.astype(dtype)
    expected = Detector(head).fit(X)
    detector = Detector(head).fit(torch.from_numpy(X))
    scores = detector.score_samples(torch.from_numpy(X))
    assert scores.dtype == getattr(torch, dtype)
    same_scores(scores, expected.score_samples(X), dtype)
    assert detector.offset_ == pytest.approx(expected.offset_, rel=1e-5)
    same_scores(Detector(head, device="cpu").fit(X).score_samples(X), scores, dtype)


@by_detector
@pytest.mark.parametrize("unknown", [False, True])
def test_dask_gives_what_an_array_gives(small, Detector, unknown):
    da = pytest.importorskip("dask.array")
    head, X = small
    chunked = da.from_array(X, chunks=(60, 12))
    if unknown:
        chunked = chunked[da.from_array(np.ones(len(X), bool), chunks=60)]
    expected = Detector(head).fit(X)
    detector = Detector(head).fit(chunked)
    assert detector.offset_ == pytest.approx(expected.offset_, rel=1e-11)
    same_scores(detector.score_samples(chunked).compute(), expected.score_samples(X), "f8")
    if not unknown:
        y, weights = np.where(np.arange(len(X)) % 3, 1, -1), np.arange(len(X)) % 5
        expected = Detector(head).fit(X, y, sample_weight=weights)
        detector = Detector(head).fit(chunked, y, sample_weight=weights)
        assert detector.offset_ == pytest.approx(expected.offset_, rel=1e-10)


@by_detector
def test_another_array_library(small, Detector):
    strict = pytest.importorskip("array_api_strict")
    from sklearn import config_context

    head, X = small
    expected = Detector(head).fit(X)
    with config_context(array_api_dispatch=True):
        rows = strict.asarray(X)
        detector = Detector(head).fit(rows)
        scores = detector.score_samples(rows)
        assert type(scores).__module__.startswith("array_api_strict")
        assert type(detector.predict(rows)).__module__.startswith("array_api_strict")
    same_scores(np.from_dlpack(scores), expected.score_samples(X), "f8")
    loaded = pickle.loads(pickle.dumps(detector))
    same_scores(loaded.score_samples(X), expected.score_samples(X), "f8")


@by_detector
def test_pickles_hold_no_layouts(small, Detector):
    head, X = small
    detector = Detector(head).fit(X)
    before = len(pickle.dumps(detector))
    detector.score_samples(X)
    assert len(pickle.dumps(detector)) == before
    loaded = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(loaded.score_samples(X), detector.score_samples(X))
    assert loaded._layer.weight is loaded.head_.weight


@by_detector
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("head", ["arrays", "identity"])
def test_every_bit_survives_a_file(small, Detector, dtype, head, tmp_path):
    arrays, X = small
    X = X.astype(dtype)
    head = LinearHead(arrays.weight.astype(dtype), arrays.bias) if head == "arrays" else head
    saved = Detector(head).fit(X[:100]).calibrate(X[100:], 0.1, method="conformal")
    skdice.save(saved, tmp_path / "detector.safetensors")
    loaded = skdice.load(tmp_path / "detector.safetensors")
    assert type(loaded) is Detector
    np.testing.assert_array_equal(loaded.score_samples(X), saved.score_samples(X))
    np.testing.assert_array_equal(loaded.pvalues(X), saved.pvalues(X))
    assert (loaded.offset_, loaded.calibration_) == (saved.offset_, saved.calibration_)
    assert loaded.n_samples_seen_ == 100
    if Detector is FDBDDetector:
        assert loaded.partial_fit(X[100:]).n_samples_seen_ == 200
    else:
        with pytest.raises(ValueError, match="loaded from a file, which has no second moments"):
            loaded.partial_fit(X)


@by_detector
@pytest.mark.parametrize("most_tabled", [4096, 0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit.script")
def test_module_gives_the_scores_of_the_detector(small, Detector, dtype, most_tabled, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(geometric, "MOST_TABLED_CLASSES", most_tabled)
    head, X = small
    X = X.astype(dtype)
    detector = Detector(head).fit(X)
    module = detector.to_torch()
    expected = detector.score_samples(X)
    clear = np.abs(expected - detector.offset_) > 1e-4
    rows = torch.from_numpy(X)
    for form in (module, torch.jit.script(module)):
        scores = form(rows).numpy()
        assert scores.dtype == dtype
        same_scores(scores, expected, dtype)
        flagged = form.is_ood(rows).numpy()
        np.testing.assert_array_equal(flagged[clear], (detector.predict(X) == -1)[clear])
    assert module.is_ood(torch.full((1, 12), torch.nan)).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same_scores(module(rows), expected, dtype)


@by_detector
def test_modules_of_single_precision_hold_nothing_double(small, Detector):
    torch = pytest.importorskip("torch")
    head, X = small
    head = LinearHead(head.weight.astype("f4"), head.bias.astype("f4"))
    module = Detector(head).fit(X.astype("f4")).to_torch()
    floats = [each for each in module.buffers() if each.is_floating_point()]
    assert {each.dtype for each in floats} == {torch.float32}


@by_detector
@pytest.mark.parametrize("most_tabled", [4096, 0])
@pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning", "ignore::DeprecationWarning")
def test_onnx_gives_the_scores_of_the_detector(small, Detector, most_tabled, monkeypatch, tmp_path):
    torch = pytest.importorskip("torch")
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(geometric, "MOST_TABLED_CLASSES", most_tabled)
    head, X = small
    X = X.astype("f4")
    detector = Detector(head).fit(X)
    torch.onnx.export(
        detector.to_torch(),
        (torch.from_numpy(X[:8]),),
        tmp_path / "module.onnx",
        input_names=["x"],
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("n", min=2)},),
    )
    session = onnxruntime.InferenceSession(tmp_path / "module.onnx")
    same_scores(session.run(None, {"x": X})[0], detector.score_samples(X), "f4")


@by_detector
def test_attached_to_a_model(small, Detector):
    torch = pytest.importorskip("torch")
    head, X = small
    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(12, 5)).double()
    model[1].weight.data = torch.tensor(head.weight)
    model[1].bias.data = torch.tensor(head.bias)
    detector = Detector(head).fit(X)
    logits, scores = attach(model, detector)(torch.from_numpy(X))
    same_scores(scores.detach(), detector.score_samples(X), "f8")
    expected = DICEDetector(head, sparsity=0).fit(X).logits(X)
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-10)


@by_detector
def test_a_bad_feature_is_named(small, Detector):
    head, X = small
    bad = X.copy()
    bad[150, 3] = np.nan
    for rows in (bad, np.float32(bad)):
        with pytest.raises(ValueError, match="NaN in row 150, column 3"):
            Detector(head, batch_size=20).fit(rows)
        with pytest.raises(ValueError, match="NaN in row 150, column 3"):
            Detector(head).fit(X).score_samples(rows)
    detector = Detector(head).fit(X)
    before = detector.offset_
    with pytest.raises(ValueError, match="NaN"):
        detector.fit(bad)
    assert detector.offset_ == before
