"""Pipelines that end in a detector, converted by skl2onnx itself."""

import sys

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("skl2onnx")

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import skl2onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import IsolationForest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skdice
from skdice import (
    ConformalEnsemble,
    DICEDetector,
    DICEDetectorCV,
    FDBDDetector,
    ViMDetector,
    make_ensemble,
)
from skdice.shaping import ASH, VRA

DETECTORS = {
    "dice": DICEDetector,
    "gen": lambda head: DICEDetector(head, score_func="gen", shaping=ASH()),
    "vra": lambda head: DICEDetector(head, score_func="msp", shaping=VRA()),
    "search": lambda head: DICEDetectorCV(head, sparsities=[0.0, 0.5], cv=2),
    "fdbd": FDBDDetector,
    "vim": ViMDetector,
    "ensemble": make_ensemble,
}


@pytest.fixture(autouse=True)
def registered():
    skdice.register_skl2onnx()


@pytest.fixture(scope="module")
def scaled(fashion):
    """Rows to fit, to calibrate and to score, float32."""
    rows = [fashion.id_train, fashion.id_test[:2000], fashion.id_test[2000:]]
    return [each.astype(np.float32) for each in rows]


def run(model, inputs):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def fit_pipeline(detector, rows):
    train, heldout, _ = rows
    labels = None
    if isinstance(detector, DICEDetectorCV):
        labels = np.where(np.arange(len(train)) % 5 == 0, -1, 1)
    pipeline = make_pipeline(StandardScaler(), detector).fit(train, labels)
    pipeline[-1].calibrate(pipeline[:-1].transform(heldout), method="conformal")
    return pipeline


def assert_same(outputs, pipeline, X, rtol):
    expected = pipeline.score_samples(X)
    # A rank of an ensemble's member may differ by one, because scores are rounded differently.
    atol = 0.01 if isinstance(pipeline[-1], ConformalEnsemble) else rtol * np.abs(expected).max()
    np.testing.assert_allclose(outputs["score"], expected, rtol=rtol, atol=atol)
    is_clear = np.abs(pipeline.decision_function(X)) > atol
    assert is_clear.mean() > 0.9
    predicted = pipeline.predict(X) == -1
    np.testing.assert_array_equal(outputs["is_ood"][is_clear], predicted[is_clear])
    pvalues = pipeline[-1].pvalues(pipeline[:-1].transform(X))
    np.testing.assert_allclose(outputs["pvalue"], pvalues, atol=0.01)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", DETECTORS)
def test_a_pipeline_gives_the_same_scores_and_decisions(fashion, scaled, name, dtype):
    rows = [each.astype(dtype) for each in scaled]
    pipeline = fit_pipeline(DETECTORS[name](fashion.head), rows)
    model = skl2onnx.to_onnx(pipeline, rows[2][:1])
    onnx.checker.check_model(model, full_check=True)
    outputs = run(model, {"X": rows[2]})
    assert list(outputs) == ["score", "is_ood", "pvalue"]
    assert outputs["score"].dtype == outputs["pvalue"].dtype == dtype
    assert_same(outputs, pipeline, rows[2], 1e-4 if dtype == "float32" else 1e-9)


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_every_opset(fashion, scaled, opset):
    pipeline = fit_pipeline(make_ensemble(fashion.head), scaled)
    model = skl2onnx.to_onnx(pipeline, scaled[2][:1], target_opset=opset)
    onnx.checker.check_model(model, full_check=True)
    versions = {each.domain: each.version for each in model.opset_import}
    assert versions[""] == opset
    assert_same(run(model, {"X": scaled[2]}), pipeline, scaled[2], 1e-4)


def test_an_opset_that_is_too_old_is_refused(fashion, scaled):
    detector = DICEDetector(fashion.head).fit(scaled[0])
    with pytest.raises(ValueError, match="target_opset is 12, but DICEDetector needs at least 13"):
        skl2onnx.to_onnx(detector, scaled[0][:1], target_opset=12)


def test_a_detector_without_a_pipeline_agrees_with_its_own_file(fashion, scaled, tmp_path):
    detector = make_ensemble(fashion.head).fit(scaled[0])
    detector.calibrate(scaled[1], method="conformal").to_onnx(tmp_path / "detector.onnx")
    own = run(onnx.load(tmp_path / "detector.onnx"), {"features": scaled[2]})
    converted = run(skl2onnx.to_onnx(detector, scaled[2][:1]), {"X": scaled[2]})
    for output in own:
        np.testing.assert_array_equal(converted[output], own[output])


def test_the_best_pipeline_of_a_search_is_converted(fashion, scaled):
    search = GridSearchCV(
        make_pipeline(StandardScaler(), DICEDetector(fashion.head)),
        {"dicedetector__sparsity": [0.0, 0.5]},
        cv=[(np.arange(100), np.arange(100, 200))],
        scoring=lambda pipeline, X, y=None: pipeline.score_samples(X).mean(),
    ).fit(scaled[0])
    outputs = run(skl2onnx.to_onnx(search, scaled[2][:1]), {"X": scaled[2]})
    assert list(outputs) == ["score", "is_ood"]
    np.testing.assert_allclose(
        outputs["score"], search.best_estimator_.score_samples(scaled[2]), rtol=1e-4
    )


def test_the_columns_of_a_data_frame_are_separate_inputs(small):
    head, X = small
    frame = pd.DataFrame(X.astype(np.float32), columns=[f"unit{n}" for n in range(X.shape[1])])
    detector = DICEDetector(head).fit(frame)
    kinds = [(name, FloatTensorType([None, 1])) for name in frame.columns]
    model = skl2onnx.to_onnx(detector, initial_types=kinds)
    columns = {name: frame[[name]].to_numpy() for name in frame.columns}
    np.testing.assert_allclose(
        run(model, columns)["score"], detector.score_samples(frame), rtol=1e-5, atol=1e-5
    )


def test_integers_are_scored_as_floats(small):
    head, X = small
    X = (X * 3).astype(np.int64)
    detector = DICEDetector(head).fit(X)
    outputs = run(skl2onnx.to_onnx(detector, X[:1]), {"X": X})
    assert outputs["score"].dtype == np.float32
    np.testing.assert_allclose(outputs["score"], detector.score_samples(X), rtol=1e-5, atol=1e-5)


def test_a_bad_row_is_flagged(fashion, scaled):
    pipeline = fit_pipeline(ViMDetector(fashion.head), scaled)
    X = scaled[2][:5].copy()
    X[1, 3], X[2, 0] = np.nan, np.inf
    outputs = run(skl2onnx.to_onnx(pipeline, X), {"X": X})
    assert outputs["is_ood"][[1, 2]].all()
    assert np.isnan(outputs["score"]).tolist() == [False, True, True, False, False]


def test_what_cannot_be_exported_is_refused(small):
    head, X = small
    members = [("dice", DICEDetector(head)), ("forest", IsolationForest(n_estimators=5))]
    detector = ConformalEnsemble(members).fit(X)
    with pytest.raises(ValueError, match="'forest' is IsolationForest"):
        skl2onnx.to_onnx(detector, X[:1])


def test_a_missing_skl2onnx_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'skdice\[onnx\]'"):
        skdice.register_skl2onnx()
