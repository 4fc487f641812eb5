"""The curve over the sparsities."""

import pytest

pytest.importorskip("matplotlib")

import numpy as np
from drawing import drawn, legend_of
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skdice import DICEDetector, DICEDetectorCV, sparsity_path
from skdice.metrics import (
    auroc,
    confidence_interval,
    fpr_at_tpr,
    neg_fpr95_scorer,
)
from skdice.plotting import (
    SparsityCurveDisplay,
)
from skdice.plotting._curves import fold_scores
from skdice.shaping import ReAct

pytestmark = pytest.mark.usefixtures("matplotlib_left_alone")


def test_sparsity_curve_of_a_search(fashion, labelled, ax):
    shapings = [None, ReAct()]
    search = DICEDetectorCV(fashion.head, sparsities=[0.9, 0, 0.5], shaping=shapings, cv=3).fit(
        *labelled
    )
    display = drawn(SparsityCurveDisplay.from_estimator(search, ax=ax), ax)
    results = search.cv_results_
    folds = np.array([results[f"split{n}_test_score"] for n in range(3)]).reshape(3, 2, 3)
    folds = folds[:, :, [1, 2, 0]]
    for n, name in enumerate(("no shaping", "ReAct()")):
        line, band = display.lines_[name], display.bands_[name]
        np.testing.assert_array_equal(line.get_xdata(), [0, 0.5, 0.9])
        mean, deviation = folds[:, n].mean(axis=0), folds[:, n].std(axis=0)
        np.testing.assert_allclose(line.get_ydata(), mean)
        outline = band.get_paths()[0].vertices
        for x, low, high in zip([0, 0.5, 0.9], mean - deviation, mean + deviation, strict=True):
            found = outline[outline[:, 0] == x, 1]
            np.testing.assert_allclose([found.min(), found.max()], [low, high])
    assert display.chosen_mark_.get_xdata()[0] == search.sparsity_
    assert display.chosen_mark_.get_ydata()[0] == search.best_score_
    title, texts = legend_of(ax)
    assert title == "mean ± standard deviation over 3 folds"
    assert texts == ["no shaping", "ReAct()", f"chosen: {search.sparsity_:g}"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("sparsity (0 prunes nothing)", "AUROC")


def test_sparsity_curve_of_a_grid_search_over_a_pipeline(fashion, labelled, ax):
    pipeline = make_pipeline(FunctionTransformer(), DICEDetector(fashion.head))
    grid = {"dicedetector__sparsity": [0.5, 0], "dicedetector__score_func": ["energy", "gen"]}
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    scoring = {"auc": "roc_auc", "fpr": neg_fpr95_scorer}
    search = GridSearchCV(pipeline, grid, scoring=scoring, refit="auc", cv=folds).fit(*labelled)
    display = drawn(SparsityCurveDisplay.from_estimator(search, ax=ax), ax)
    assert list(display.lines_) == [
        "dicedetector__score_func='energy'",
        "dicedetector__score_func='gen'",
    ]
    curve, sparsity = display.chosen
    assert search.best_params_["dicedetector__sparsity"] == sparsity
    assert search.best_params_["dicedetector__score_func"] in curve
    assert ax.get_ylabel() == "auc"
    other = SparsityCurveDisplay.from_estimator(
        search, metric="fpr", negate_score=True, score_name="FPR95"
    )
    assert other.chosen is None
    assert other.ax_.get_ylabel() == "FPR95"
    negated = np.sort(np.concatenate([each.mean(axis=1) for each in other.scores.values()]))
    np.testing.assert_allclose(negated, np.sort(-search.cv_results_["mean_test_fpr"]))
    with pytest.raises(ValueError, match="metric is 'f1', but the search has auc, fpr"):
        SparsityCurveDisplay.from_estimator(search, metric="f1")
    search.refit = False
    with pytest.raises(ValueError, match="metric is None, but the search has auc, fpr"):
        SparsityCurveDisplay.from_estimator(search)


def test_a_search_that_skips_combinations(fashion, labelled, ax):
    grids = [
        {"sparsity": [0, 0.5, 0.9], "shaping": [None]},
        {"sparsity": [0, 0.9], "shaping": [ReAct()]},
    ]
    search = GridSearchCV(
        DICEDetector(fashion.head), grids, scoring="roc_auc", cv=StratifiedKFold(2)
    )
    display = drawn(SparsityCurveDisplay.from_estimator(search.fit(*labelled), ax=ax), ax)
    assert np.isnan(display.scores["ReAct()"]).any(axis=1).tolist() == [False, True, False]
    np.testing.assert_array_equal(display.lines_["ReAct()"].get_xdata(), [0, 0.9])
    assert len(display.lines_["no shaping"].get_xdata()) == 3


@pytest.mark.parametrize(
    ("scoring", "negate", "expected"),
    [
        ("roc_auc", False, "AUROC"),
        ("average_precision", False, "AUPR, in-distribution positive"),
        (neg_fpr95_scorer, False, "negated FPR95 (paper's rule)"),
        (neg_fpr95_scorer, True, "FPR95 (paper's rule)"),
        ("balanced_accuracy", False, "balanced accuracy"),
    ],
)
def test_the_name_of_the_metric(fashion, labelled, ax, scoring, negate, expected):
    grid = {"sparsity": [0, 0.5]}
    search = RandomizedSearchCV(
        DICEDetector(fashion.head), grid, n_iter=2, scoring=scoring, cv=StratifiedKFold(2)
    ).fit(*labelled)
    display = SparsityCurveDisplay.from_estimator(search, negate_score=negate, ax=ax)
    assert ax.get_ylabel() == expected
    assert list(display.lines_) == ["DICE"]
    assert (display.scores["DICE"] >= 0).all() == (expected[:7] != "negated")


def test_searches_that_have_no_sparsity_curve(fashion, fitted, labelled):
    with pytest.raises(NotFittedError):
        SparsityCurveDisplay.from_estimator(DICEDetectorCV(fashion.head))
    with pytest.raises(TypeError, match=r"(?s)DICEDetector\(.* has no cv_results_: expected"):
        SparsityCurveDisplay.from_estimator(fitted)
    search = GridSearchCV(
        DICEDetector(fashion.head), {"score_func": ["energy"]}, scoring="roc_auc", cv=2
    )
    search.set_params(cv=StratifiedKFold(2)).fit(*labelled)
    with pytest.raises(ValueError, match="search was over score_func; expected sparsity"):
        SparsityCurveDisplay.from_estimator(search)


@pytest.mark.parametrize("metric", ["auroc", "fpr_at_tpr"])
def test_sparsity_curve_of_a_path(fashion, labelled, ax, metric):
    (X, y), sparsities = labelled, [0.9, 0.0]
    scores = {
        name: sparsity_path(fashion.head, fashion.id_train, X, sparsities, shaping=shaping)
        for name, shaping in (("plain", None), ("clipped", ReAct()))
    }
    display = SparsityCurveDisplay.from_predictions(
        y, scores, sparsities, metric=metric, level=0.9, n_resamples=50, ax=ax
    )
    drawn(display, ax)
    function = {"auroc": auroc, "fpr_at_tpr": fpr_at_tpr}[metric]
    for name, each in scores.items():
        expected = [function(y, each[1]), function(y, each[0])]
        np.testing.assert_array_equal(display.lines_[name].get_ydata(), expected)
        for place, row in ((0, each[1]), (1, each[0])):
            interval = confidence_interval(y, row, metric=metric, level=0.9, n_resamples=50)
            assert tuple(display.bands[name][:, place]) == interval
    assert legend_of(ax) == ("90 % confidence intervals", ["plain", "clipped"])
    assert display.chosen_mark_ is None


def test_sparsity_curve_of_repeats(ax):
    repeats = np.array([[0.7, 0.9], [0.2, 0.2], [0.5, 0.6]])
    display = SparsityCurveDisplay(
        sparsities=[0.5, 0.9, 0],
        scores={"DICE": repeats, "one run": [1, 2, 3]},
        score_name="AUROC",
    )
    drawn(display.plot(ax), ax)
    np.testing.assert_allclose(display.lines_["DICE"].get_ydata(), [0.55, 0.8, 0.2])
    outline = display.bands_["DICE"].get_paths()[0].vertices
    for x, low, high in ((0, 0.5, 0.6), (0.5, 0.7, 0.9), (0.9, 0.2, 0.2)):
        at = outline[outline[:, 0] == x, 1]
        np.testing.assert_allclose([at.min(), at.max()], [low, high])
    np.testing.assert_array_equal(display.lines_["one run"].get_ydata(), [3, 1, 2])
    assert list(display.bands_) == ["DICE"]
    title, texts = legend_of(ax)
    assert title == "mean ± standard deviation over 2 repeats"
    assert texts == ["DICE", "one run"]


@pytest.mark.parametrize(
    ("sparsities", "scores", "reason"),
    [
        ([0, 90], [1, 2], "did you mean 0.9"),
        ([0, 0.9], [1, 2, 3], r"scores of DICE has shape \(3,\), expected \(2,\) or \(2, n_rep"),
        ([0, 0.9], {"a": [1, np.inf]}, "scores of a holds values that are not finite"),
        ([0, 0.9], {"a": [[[1]], [[2]]]}, r"scores of a has shape \(2, 1, 1\)"),
        ([0, 0.9], {}, "scores is an empty mapping"),
        ([0, 0.9], ["x", "y"], "not finite numbers"),
    ],
)
def test_curves_that_cannot_be_drawn(sparsities, scores, reason):
    with pytest.raises(ValueError, match=reason):
        SparsityCurveDisplay(sparsities=sparsities, scores=scores)


@pytest.mark.parametrize("rule", ["paper", "roc_curve"])
def test_a_path_by_either_rule_and_without_intervals(ax, rule):
    y = np.repeat([1, -1], [40, 4])
    scores = [np.r_[np.arange(40.0), 1.0, 2.0, 3.0, 30.0]]
    display = SparsityCurveDisplay.from_predictions(
        y, scores, [0], metric="fpr_at_tpr", rule=rule, level=None, ax=ax
    )
    assert display.scores["DICE"] == fpr_at_tpr(y, scores[0], rule=rule)
    assert ax.get_ylabel() == f"FPR95 ({rule}'s rule)"
    assert display.bands_ == {}
    # Areas under precision-recall curves have no interval, but a value.
    with pytest.raises(ValueError, match="'aupr_in', which has no interval"):
        SparsityCurveDisplay.from_predictions(y, scores, [0], metric="aupr_in")
    SparsityCurveDisplay.from_predictions(y, scores, [0], metric="aupr_in", level=None)


def test_paths_that_cannot_be_drawn():
    with pytest.raises(ValueError, match=r"expected \(2, n_samples\)"):
        SparsityCurveDisplay.from_predictions([1, -1], [1, 2], [0, 0.5])
    with pytest.raises(ValueError, match="metric is 'roc_auc', expected one of auroc, aupr_in"):
        SparsityCurveDisplay.from_predictions([1, -1], [[1, 2]], [0], metric="roc_auc")
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        SparsityCurveDisplay.from_predictions([1, -1], [[1, 2, 3]], [0])


def test_candidates_measured_twice_are_no_curve():
    results = {
        "params": [{"sparsity": 0.1}, {"sparsity": 0.5}, {"sparsity": 0.1}],
        "mean_test_score": np.array([0.5, 0.6, 0.7]),
        "split0_test_score": np.array([0.5, 0.6, 0.7]),
    }
    with pytest.raises(ValueError, match=r"measured DICE at sparsity 0.1 more than once"):
        fold_scores(results, "score", 1)
