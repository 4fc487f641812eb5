"""Detectors as ONNX files: the same scores and decisions, without torch and without skdice."""

import subprocess
import sys

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import FunctionTransformer

import skdice
from skdice import (
    ConformalEnsemble,
    DICEDetector,
    DICEDetectorCV,
    FDBDDetector,
    LinearHead,
    ViMDetector,
    make_ensemble,
)
from skdice._engines import geometric
from skdice._engines.reference_scores import combine_log_pvalues
from skdice._export import graph
from skdice._passes.threshold import conformal_pvalues
from skdice._scores import SCORES
from skdice.shaping import ASH, VRA, ReAct, Scale

SHAPINGS = [None, ReAct(), VRA(), ASH(), Scale()]
DICE = [{"score_func": score, "shaping": shaping} for score in SCORES for shaping in SHAPINGS]
# Beside DICE, which is tested with all its scores and shapings.
OTHERS = {
    "fdbd": FDBDDetector,
    "vim": ViMDetector,
    "fisher": make_ensemble,
    "min": lambda head: make_ensemble(head, combination="min"),
}
ALL = {"dice": DICEDetector, **OTHERS}
TOLERANCES = {"float32": 1e-5, "float64": 1e-11}


def open_file(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(path, X):
    """Return the outputs of a file by name."""
    session = open_file(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"features": X}), strict=True))


@pytest.fixture(scope="module")
def rows(fashion):
    """Rows to fit, to calibrate and to score: 10,000 that are neither fitted nor calibrated."""
    rng = np.random.default_rng(0)
    real = np.concatenate([fashion.id_test[2000:], *fashion.ood.values()]).astype(np.float64)
    pairs = rng.integers(len(real), size=(2, 10_000 - len(real)))
    mixed = real[pairs[0]] * 0.7 + real[pairs[1]] * 0.3
    return fashion.id_train, fashion.id_test[:2000], np.concatenate([real, mixed])


def fit(detector, rows, dtype):
    train, heldout, X = (each.astype(dtype) for each in rows)
    return detector.fit(train).calibrate(heldout, method="conformal"), X


def assert_same_outputs(detector, outputs, X):
    """The outputs are those of the detector, up to the rounding of scores."""
    expected = detector.score_samples(X)
    relative = TOLERANCES[X.dtype.name]
    lower, upper = bounds(detector, X, relative)
    assert (outputs["score"] >= lower).all()
    assert (outputs["score"] <= upper).all()
    assert outputs["score"].dtype == outputs["pvalue"].dtype == X.dtype == expected.dtype
    assert outputs["is_ood"].dtype == np.bool_
    predicted = detector.predict(X) == -1
    is_clear = (lower > detector.offset_) | (upper < detector.offset_)
    assert is_clear.mean() > 0.99
    np.testing.assert_array_equal(outputs["is_ood"][is_clear], predicted[is_clear])
    scores = detector.calibration_scores_
    assert (outputs["pvalue"] >= conformal_pvalues(scores, lower)).all()
    rounded_up = np.nextafter(conformal_pvalues(scores, upper).astype(X.dtype), X.dtype.type(2))
    assert (outputs["pvalue"] <= rounded_up).all()


def bounds(detector, X, relative):
    """Return the least and the largest score of each row that rounding explains."""
    if isinstance(detector, ConformalEnsemble):
        # Rounding of a member's score may change its rank among the reference scores.
        member_scores = detector.member_scores(X)
        error = relative * np.abs(member_scores).max(axis=0)
        found = [
            combine_log_pvalues(
                detector._layer.log_pvalues(member_scores + sign * error), detector.combination
            )
            for sign in (-1, 1)
        ]
        slack = relative * np.abs(found[0]).max()
        return found[0] - slack, found[1] + slack
    scores = detector.score_samples(X)
    error = relative * np.abs(scores).max()
    return scores - error, scores + error


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("settings", DICE, ids=str)
def test_dice_gives_the_same_scores_and_decisions(fashion, rows, settings, dtype, tmp_path):
    detector, X = fit(DICEDetector(fashion.head, **settings), rows, dtype)
    detector.to_onnx(tmp_path / "detector.onnx", dtype=dtype)
    assert_same_outputs(detector, run(tmp_path / "detector.onnx", X), X)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", OTHERS)
def test_others_give_the_same_scores_and_decisions(fashion, rows, name, dtype, tmp_path):
    detector, X = fit(OTHERS[name](fashion.head), rows, dtype)
    detector.to_onnx(tmp_path / "detector.onnx", dtype=dtype)
    assert_same_outputs(detector, run(tmp_path / "detector.onnx", X), X)


def test_an_ensemble_of_ensembles(fashion, rows, tmp_path):
    inner = ConformalEnsemble([("a", FDBDDetector(fashion.head)), ("b", ViMDetector(fashion.head))])
    outer = ConformalEnsemble([("inner", inner), ("dice", DICEDetector(fashion.head))])
    detector, X = fit(outer, rows, "float64")
    detector.to_onnx(tmp_path / "detector.onnx", dtype="float64")
    assert_same_outputs(detector, run(tmp_path / "detector.onnx", X), X)


def test_what_a_search_chose_is_exported(small, tmp_path):
    head, X = small
    y = np.where(np.arange(len(X)) % 4 == 0, -1, 1)
    detector = DICEDetectorCV(head, sparsities=[0.0, 0.5], cv=2).fit(X, y)
    detector.to_onnx(tmp_path / "detector.onnx", dtype=np.float64)
    scores = run(tmp_path / "detector.onnx", X)["score"]
    np.testing.assert_allclose(scores, detector.score_samples(X), rtol=1e-12)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_file_is_valid_and_another_runtime_agrees(fashion, rows, name, dtype, tmp_path):
    path = tmp_path / "detector.onnx"
    detector, X = fit(ALL[name](fashion.head), rows, dtype)
    detector.to_onnx(path, dtype=dtype)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    outputs = ReferenceEvaluator(model).run(None, {"features": X[:300]})
    found = dict(zip(["score", "is_ood", "pvalue"], outputs, strict=True))
    assert_same_outputs(detector, found, X[:300])


def test_ties_of_a_row_are_broken_as_in_python(small, tmp_path):
    head, X = small
    X = np.round(X * 2) / 2
    for shaping in (ASH(0.6), Scale(0.6), ASH(0.0)):
        detector = DICEDetector(head, shaping=shaping).fit(X)
        detector.to_onnx(tmp_path / "detector.onnx", dtype="float64")
        scores = run(tmp_path / "detector.onnx", X)["score"]
        np.testing.assert_allclose(scores, detector.score_samples(X), rtol=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_fdbd_without_a_table_of_all_pairs(small, monkeypatch, dtype, tmp_path):
    monkeypatch.setattr(geometric, "MOST_TABLED_CLASSES", 2)
    head, X = small
    weight = head.weight.copy()
    weight[3] = weight[1]  # these two classes have no boundary
    detector = FDBDDetector(LinearHead(weight, head.bias)).fit(X)
    detector.to_onnx(tmp_path / "detector.onnx", dtype=dtype)
    scores = run(tmp_path / "detector.onnx", X.astype(dtype))["score"]
    np.testing.assert_allclose(
        scores, detector.score_samples(X.astype(dtype)), rtol=TOLERANCES[dtype]
    )


def test_one_class_has_no_entropy(small, tmp_path):
    head, X = small
    detector = DICEDetector(head.weight[:1], score_func="gen").fit(X)
    detector.to_onnx(tmp_path / "detector.onnx", dtype="float64")
    assert (run(tmp_path / "detector.onnx", X)["score"] == 0).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n_rows", [0, 1, 3])
def test_any_number_of_rows(fashion, rows, name, n_rows, tmp_path):
    detector, X = fit(ALL[name](fashion.head), rows, "float32")
    detector.to_onnx(tmp_path / "detector.onnx")
    outputs = run(tmp_path / "detector.onnx", X[:n_rows])
    assert {each.shape for each in outputs.values()} == {(n_rows,)}


# Settings in which a value that is not finite could be lost: clipped, zeroed or not a maximum.
LOSSY = {
    **ALL,
    "react": lambda head: DICEDetector(head, shaping=ReAct(threshold=1.0)),
    "vra": lambda head: DICEDetector(head, shaping=VRA(alpha=0.0, beta=1.0)),
    "ash": lambda head: DICEDetector(head, shaping=ASH(), score_func="max_logit"),
    "scale": lambda head: DICEDetector(head, shaping=Scale(), score_func="gen"),
    "max_logit": lambda head: DICEDetector(head, sparsity=0.5, score_func="max_logit"),
    "msp": lambda head: DICEDetector(head, score_func="msp"),
}


@pytest.mark.parametrize("name", LOSSY)
def test_a_row_that_the_detector_would_refuse_is_flagged(small, name, tmp_path):
    head, X = small
    detector = LOSSY[name](head).fit(X[:150]).calibrate(X[:150], method="conformal")
    detector.to_onnx(tmp_path / "detector.onnx")
    bad = X.astype(np.float32)
    expected = run(tmp_path / "detector.onnx", bad)
    largest = np.finfo(np.float32).max
    for row, value in enumerate([np.nan, np.inf, -np.inf]):
        bad[row, 3] = value
    bad[3] = np.resize([largest, -largest], X.shape[1])
    bad[4] = largest
    bad[5] = -largest
    found = run(tmp_path / "detector.onnx", bad)
    # Whether a sum overflows may depend on its order, so some of rows 3 to 5 may be refused here
    # alone.
    flagged = np.isnan(found["score"])
    assert flagged[:3].all()
    assert not flagged[6:].any()
    assert flagged[[row for row in range(6) if is_refused(detector, bad[row : row + 1])]].all()
    assert found["is_ood"][flagged].all()
    np.testing.assert_allclose(found["pvalue"][flagged], 1 / 151, rtol=1e-6)
    for output in found:  # the other rows are as they were
        np.testing.assert_array_equal(found[output][6:], expected[output][6:])


def is_refused(detector, row):
    try:
        with np.errstate(all="ignore"):
            detector.score_samples(row)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("confidence", [None, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ALL)
def test_thresholds_and_pvalues_by_predicted_class(
    fashion, rows, name, dtype, confidence, tmp_path
):
    train, heldout, X = (each.astype(dtype) for each in rows)
    detector = ALL[name](fashion.head).fit(train)

    def classes_of(features):
        return (features @ fashion.head.weight.T + fashion.head.bias).argmax(axis=1)

    # Class 7 is left with too few rows for a threshold of its own.
    kept = (classes_of(heldout) != 7) | (np.arange(len(heldout)) < 50)
    with pytest.warns(UserWarning, match="1 of 10 predicted classes have too few"):
        detector.calibrate(
            heldout[kept], method="conformal", by="prediction", confidence=confidence
        )
    np.testing.assert_array_equal(detector.fallback_classes_, [7])
    detector.to_onnx(tmp_path / "detector.onnx", dtype=dtype)
    found = run(tmp_path / "detector.onnx", X)
    lower, upper = bounds(detector, X, TOLERANCES[dtype])
    predicted = classes_of(X)
    limit = detector.class_offsets_[predicted]
    is_clear = (lower > limit) | (upper < limit)
    assert is_clear.mean() > 0.99
    flagged = detector.predict(X) == -1
    np.testing.assert_array_equal(found["is_ood"][is_clear], flagged[is_clear])
    scores, of_class = detector.calibration_scores_, detector.calibration_classes_
    rounding = 1 + np.finfo(dtype).eps
    for c in range(10):
        reference = scores if c == 7 else scores[of_class == c]
        of_rows = predicted == c
        pvalues = found["pvalue"][of_rows]
        assert (pvalues * rounding >= conformal_pvalues(reference, lower[of_rows])).all()
        assert (pvalues <= rounding * conformal_pvalues(reference, upper[of_rows])).all()


def test_metadata(fashion, rows, tmp_path):
    path = tmp_path / "detector.onnx"
    detector = make_ensemble(fashion.head).fit(rows[0])
    detector.calibrate(rows[1], contamination=0.1, method="conformal", confidence=0.9)
    detector.to_onnx(path)
    model, calibration = onnx.load(path), detector.calibration_
    found = open_file(path).get_modelmeta().custom_metadata_map
    assert float(found["skdice.threshold"]) == detector.offset_
    digest = found.pop("skdice.sha256")
    assert found == {
        "skdice.version": skdice.__version__,
        "skdice.detector": "ConformalEnsemble",
        "skdice.n_classes": "10",
        "skdice.threshold": str(detector.offset_),
        "skdice.contamination": "0.1",
        "skdice.method": "conformal",
        "skdice.confidence": "0.9",
        "skdice.n_calibration": "2000",
        "skdice.calibrated": calibration.date,
        "skdice.calibration_sha256": calibration.digest,
    }
    detector.to_onnx(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    detector.to_onnx(tmp_path / "double.onnx", dtype="float64")
    other = open_file(tmp_path / "double.onnx").get_modelmeta().custom_metadata_map
    assert other["skdice.sha256"] != digest
    assert (model.producer_name, model.producer_version) == ("skdice", skdice.__version__)


@pytest.mark.parametrize("name", ALL)
def test_a_detector_from_a_file_gives_the_same_bytes(fashion, rows, name, tmp_path):
    detector, _ = fit(ALL[name](fashion.head), rows, "float32")
    detector.to_onnx(tmp_path / "fitted.onnx")
    skdice.save(detector, tmp_path / "detector.safetensors")
    skdice.load(tmp_path / "detector.safetensors").to_onnx(tmp_path / "loaded.onnx")
    assert (tmp_path / "loaded.onnx").read_bytes() == (tmp_path / "fitted.onnx").read_bytes()


@pytest.mark.parametrize("name", ALL)
def test_a_detector_that_was_fitted_on_tensors(fashion, rows, name, tmp_path):
    torch = pytest.importorskip("torch")
    train, heldout, X = (torch.tensor(each.astype(np.float32)) for each in rows)
    detector = ALL[name](fashion.head).fit(train).calibrate(heldout, method="conformal")
    detector.to_onnx(tmp_path / "detector.onnx")
    found = run(tmp_path / "detector.onnx", X.numpy())["is_ood"]
    assert (found == (detector.predict(X).numpy() == -1)).mean() > 0.999


def test_rows_that_are_logits(fashion, rows, tmp_path):
    logits = [each.astype(np.float64) @ fashion.head.weight.T + fashion.head.bias for each in rows]
    detector = DICEDetector("identity", sparsity=0).fit(logits[0])
    detector.calibrate(logits[1], method="conformal").to_onnx(
        tmp_path / "detector.onnx", dtype="float64"
    )
    assert_same_outputs(detector, run(tmp_path / "detector.onnx", logits[2]), logits[2])


def test_outputs_are_those_that_the_detector_has(small, tmp_path):
    head, X = small
    path = tmp_path / "detector.onnx"
    detector = DICEDetector(head).partial_fit(X)
    detector.to_onnx(path)
    assert [each.name for each in open_file(path).get_outputs()] == ["score"]
    metadata = open_file(path).get_modelmeta().custom_metadata_map
    assert "skdice.threshold" not in metadata
    detector.calibrate(X, method="quantile").to_onnx(path)
    assert [each.name for each in open_file(path).get_outputs()] == ["score", "is_ood"]
    detector.calibrate(X, method="conformal").to_onnx(path)
    assert [each.name for each in open_file(path).get_outputs()] == ["score", "is_ood", "pvalue"]


def test_members_share_the_head_in_the_file(fashion, rows, tmp_path):
    make_ensemble(fashion.head).fit(rows[0]).to_onnx(tmp_path / "detector.onnx")
    model = onnx.load(tmp_path / "detector.onnx")
    heads = [each for each in model.graph.initializer if list(each.dims) == [10, 128]]
    assert len(heads) == 2  # of the energy, fDBD and ViM one, and the masked one of DICE
    products = [node for node in model.graph.node if node.op_type == "Gemm"]
    # The energy and DICE see clipped features, fDBD and ViM the product with the same features.
    assert len(products) == 4


def test_no_torch_is_needed(tmp_path):
    program = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnxscript"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import numpy as np, onnxruntime
from skdice import make_ensemble
from skdice.datasets import load_fashion_mnist_ood
data = load_fashion_mnist_ood()
X = data.id_test.astype(np.float32)
detector = make_ensemble(data.head).fit(data.id_train).calibrate(X[:2000], method="conformal")
detector.to_onnx(sys.argv[1])
session = onnxruntime.InferenceSession(sys.argv[1])
score, is_ood, pvalue = session.run(None, {"features": X[2000:]})
assert np.abs(score - detector.score_samples(X[2000:])).max() < 0.01
assert (is_ood == (detector.predict(X[2000:]) == -1)).all()
"""
    path = str(tmp_path / "detector.onnx")
    subprocess.run([sys.executable, "-c", program, path], check=True)


@pytest.mark.parametrize("dtype", ["float16", "int64", "floaty", None, 32, np.float16])
def test_a_dtype_that_cannot_be_scored_in_is_refused(small, dtype, tmp_path):
    head, X = small
    with pytest.raises(ValueError, match="expected 'float32' or 'float64'"):
        DICEDetector(head).fit(X).to_onnx(tmp_path / "detector.onnx", dtype=dtype)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score_func": lambda logits: logits[:, 0]}, "only the named scores can be exported"),
        ({"shaping": FunctionTransformer()}, "only those of skdice.shaping can be exported"),
    ],
)
def test_code_of_the_user_is_refused(small, settings, message, tmp_path):
    head, X = small
    detector = DICEDetector(head, **settings).fit(X)
    with pytest.raises(ValueError, match=message):
        detector.to_onnx(tmp_path / "detector.onnx")
    members = [("own", DICEDetector(head, **settings)), ("vim", ViMDetector(head))]
    with pytest.raises(ValueError, match=message):
        ConformalEnsemble(members).fit(X).to_onnx(tmp_path / "detector.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_member_of_another_library_is_refused(small, tmp_path):
    head, X = small
    members = [("dice", DICEDetector(head)), ("forest", IsolationForest(n_estimators=5))]
    with pytest.raises(ValueError, match=r"'forest' is IsolationForest.*leave this member out"):
        ConformalEnsemble(members).fit(X).to_onnx(tmp_path / "detector.onnx")


def test_an_unfitted_detector_is_refused(small, tmp_path):
    head, _ = small
    for detector in (DICEDetector(head), make_ensemble(head)):
        with pytest.raises(NotFittedError):
            detector.to_onnx(tmp_path / "detector.onnx")


def test_arrays_that_no_file_can_hold_are_refused(small, monkeypatch, tmp_path):
    head, X = small
    monkeypatch.setattr(graph, "MOST_BYTES", 300)  # the weight takes 240 in float32
    detector = DICEDetector(head).partial_fit(X)
    with pytest.raises(ValueError, match=r"2 GiB: give dtype='float32'"):
        detector.to_onnx(tmp_path / "detector.onnx", dtype="float64")
    monkeypatch.setattr(graph, "MOST_BYTES", 200)
    with pytest.raises(ValueError, match=r"2 GiB$"):
        detector.to_onnx(tmp_path / "detector.onnx")


def test_a_path_that_cannot_be_written_is_refused(small, tmp_path):
    head, X = small
    detector = DICEDetector(head).fit(X)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        detector.to_onnx(tmp_path / "missing" / "detector.onnx")
    with pytest.raises(ValueError, match="it is a folder"):
        detector.to_onnx(tmp_path)
    with pytest.raises(ValueError, match="the path is empty"):
        detector.to_onnx("")


def test_a_failed_export_leaves_the_old_file(small, monkeypatch, tmp_path):
    head, X = small
    path = tmp_path / "detector.onnx"
    detector = DICEDetector(head).fit(X)
    detector.to_onnx(str(path))
    before = path.read_bytes()

    def fail(file, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", fail)
    with pytest.raises(OSError, match=r"No space left.*detector\.onnx"):
        detector.to_onnx(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
