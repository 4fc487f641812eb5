"""Reports on detectors."""

import json
import sys

import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skdice import (
    DICEDetector,
    DICEDetectorCV,
    FDBDDetector,
    LinearHead,
    ViMDetector,
    make_ensemble,
    metrics,
)
from skdice.io import open_features
from skdice.metrics import compare, evaluate, fpr_at_tpr
from skdice.metrics._rates import labelled


@pytest.fixture(scope="module")
def problem():
    X, y = make_blobs(1200, n_features=8, centers=4, random_state=0)
    classifier = LogisticRegression(max_iter=1000).fit(X[:600], y[:600])
    head = LinearHead.from_estimator(classifier)
    rng = np.random.default_rng(0)
    ood = {
        "uniform": rng.uniform(-15, 15, (300, 8)),
        "near": X[600:700] + rng.normal(0, 4, (100, 8)),
    }
    return head, X[:600], X[600:], y[600:], ood, classifier


def test_a_report_holds_what_each_metric_gives(problem):
    head, train, test, labels, ood, classifier = problem
    detector = DICEDetector(head, sparsity=0.4).fit(train)
    (result,) = evaluate(detector, test, ood, y_id=labels).results.values()
    inside = detector.score_samples(test)
    for name, rows in ood.items():
        y, s = labelled(inside, detector.score_samples(rows))
        found = result.sets[name]
        assert found.fpr95 == fpr_at_tpr(y, s)
        for metric in ("auroc", "aupr_in", "aupr_out", "detection_error"):
            assert getattr(found, metric) == getattr(metrics, metric)(y, s)
        assert found.flagged == np.mean(detector.predict(rows) == -1)
    assert result.id_flagged == np.mean(detector.predict(test) == -1)
    assert result.accuracy == classifier.score(test, labels)
    assert result.masked_accuracy == np.mean(detector.logits(test).argmax(axis=1) == labels)
    assert result.mean.auroc == np.mean([each.auroc for each in result.sets.values()])


def test_a_report_of_files(problem, tmp_path):
    head, train, test, labels, ood, _ = problem
    detector = DICEDetector(head, batch_size=50).fit(train)
    np.save(tmp_path / "id.npy", test)
    files = {}
    for name, rows in ood.items():
        np.save(tmp_path / f"{name}.npy", rows)
        files[name] = open_features(tmp_path / f"{name}.npy")
    report = evaluate(detector, open_features(tmp_path / "id.npy"), files, y_id=labels)
    assert report.to_dict() == evaluate(detector, test, ood, y_id=labels).to_dict()


def test_a_report_on_a_detector_that_chose_its_sparsity(problem):
    head, train, test, labels, ood, _ = problem
    chosen = DICEDetectorCV(head, sparsities=[0.4], cv=2).fit(train, outliers=ood["near"])
    fixed = DICEDetector(head, sparsity=0.4).fit(train)
    (found,), (expected,) = (
        evaluate(each, test, ood, y_id=labels).results.values() for each in (chosen, fixed)
    )
    assert found == expected
    assert found.masked_accuracy is not None


def test_comparison_of_detectors_in_every_form(problem):
    head, train, test, _, ood, _ = problem
    detectors = {
        "energy": DICEDetector(head, sparsity=0).fit(train),
        "a|b <pipe>": make_pipeline(FunctionTransformer(), DICEDetector(head)).fit(train),
        "forest": IsolationForest(random_state=0).fit(train),
        "no threshold": DICEDetector(head).partial_fit(train),
    }
    report = compare(detectors, test, ood)
    told = json.loads(report.to_json(indent=1))
    assert list(told) == list(detectors)
    assert told["forest"]["sets"]["uniform"]["auroc"] > 0.9
    assert told["no threshold"]["id_flagged"] is None
    assert told["no threshold"]["mean"]["flagged"] is None
    assert told["a|b <pipe>"]["id_flagged"] is not None
    frame = report.to_frame()
    assert frame.shape == (4 * 3, 6)
    assert frame.loc[("energy", "near"), "fpr95"] == told["energy"]["sets"]["near"]["fpr95"]
    assert frame.loc[("energy", "mean"), "auroc"] == told["energy"]["mean"]["auroc"]
    *caption, empty, _ = repr(report).splitlines()[:4]
    assert caption[0].startswith("FPR95 (paper's rule) / AUROC in percent; in-distribution is")
    assert empty == ""
    lines = repr(report).splitlines()[3:]
    assert [line.split()[0] for line in lines[1:]] == ["energy", "a|b", "forest", "no"]
    cell = f"{100 * told['energy']['sets']['near']['auroc']:.1f}"
    assert cell in lines[1]
    title, _, *markdown = report.to_markdown().splitlines()
    assert title.startswith("FPR95 (paper's rule) / AUROC")
    assert markdown[0].endswith("| mean | ID flagged | OOD flagged |")
    assert markdown[1] == "| --- | ---: | ---: | ---: | ---: | ---: |"
    assert "a\\|b <pipe>" in markdown[3]
    assert "a|b &lt;pipe&gt;" in report._repr_html_()
    assert "in-distribution is positive" in report._repr_html_()


def test_a_report_by_the_rule_of_roc_curve(problem):
    head, train, test, _, ood, _ = problem
    detector = DICEDetector(head, sparsity=0.4).fit(train)
    report = evaluate(detector, test, ood, rule="roc_curve")
    y, s = labelled(detector.score_samples(test), detector.score_samples(ood["near"]))
    found = report.results["DICEDetector"].sets["near"].fpr95
    assert found == fpr_at_tpr(y, s, rule="roc_curve")
    shown = (repr(report), report.to_markdown(), report._repr_html_().replace("&#x27;", "'"))
    assert all("FPR95 (roc_curve's rule)" in each for each in shown)
    assert report.to_dict()["DICEDetector"]["fpr95_rule"] == "roc_curve"
    assert report.to_frame().attrs["fpr95_rule"] == "roc_curve"
    with pytest.raises(ValueError, match="rule is 'authors'"):
        evaluate(detector, test, ood, rule="authors")


def test_a_frame_without_pandas_says_how_to_get_it(problem, monkeypatch):
    head, train, test, _, ood, _ = problem
    report = evaluate(DICEDetector(head).fit(train), test, ood)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        report.to_frame()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ood": {}}, "ood is {}, expected a mapping"),
        ({"ood": {"mean": 1}}, "named 'mean'"),
        ({"y_id": [0]}, "y_id has 1 labels, but X_id has 600 rows"),
        ({"y_id": np.full(600, 4)}, r"y_id\[0\] is 4, expected a place from 0 to 3"),
        ({"y_id": np.full(600, "a")}, "expected places of classes"),
        ({"y_id": np.full(600, 0.5)}, "expected places of classes"),
    ],
)
def test_a_report_on_nothing(problem, change, reason):
    head, train, test, _, ood, _ = problem
    arguments = {"ood": ood, **change}
    with pytest.raises(ValueError, match=reason):
        evaluate(DICEDetector(head).fit(train), test, **arguments)


def test_labels_for_a_detector_without_classes(problem):
    _, train, test, labels, ood, _ = problem
    with pytest.raises(ValueError, match="this IsolationForest has no head"):
        evaluate(IsolationForest(random_state=0).fit(train), test, ood, y_id=labels)


@pytest.mark.parametrize("make", [FDBDDetector, ViMDetector, make_ensemble])
def test_the_accuracy_is_that_of_the_full_head(problem, make):
    head, train, test, labels, ood, _ = problem
    detector = make(head).fit(train)
    (result,) = evaluate(detector, test, ood, y_id=labels).results.values()
    predicted = (test @ head.weight.T + head.bias).argmax(axis=1)
    assert result.accuracy == np.mean(predicted == labels)
    assert result.masked_accuracy is None
    assert "accuracy" in str(compare({"this": detector}, test, ood, y_id=labels))
