import subprocess
import sys
from itertools import combinations

import pytest

pytest.importorskip("matplotlib")

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import OneClassSVM

from skdice import DICEDetector, DICEDetectorCV, plotting, sparsity_path
from skdice.cli._pictures import draw_evaluation
from skdice.features import open_features, save_features
from skdice.metrics import (
    auroc,
    bootstrap_interval,
    evaluate,
    fpr_at_tpr,
    fpr_at_tpr_authors,
    neg_fpr95_scorer,
)
from skdice.plotting import (
    OODRocCurveDisplay,
    ScoreHistogramDisplay,
    SparsityCurveDisplay,
    UnitContributionDisplay,
)
from skdice.plotting._curves import curves_of
from skdice.plotting._style import COLOURS, STYLES
from skdice.shaping import ReAct

OF_SCORES = [ScoreHistogramDisplay, OODRocCurveDisplay]


@pytest.fixture(autouse=True)
def _no_trace():
    """Whatever is drawn, the settings of matplotlib stay as they were."""
    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == before


@pytest.fixture(scope="module")
def fitted(fashion):
    return DICEDetector(fashion.head, sparsity=0.7).fit(fashion.id_train)


@pytest.fixture(scope="module")
def labelled(fashion):
    X = np.concatenate([fashion.id_test[:400], fashion.ood["mnist"][:200]])
    return X, np.repeat([1, -1], [400, 200])


@pytest.fixture
def ax():
    return Figure().subplots()


def legend_of(ax):
    legend = ax.get_legend()
    return legend.get_title().get_text(), [each.get_text() for each in legend.get_texts()]


def drawn(display, ax):
    """Draw everything, which fails on what cannot be laid out, and check where it went."""
    display.figure_.draw_without_rendering()
    assert display.ax_ is ax
    assert display.figure_ is ax.figure
    assert not plt.get_fignums()
    return display


def test_every_public_name_is_a_display():
    for name in plotting.__all__:
        assert name.endswith("Display")
        assert callable(getattr(plotting, name).plot)


def test_without_matplotlib_the_extra_is_named():
    program = "import sys; sys.modules['matplotlib'] = None; import skdice.plotting"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "ImportError: matplotlib is not installed: run pip install 'skdice[plot]'" in done.stderr


# Scores: histogram and ROC curves.


@pytest.mark.parametrize("cls", OF_SCORES)
def test_the_ways_to_make_a_display_agree(fashion, fitted, cls):
    inside, outside = (
        fitted.score_samples(each) for each in (fashion.id_test, fashion.ood["mnist"])
    )
    y_true = np.repeat([1, -1], [len(inside), len(outside)])
    order = np.random.default_rng(0).permutation(len(y_true))
    y_score = np.concatenate([inside, outside])
    made = [
        cls.from_estimator(fitted, fashion.id_test, {"mnist": fashion.ood["mnist"]}),
        cls.from_scores(inside, {"mnist": outside}),
        cls.from_predictions(y_true[order], y_score[order], ood_name="mnist"),
    ]
    entries = [legend_of(each.ax_) for each in made]
    title, (*_, first) = entries[1]
    assert title == "FPR95 / AUROC, %"
    expected = f"mnist: {100 * fpr_at_tpr(y_true, y_score):.1f} / "
    assert first == expected + f"{100 * auroc(y_true, y_score):.1f}"
    # The estimator has a threshold, too.
    assert [each for each in entries[0][1] if "threshold" not in each] == entries[1][1]
    assert entries[2] == entries[1]
    assert len(plt.get_fignums()) == 3


@pytest.mark.parametrize("cls", OF_SCORES)
def test_a_source_of_any_kind_and_a_lone_set(fashion, fitted, ax, tmp_path, cls):
    path = tmp_path / "mnist.npy"
    save_features(path, fashion.ood["mnist"])
    display = cls.from_estimator(fitted, fashion.id_test, open_features(path), ax=ax)
    expected = cls.from_estimator(fitted, fashion.id_test, fashion.ood["mnist"])
    assert legend_of(display.ax_) == legend_of(expected.ax_)
    assert any(each.startswith("out-of-distribution: ") for each in legend_of(ax)[1])


@pytest.mark.parametrize("cls", OF_SCORES)
def test_plotting_again_on_other_axes(fashion, fitted, ax, cls):
    display = cls.from_estimator(fitted, fashion.id_test, fashion.ood)
    first = display.ax_
    plt.close("all")
    assert drawn(display.plot(ax), ax) is display
    assert legend_of(first) == legend_of(ax)
    assert first.figure is not ax.figure


@pytest.mark.parametrize("cls", OF_SCORES)
@pytest.mark.parametrize(
    ("inside", "outside", "reason"),
    [
        ([1, 2], {}, "expected at least one set"),
        ([], [1.0], "in-distribution: .*0 sample"),
        ([1.0], {"far": []}, "far: .*0 sample"),
        ([1, 2], {"far": [1, np.nan]}, "far: .*scores contains NaN"),
        ([1, np.inf], [1], "in-distribution: .*contains infinity"),
        ([1, 2], {"in-distribution": [1]}, "named 'in-distribution'"),
        ([1, 2], {"far": [[1, 2], [3, 4]]}, "far: .*1d array"),
    ],
)
def test_scores_that_cannot_be_drawn(cls, inside, outside, reason):
    with pytest.raises(ValueError, match=reason):
        cls.from_scores(inside, outside)
    assert not plt.get_fignums()


@pytest.mark.parametrize("cls", OF_SCORES)
def test_labels_and_rows_that_cannot_be_drawn(fashion, fitted, cls):
    with pytest.raises(ValueError, match="labels 0, 1; expected"):
        cls.from_predictions([0, 1], [1, 2])
    with pytest.raises(ValueError, match="no out-of-distribution row"):
        cls.from_predictions([1, 1], [1, 2])
    rows = fashion.id_test[:10].copy()
    with pytest.raises(ValueError, match="narrow: X has 5 features"):
        cls.from_estimator(fitted, rows, {"narrow": rows[:, :5]})
    rows[3, 2] = np.nan
    with pytest.raises(ValueError, match="in-distribution: Input X contains NaN in row 3"):
        cls.from_estimator(fitted, rows, fashion.ood)
    with pytest.raises(NotFittedError):
        cls.from_estimator(DICEDetector(fashion.head), rows, fashion.ood)
    with pytest.raises(TypeError, match="instance of str, expected one matplotlib Axes"):
        cls.from_scores([1], [0], ax="axes")


@pytest.mark.parametrize("cls", OF_SCORES)
def test_names_are_shown_as_they_are(ax, cls):
    names = ["_hidden", "$\\broken$", "100 $ or $ 5"]
    display = cls.from_scores([1, 2], {name: [0, 1] for name in names}, ax=ax)
    drawn(display, ax)
    shown = " ".join(legend_of(ax)[1]).replace("\\$", "$")
    assert all(name in shown for name in names)


def test_histogram_against_numpy(fashion, fitted, ax):
    display = ScoreHistogramDisplay.from_estimator(
        fitted, fashion.id_test, fashion.ood, id_name="clothes", bins=17, ax=ax
    )
    drawn(display, ax)
    scores = {"clothes": fashion.id_test, **fashion.ood}
    scores = {name: fitted.score_samples(rows) for name, rows in scores.items()}
    everything = np.concatenate(list(scores.values())).astype(np.float64)
    assert list(display.histograms_) == list(scores)
    for name, patch in display.histograms_.items():
        values, edges, _ = patch.get_data()
        expected, at = np.histogram(
            scores[name], 17, (everything.min(), everything.max()), density=True
        )
        np.testing.assert_allclose(edges, at)
        np.testing.assert_allclose(values, expected)
        assert patch.get_fill() == (name == "clothes")
    assert set(display.threshold_line_.get_xdata()) == {fitted.offset_}
    report = evaluate(fitted, fashion.id_test, fashion.ood).results["DICEDetector"].sets
    for name, result in report.items():
        assert display.fpr95[name] == result.fpr95
        assert display.auroc[name] == result.auroc
    assert legend_of(ax)[1][0] == "clothes"
    assert legend_of(ax)[1][-1] == f"threshold {fitted.offset_:.4g}"
    assert ax.get_xlabel() == "score (higher = more in-distribution)"
    assert ax.get_ylabel() == "density"


@pytest.mark.parametrize("n_sets", [1, 3, 9])
def test_the_legend_covers_no_histogram(n_sets):
    rng = np.random.default_rng(0)
    ax = Figure(figsize=(6, 4), layout="constrained").subplots()
    sets = {f"a name of some length {n}": rng.normal(n % 3, size=300) for n in range(n_sets)}
    display = ScoreHistogramDisplay.from_scores(rng.normal(6, size=300), sets, threshold=4, ax=ax)
    display.figure_.draw_without_rendering()
    top = max(patch.get_data()[0].max() for patch in display.histograms_.values())
    lowest = ax.transData.inverted().transform(ax.get_legend().get_window_extent())[0, 1]
    assert lowest > top
    assert display.threshold_line_.get_ydata()[1] * ax.get_ylim()[1] < lowest


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e30])
def test_scores_that_are_all_the_same(ax, value, dtype):
    same = np.full(5, value, dtype)
    display = drawn(ScoreHistogramDisplay.from_scores(same, same, ax=ax), ax)
    assert display.auroc == {"out-of-distribution": 0.5}


@pytest.mark.parametrize(
    ("name", "value"), [("threshold", np.nan), ("threshold", "6"), ("bins", 0)]
)
def test_options_of_a_histogram_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}, expected"):
        ScoreHistogramDisplay.from_scores([1], [0], **{name: value})


def test_data_alone_are_enough_for_a_histogram(ax):
    display = ScoreHistogramDisplay(id_scores=np.arange(5.0), ood_scores={"far": np.arange(3.0)})
    drawn(display.plot(ax), ax)
    assert display.threshold_line_ is None
    assert legend_of(ax) == ("", ["in-distribution", "far"])


@pytest.mark.parametrize("detector", [IsolationForest(random_state=0), OneClassSVM()])
def test_the_threshold_of_other_detectors(fashion, ax, detector):
    train, test = fashion.id_train[:300].astype(np.float64), fashion.id_test[:100]
    detector.fit(train)
    display = ScoreHistogramDisplay.from_estimator(detector, test, fashion.ood["mnist"], ax=ax)
    decided = detector.score_samples(test) - display.threshold
    np.testing.assert_allclose(decided, detector.decision_function(test))
    pipeline = make_pipeline(FunctionTransformer(), detector)
    again = ScoreHistogramDisplay.from_estimator(pipeline, test, fashion.ood["mnist"])
    assert again.threshold == display.threshold


def test_roc_against_scikit_learn(fashion, fitted, ax):
    display = OODRocCurveDisplay.from_estimator(fitted, fashion.id_test, fashion.ood, ax=ax)
    drawn(display, ax)
    inside = fitted.score_samples(fashion.id_test)
    assert list(display.lines_) == list(display.marks_) == list(fashion.ood)
    for name, rows in fashion.ood.items():
        outside = fitted.score_samples(rows)
        y = np.repeat([1, 0], [len(inside), len(outside)])
        s = np.concatenate([inside, outside])
        fpr, tpr, _ = roc_curve(y, s)
        np.testing.assert_array_equal(display.lines_[name].get_xdata(), fpr)
        np.testing.assert_array_equal(display.lines_[name].get_ydata(), tpr)
        (rate,), (height,) = display.marks_[name].get_data()
        fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
        assert rate == display.fpr_at_tpr[name] == fpr[np.argmax(tpr >= 0.95)]
        assert height == 0.95
        assert display.auroc[name] == roc_auc_score(y, s)
    assert "in-distribution kept" in ax.get_ylabel()
    assert "OOD taken for in-distribution" in ax.get_xlabel()
    assert set(display.level_line_.get_ydata()) == {0.95}
    assert display.chance_level_.get_xdata()[-1] == display.chance_level_.get_ydata()[-1] == 1


def test_the_mark_lies_on_the_curve_of_tied_scores(ax):
    # Four groups of ties on one straight line, of which scikit-learn drops points.
    tied = np.repeat([4, 3, 2, 1], 5)
    display = OODRocCurveDisplay.from_scores(tied, {"same": tied}, tpr_level=0.6, ax=ax)
    assert 0.75 not in display.fpr["same"]
    assert [each[0] for each in display.marks_["same"].get_data()] == [0.75, 0.75]
    assert legend_of(ax) == ("FPR60 / AUROC, %", ["same: 75.0 / 50.0"])


def test_a_true_positive_rate_out_of_range():
    with pytest.raises(ValueError, match=r"tpr is 95, .*did you mean 0.95"):
        OODRocCurveDisplay.from_scores([1, 2], [0, 1], tpr_level=95)


# The sparsity curve.


def test_sparsity_curve_of_a_search(fashion, labelled, ax):
    shapings = [None, ReAct()]
    search = DICEDetectorCV(fashion.head, [0.9, 0, 0.5], shaping=shapings, cv=3).fit(*labelled)
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
    negated = np.sort(np.concatenate(list(other.scores.values())))
    np.testing.assert_array_equal(negated, np.sort(-search.cv_results_["mean_test_fpr"]))
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
    assert np.isnan(display.scores["ReAct()"]).tolist() == [False, True, False]
    np.testing.assert_array_equal(display.lines_["ReAct()"].get_xdata(), [0, 0.9])
    assert len(display.lines_["no shaping"].get_xdata()) == 3


@pytest.mark.parametrize(
    ("scoring", "negate", "expected"),
    [
        ("roc_auc", False, "AUROC"),
        ("average_precision", False, "AUPR, in-distribution positive"),
        (neg_fpr95_scorer, False, "negated FPR at 95 % TPR, authors' rule"),
        (neg_fpr95_scorer, True, "FPR at 95 % TPR, authors' rule"),
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
    with pytest.raises(TypeError, match=r"DICEDetector\(.* has no cv_results_: expected"):
        SparsityCurveDisplay.from_estimator(fitted)
    search = GridSearchCV(
        DICEDetector(fashion.head), {"score_func": ["energy"]}, scoring="roc_auc", cv=2
    )
    search.set_params(cv=StratifiedKFold(2)).fit(*labelled)
    with pytest.raises(ValueError, match="search was over score_func; expected sparsity"):
        SparsityCurveDisplay.from_estimator(search)


@pytest.mark.parametrize("metric", ["auroc", "fpr_at_tpr_authors"])
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
    function = {"auroc": auroc, "fpr_at_tpr_authors": fpr_at_tpr_authors}[metric]
    for name, each in scores.items():
        expected = [function(y, each[1]), function(y, each[0])]
        np.testing.assert_array_equal(display.lines_[name].get_ydata(), expected)
        for place, row in ((0, each[1]), (1, each[0])):
            interval = bootstrap_interval(y, row, metric, level=0.9, n_resamples=50)
            assert tuple(display.bands[name][:, place]) == interval
    assert legend_of(ax) == ("90 % bootstrap intervals", ["plain", "clipped"])
    assert display.chosen_mark_ is None


def test_sparsity_curve_of_repeats(ax):
    repeats = np.array([[0.7, 0.9], [0.2, 0.2], [0.5, 0.6]])
    display = SparsityCurveDisplay.from_scores(
        [0.5, 0.9, 0], {"DICE": repeats, "one run": [1, 2, 3]}, score_name="AUROC", ax=ax
    )
    drawn(display, ax)
    np.testing.assert_allclose(display.lines_["DICE"].get_ydata(), [0.55, 0.8, 0.2])
    np.testing.assert_allclose(display.bands["DICE"], [[0.5, 0.7, 0.2], [0.6, 0.9, 0.2]])
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
        ([0, 0.9], {"a": [1, np.nan]}, "scores of a holds values that are not finite"),
        ([0, 0.9], {"a": [[[1]], [[2]]]}, r"scores of a has shape \(2, 1, 1\)"),
        ([0, 0.9], {}, "scores is an empty mapping"),
        ([0, 0.9], ["x", "y"], "not finite numbers"),
    ],
)
def test_curves_that_cannot_be_drawn(sparsities, scores, reason):
    with pytest.raises(ValueError, match=reason):
        SparsityCurveDisplay.from_scores(sparsities, scores)


def test_paths_that_cannot_be_drawn():
    with pytest.raises(ValueError, match=r"expected \(2, n_samples\)"):
        SparsityCurveDisplay.from_predictions([1, -1], [1, 2], [0, 0.5])
    with pytest.raises(ValueError, match="metric is 'roc_auc', expected one of auroc, aupr_in"):
        SparsityCurveDisplay.from_predictions([1, -1], [[1, 2]], [0], metric="roc_auc")
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        SparsityCurveDisplay.from_predictions([1, -1], [[1, 2, 3]], [0])


# Unit contributions.


def test_unit_contributions_against_numpy(fashion, fitted, ax):
    X_id, X_ood = fashion.id_test[fashion.id_test_labels == 3], fashion.ood["mnist"]
    display = UnitContributionDisplay.from_estimator(fitted, X_id, X_ood, 3, ax=ax)
    drawn(display, ax)
    weight = fashion.head.weight[3].astype(np.float64)
    order = np.argsort((weight * X_id.astype(np.float64)).mean(axis=0), kind="stable")
    for n, coef in enumerate((weight, fitted.coef_[3].astype(np.float64))):
        for name, rows in (("in-distribution", X_id), ("out-of-distribution", X_ood)):
            contributions = (coef * rows.astype(np.float64))[:, order]
            mean, deviation = contributions.mean(axis=0), contributions.std(axis=0)
            found = display.lines_[n][name].get_ydata()
            np.testing.assert_allclose(found, mean, rtol=1e-12, atol=1e-14)
            outline = display.bands_[n][name].get_paths()[0].vertices
            for unit in range(128):
                at = outline[outline[:, 0] == unit, 1]
                expected = mean[unit] - deviation[unit], mean[unit] + deviation[unit]
                np.testing.assert_allclose((at.min(), at.max()), expected, atol=1e-12)
    before, after = display.axes_
    assert before.get_title() == "before pruning"
    assert after.get_title() == f"after: {fitted.mask_[3].sum()} of 128 units kept"
    assert before.get_ylabel() == "contribution to class 3"
    assert before.get_ylim() == after.get_ylim()
    assert legend_of(before) == (
        "mean ± standard deviation",
        ["in-distribution", "out-of-distribution"],
    )
    assert list(ax.child_axes) == [before, after]


def test_the_means_sum_to_the_mean_logit(fashion, fitted, ax):
    """What the detector computes, shaping included, is the sum of what is drawn."""
    shaped = DICEDetector(fashion.head, sparsity=0.5, shaping=ReAct()).fit(fashion.id_train)
    for detector in (fitted, shaped):
        display = UnitContributionDisplay.from_estimator(
            detector, fashion.id_test, fashion.ood, 2, id_name="clothes", ax=ax
        )
        for name, rows in {"clothes": fashion.id_test, **fashion.ood}.items():
            total = display.lines_[1][name].get_ydata().sum() + detector.intercept_[2]
            assert total == pytest.approx(detector.logits(rows)[:, 2].mean(), rel=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shift", [0, 1e4])
def test_moments_do_not_depend_on_the_blocks(fashion, tmp_path, ax, dtype, shift):
    X = (fashion.id_test + np.float64(shift)).astype(dtype)
    np.save(tmp_path / "rows.npy", X)
    rows = open_features(tmp_path / "rows.npy")
    detector = DICEDetector(fashion.head).fit(X)
    displays = [
        UnitContributionDisplay.from_estimator(
            detector.set_params(batch_size=size), rows, {"same": X}, 1, ax=ax
        )
        for size in (7, 1000, 3000)
    ]
    contributions = fashion.head.weight[1].astype(np.float64) * X
    for display in displays:
        for name in ("in-distribution", "same"):
            mean, variance = display.mean[name], display.variance[name]
            np.testing.assert_allclose(mean, contributions.mean(axis=0), rtol=1e-12)
            np.testing.assert_allclose(variance, contributions.var(axis=0), rtol=1e-9)


def test_unit_contributions_of_a_detector_that_chose_its_sparsity(fashion, labelled, ax):
    search = DICEDetectorCV(fashion.head, [0.7], cv=2).fit(*labelled)
    display = UnitContributionDisplay.from_estimator(search, *[labelled[0]] * 2, 0, ax=ax)
    np.testing.assert_array_equal(display.kept, search.mask_[0])


def test_unit_contributions_of_logits(ax):
    """One unit is enough for a picture."""
    detector = DICEDetector("identity", sparsity=0).fit(np.ones((3, 1)))
    display = UnitContributionDisplay.from_estimator(detector, [[1.0], [3.0]], [[0.0]], 0, ax=ax)
    drawn(display, ax)
    assert (display.mean["in-distribution"], display.variance["in-distribution"]) == (2, 1)


def test_unit_contributions_that_cannot_be_drawn(fashion, fitted):
    make, rows = UnitContributionDisplay.from_estimator, fashion.id_test[:5].astype(np.float64)
    for wrong in (10, -1, 1.5, "coat"):
        with pytest.raises(
            ValueError, match=f"class_index is {wrong!r}, expected an int from 0 to 9"
        ):
            make(fitted, rows, rows, wrong)
    with pytest.raises(NotFittedError):
        make(DICEDetector(fashion.head), rows, rows, 0)
    with pytest.raises(TypeError, match="instance of Pipeline, expected a fitted DICEDetector"):
        make(make_pipeline(fitted), rows, rows, 0)
    with pytest.raises(ValueError, match="narrow: X has 3 features"):
        make(fitted, rows, {"narrow": rows[:, :3]}, 0)
    with pytest.raises(ValueError, match="expected at least one set"):
        make(fitted, rows, {}, 0)
    with pytest.raises(ValueError, match=r"out-of-distribution: .*minimum of 1 is required"):
        make(fitted, rows, rows[:0], 0)
    bad = rows.copy()
    bad[2, 4] = np.inf
    with pytest.raises(ValueError, match=r"far: Input X contains infinity .*row 2, column 4"):
        make(fitted, rows, {"far": bad}, 0)
    with pytest.raises(ValueError, match="exceed the range of float64"):
        make(fitted, rows, np.stack([rows[0], rows[0] + 1e200]), 0)


# What the displays look like.


def test_lines_are_told_apart_without_colour(ax):
    sets = {f"set {n}": [n, n + 1] for n in range(len(STYLES))}
    display = OODRocCurveDisplay.from_scores([1, 2], sets, ax=ax)
    # Offset and dashes; matplotlib has no public name for them.
    patterns = [str(line._unscaled_dash_pattern) for line in display.lines_.values()]
    assert len(set(patterns)) == len(STYLES)
    filled = ScoreHistogramDisplay.from_scores([1, 2], sets).histograms_["in-distribution"]
    assert filled.get_fill()


def test_colours_are_told_apart_by_colour_blind_eyes():
    # Machado, Oliveira & Fernandes 2009, severity 1: protanopia and deuteranopia.
    for simulation in (
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    ):
        seen = [np.clip(np.array(simulation) @ to_rgb(each), 0, 1) for each in COLOURS]
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 0.1


def test_the_command_draws_without_pyplot(tmp_path):
    program = (
        "import sys; from skdice.cli._pictures import draw_evaluation;"
        f"draw_evaluation({str(tmp_path / 'a')!r}, title='t', id_scores=[1, 2], ood_scores=[0, 1]);"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
    assert (tmp_path / "a").read_bytes().startswith(b"\x89PNG")


def test_a_file_name_is_no_formula(tmp_path):
    draw_evaluation(tmp_path / "a", title="$\\x$", id_scores=[1, 2], ood_scores=[0, 1])


def test_candidates_measured_twice_are_no_curve():
    results = {
        "params": [{"sparsity": 0.1}, {"sparsity": 0.5}, {"sparsity": 0.1}],
        "mean_test_score": np.array([0.5, 0.6, 0.7]),
        "std_test_score": np.zeros(3),
    }
    with pytest.raises(ValueError, match=r"measured DICE at sparsity 0.1 more than once"):
        curves_of(results, "score")
