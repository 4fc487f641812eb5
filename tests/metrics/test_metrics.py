import json
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from sklearn.datasets import make_blobs
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skdice import DICEDetector, DICEDetectorCV, LinearHead, metrics
from skdice.io import open_features
from skdice.metrics import bootstrap_interval, compare, evaluate, fpr_at_tpr, fpr_at_tpr_authors
from skdice.metrics._bootstrap import METRICS


def authors(inliers, outliers):
    """The published code of DICE, in three lines."""
    known = sorted(inliers)
    threshold = known[round(0.05 * len(known))]
    return sum(score > threshold for score in outliers) / len(outliers)


def openood(inliers, outliers):
    """OpenOOD: out-of-distribution is positive, by scikit-learn's curve."""
    indicator = np.repeat([0, 1], [len(inliers), len(outliers)])
    fpr, tpr, _ = roc_curve(indicator, -np.concatenate([inliers, outliers]))
    return fpr[np.argmax(tpr >= 0.95)]


def by_definition(inliers, outliers, tpr):
    """The highest score that enough inliers reach, and the outliers that reach it."""
    inliers, outliers = np.asarray(inliers), np.asarray(outliers)
    for threshold in sorted({*inliers, *outliers}, reverse=True):
        if np.mean(inliers >= threshold) >= tpr:
            return np.mean(outliers >= threshold)
    raise AssertionError


def labelled(inliers, outliers):
    return np.repeat([1, -1], [len(inliers), len(outliers)]), np.concatenate([inliers, outliers])


# Few values, so that many scores tie.
some_scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=60)


@given(some_scores, some_scores)
def test_fpr95_of_every_convention(inliers, outliers):
    y, s = labelled(inliers, outliers)
    assert fpr_at_tpr_authors(y, s) == authors(inliers, outliers)
    assert fpr_at_tpr(y, s, pos_label=-1) == openood(inliers, outliers)
    fpr, tpr, _ = roc_curve(y, s, pos_label=1)
    assert fpr_at_tpr(y, s) == fpr[np.argmax(tpr >= 0.95)]
    assert fpr_at_tpr(y, s) == by_definition(inliers, outliers, 0.95)


@given(some_scores, some_scores, st.sampled_from([0.05, 0.5, 0.8, 0.9, 1.0]))
def test_fpr_at_other_rates(inliers, outliers, tpr):
    y, s = labelled(inliers, outliers)
    assert fpr_at_tpr(y, s, tpr=tpr) == by_definition(inliers, outliers, tpr)


@given(some_scores, some_scores)
def test_areas_and_error(inliers, outliers):
    y, s = labelled(inliers, outliers)
    pairs = np.subtract.outer(inliers, outliers)
    assert metrics.auroc(y, s) == pytest.approx(np.mean((pairs > 0) + (pairs == 0) / 2))
    assert metrics.auroc(y, s) == roc_auc_score(y, s)
    assert metrics.aupr_in(y, s) == average_precision_score(y, s, pos_label=1)
    assert metrics.aupr_out(y, s) == average_precision_score(y, -s, pos_label=-1)
    cuts = [-np.inf, *s, np.inf]
    errors = [
        (np.mean(np.less(inliers, cut)) + np.mean(np.greater_equal(outliers, cut))) / 2
        for cut in cuts
    ]
    assert metrics.detection_error(y, s) == pytest.approx(min(errors))


def test_the_two_conventions_differ_by_tens_of_points_on_skewed_scores():
    # One inlier in ten scores low: in-distribution positive has to reach down to them.
    inliers = np.r_[np.full(90, 10.0), np.full(10, 0.0)]
    outliers = np.r_[np.full(97, 5.0), np.full(3, 20.0)]
    y, s = labelled(inliers, outliers)
    assert fpr_at_tpr(y, s) == 1.0
    assert fpr_at_tpr(y, s, pos_label=-1) == 0.1


@given(some_scores, some_scores, st.data())
def test_weights_count_like_repeated_rows(inliers, outliers, data):
    y, s = labelled(inliers, outliers)
    n = st.integers(1, 4)
    weights = np.array(data.draw(st.lists(n, min_size=len(y), max_size=len(y))))
    expected = fpr_at_tpr(np.repeat(y, weights), np.repeat(s, weights))
    assert fpr_at_tpr(y, s, sample_weight=weights) == pytest.approx(expected)


ALL = [getattr(metrics, name) for name in METRICS]


@pytest.mark.parametrize("metric", ALL, ids=lambda each: each.__name__)
@pytest.mark.parametrize(
    ("y", "s", "reason"),
    [
        ([1, 1], [0.0, 1.0], "no out-of-distribution row"),
        ([-1, -1], [0.0, 1.0], "no in-distribution row"),
        ([1, -1], [0.0, np.nan], "NaN"),
        ([1, -1], [np.inf, 0.0], "infinity"),
        ([0, 1], [0.0, 1.0], "labels 0, 1; expected"),
        (["in", "out"], [0.0, 1.0], "labels 'in', 'out'"),
        ([1, -1, -1], [0.0, 1.0], "inconsistent numbers of samples"),
        ([], [], "minimum of 1"),
    ],
)
def test_what_cannot_be_measured_is_said(metric, y, s, reason):
    with pytest.raises(ValueError, match=reason):
        metric(y, s)


@pytest.mark.parametrize("metric", [fpr_at_tpr, fpr_at_tpr_authors])
@pytest.mark.parametrize(
    ("tpr", "reason"), [(95, r"95, .*did you mean 0.95"), (0, "0"), ("x", "'x'"), (np.nan, "nan")]
)
def test_a_rate_out_of_range(metric, tpr, reason):
    with pytest.raises(ValueError, match=f"tpr is {reason}"):
        metric([1, -1], [1.0, 0.0], tpr=tpr)


def test_another_positive_class_is_refused():
    with pytest.raises(ValueError, match="pos_label is 0, expected 1 or -1"):
        fpr_at_tpr([1, -1], [1.0, 0.0], pos_label=0)


@pytest.mark.parametrize("name", METRICS)
@given(some_scores, some_scores)
def test_the_metrics_of_the_bootstrap_are_the_public_ones(name, inliers, outliers):
    distinct = np.unique(np.concatenate([inliers, outliers]))
    counts = [
        np.array([np.sum(np.equal(each, value)) for value in distinct], dtype=float)
        for each in (inliers, outliers)
    ]
    expected = getattr(metrics, name)(*labelled(inliers, outliers))
    assert METRICS[name](*counts, 0.95) == pytest.approx(expected, abs=1e-12)
    twice = METRICS[name](*(np.stack([each, each]) for each in counts), 0.95)
    np.testing.assert_allclose(twice, expected, atol=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_intervals_are_those_of_resampled_rows(name):
    rng = np.random.default_rng(2)
    inliers, outliers = rng.normal(1, 1, 120).round(2), rng.normal(0, 1, 80).round(2)
    y, s = labelled(inliers, outliers)
    low, high = bootstrap_interval(y, s, name, n_resamples=4000, level=0.9)
    values = [
        getattr(metrics, name)(*labelled(rng.choice(inliers, 120), rng.choice(outliers, 80)))
        for _ in range(1500)
    ]
    np.testing.assert_allclose([low, high], np.quantile(values, [0.05, 0.95]), atol=0.04)
    assert bootstrap_interval(y, s, name, n_resamples=4000, level=0.9) == (low, high)


def test_another_seed_gives_another_interval():
    y, s = labelled(np.arange(50.0), np.arange(-25.0, 25.0))
    assert bootstrap_interval(y, s) != bootstrap_interval(y, s, random_state=1)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"metric": "f1"}, "metric is 'f1', expected one of auroc"),
        ({"level": 95}, "level is 95"),
        ({"n_resamples": 0}, "n_resamples is 0"),
    ],
)
def test_options_of_the_interval(options, reason):
    with pytest.raises(ValueError, match=reason):
        bootstrap_interval([1, -1], [1.0, 0.0], **options)


def test_the_scorer_searches(fashion):
    X = np.concatenate([fashion.id_train[:1000], fashion.ood["mnist"][:1000]])
    y = np.repeat([1, -1], 1000)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    search = GridSearchCV(
        DICEDetector(fashion.head),
        {"sparsity": [0, 0.95]},
        scoring=metrics.neg_fpr95_scorer,
        cv=folds,
    ).fit(X, y)
    expected = []
    for train, test in folds.split(X, y):
        detector = DICEDetector(fashion.head, sparsity=0.95).fit(X[train], y[train])
        scores = detector.score_samples(X[test])
        expected.append(-authors(scores[y[test] == 1], scores[y[test] == -1]))
    assert search.cv_results_["mean_test_score"][1] == pytest.approx(np.mean(expected))
    assert search.best_params_ == {"sparsity": 0}


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
        assert found.fpr95 == fpr_at_tpr_authors(y, s)
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
    lines = repr(report).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["energy", "a|b", "forest", "no"]
    cell = f"{100 * told['energy']['sets']['near']['auroc']:.1f}"
    assert cell in lines[1]
    markdown = report.to_markdown().splitlines()
    assert markdown[1] == "| --- | ---: | ---: | ---: | ---: |"
    assert "a\\|b <pipe>" in markdown[3]
    assert "a|b &lt;pipe&gt;" in report._repr_html_()
    assert "in-distribution is positive" in report._repr_html_()


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
    with pytest.raises(ValueError, match="has no classes"):
        evaluate(IsolationForest(random_state=0).fit(train), test, ood, y_id=labels)
