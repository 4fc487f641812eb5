import subprocess
import sys
from itertools import combinations

import pytest

pytest.importorskip("matplotlib")

import matplotlib.pyplot as plt
import numpy as np
from drawing import drawn, legend_of
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import OneClassSVM

from skdice import DICEDetector, plotting
from skdice.cli._pictures import draw_evaluation
from skdice.io import open_features, save_features
from skdice.metrics import (
    auroc,
    evaluate,
    fpr_at_tpr,
)
from skdice.metrics._report import measure_scores
from skdice.plotting import (
    OODRocCurveDisplay,
    ScoreHistogramDisplay,
)
from skdice.plotting._style import COLOURS, STYLES

pytestmark = pytest.mark.usefixtures("matplotlib_left_alone")

OF_SCORES = [ScoreHistogramDisplay, OODRocCurveDisplay]


def test_every_public_name_is_a_display():
    for name in plotting.__all__:
        assert name.endswith("Display")
        assert callable(getattr(plotting, name).plot)


def test_without_matplotlib_the_extra_is_named():
    program = "import sys; sys.modules['matplotlib'] = None; import skdice.plotting"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "ImportError: matplotlib is not installed: run pip install 'skdice[plot]'" in done.stderr


# Both displays of scores.


@pytest.mark.parametrize("cls", OF_SCORES)
def test_scores_may_be_tensors_that_numpy_does_not_take(cls):
    # Like a tensor on a GPU, a tensor with a gradient has to be converted first.
    torch = pytest.importorskip("torch")
    inside, outside = [3.0, 2.0, 1.0], [0.5, 1.5]
    inner, outer = (torch.tensor(each, requires_grad=True) for each in (inside, outside))
    y_true, y_score = np.repeat([1, -1], [3, 2]), torch.tensor(inside + outside, requires_grad=True)
    expected = legend_of(cls(id_scores=inside, ood_scores={"a": outside}).plot().ax_)
    assert legend_of(cls(id_scores=inner, ood_scores={"a": outer}).plot().ax_) == expected
    assert legend_of(cls.from_predictions(y_true, y_score, ood_names="a").ax_) == expected


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
        cls(id_scores=inside, ood_scores={"mnist": outside}).plot(),
        cls.from_predictions(y_true[order], y_score[order], ood_names="mnist"),
    ]
    entries = [legend_of(each.ax_) for each in made]
    title, (*_, first) = entries[1]
    assert title == "FPR95 (paper's rule) / AUROC, %"
    expected = f"mnist: {100 * fpr_at_tpr(y_true, y_score):.1f} / "
    assert first == expected + f"{100 * auroc(y_true, y_score):.1f}"
    # Only the estimator has a threshold, which the histogram shows.
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
        cls(id_scores=inside, ood_scores=outside)
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
        cls(id_scores=[1], ood_scores=[0]).plot("axes")


@pytest.mark.parametrize("cls", OF_SCORES)
def test_names_are_shown_as_they_are(ax, cls):
    names = ["_hidden", "$\\broken$", "100 $ or $ 5"]
    display = cls(id_scores=[1, 2], ood_scores={name: [0, 1] for name in names}).plot(ax)
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
        assert display.fpr_at_tpr[name] == result.fpr95
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
    inside = rng.normal(6, size=300)
    display = ScoreHistogramDisplay(id_scores=inside, ood_scores=sets, threshold=4).plot(ax)
    display.figure_.draw_without_rendering()
    top = max(patch.get_data()[0].max() for patch in display.histograms_.values())
    lowest = ax.transData.inverted().transform(ax.get_legend().get_window_extent())[0, 1]
    assert lowest > top
    assert display.threshold_line_.get_ydata()[1] * ax.get_ylim()[1] < lowest


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e30])
def test_scores_that_are_all_the_same(ax, value, dtype):
    same = np.full(5, value, dtype)
    display = drawn(ScoreHistogramDisplay(id_scores=same, ood_scores=same).plot(ax), ax)
    assert display.auroc == {"out-of-distribution": 0.5}


@pytest.mark.parametrize(
    ("name", "value"), [("threshold", np.nan), ("threshold", "6"), ("bins", 0)]
)
def test_options_of_a_histogram_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}, expected"):
        ScoreHistogramDisplay(id_scores=[1], ood_scores=[0], **{name: value})


def test_data_alone_are_enough_for_a_histogram(ax):
    display = ScoreHistogramDisplay(id_scores=np.arange(5.0), ood_scores={"far": np.arange(3.0)})
    drawn(display.plot(ax), ax)
    assert display.threshold_line_ is None
    title, names = legend_of(ax)
    assert title == "FPR95 (paper's rule) / AUROC, %"
    assert names == ["in-distribution", "far: 66.7 / 70.0"]


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
        assert rate == display.fpr_at_tpr[name] == fpr_at_tpr(2 * y - 1, s)
        heights = tpr[fpr == rate]
        assert height == np.clip(0.95, heights.min(), heights.max())
        assert display.auroc[name] == pytest.approx(roc_auc_score(y, s), rel=1e-12)
    assert "in-distribution kept" in ax.get_ylabel()
    assert "OOD taken for in-distribution" in ax.get_xlabel()
    assert set(display.level_line_.get_ydata()) == {0.95}
    assert display.chance_level_.get_xdata()[-1] == display.chance_level_.get_ydata()[-1] == 1


def test_the_mark_lies_on_the_curve_of_tied_scores(ax):
    # Four groups of ties lie on one straight line, from which scikit-learn drops points.
    tied = np.repeat([4, 3, 2, 1], 5)
    display = OODRocCurveDisplay(
        id_scores=tied, ood_scores={"same": tied}, tpr=0.6, rule="roc_curve"
    ).plot(ax)
    assert 0.75 not in display.lines_["same"].get_xdata()
    assert [each[0] for each in display.marks_["same"].get_data()] == [0.75, 0.75]
    assert legend_of(ax) == ("FPR60 (roc_curve's rule) / AUROC, %", ["same: 75.0 / 50.0"])


@pytest.mark.parametrize("cls", OF_SCORES)
def test_both_displays_show_the_number_of_the_report_by_either_rule(cls):
    inside, outside = np.arange(40.0), {"far": np.r_[1.0, 2.0, 3.0, 30.0]}
    numbers = []
    for rule in ("paper", "roc_curve"):
        display = cls(id_scores=inside, ood_scores=outside, rule=rule).plot()
        found = measure_scores(inside, outside, None, rule=rule).sets["far"]
        assert display.fpr_at_tpr == {"far": found.fpr95}
        title, (*_, entry) = legend_of(display.ax_)
        assert title == f"FPR95 ({rule}'s rule) / AUROC, %"
        assert entry == f"far: {100 * found.fpr95:.1f} / {100 * found.auroc:.1f}"
        numbers.append(found.fpr95)
    assert numbers == [0.5, 0.75]


@pytest.mark.parametrize("cls", OF_SCORES)
def test_several_sets_of_labelled_scores(cls):
    y_true, y_score = [1, -1, 1, -1, -1], [3.0, 1.0, 2.0, 2.5, 0.0]
    names = ["", "near", "", "far", "near"]
    display = cls.from_predictions(y_true, y_score, ood_names=names)
    expected = cls(id_scores=[3, 2], ood_scores={"near": [1, 0], "far": [2.5]}).plot()
    assert legend_of(display.ax_) == legend_of(expected.ax_)
    assert list(display.auroc) == ["near", "far"]
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        cls.from_predictions(y_true, y_score, ood_names=names[1:])


@pytest.mark.parametrize("cls", OF_SCORES)
def test_a_true_positive_rate_out_of_range(cls):
    with pytest.raises(ValueError, match=r"tpr is 95, .*did you mean 0.95"):
        cls(id_scores=[1, 2], ood_scores=[0, 1], tpr=95)
    with pytest.raises(ValueError, match="rule is 'authors'"):
        cls(id_scores=[1, 2], ood_scores=[0, 1], rule="authors")


# The look of the displays.


def test_lines_are_told_apart_without_colour(ax):
    sets = {f"set {n}": [n, n + 1] for n in range(len(STYLES))}
    display = OODRocCurveDisplay(id_scores=[1, 2], ood_scores=sets).plot(ax)
    # matplotlib has no public name for the offset and the dashes of a line.
    patterns = [str(line._unscaled_dash_pattern) for line in display.lines_.values()]
    assert len(set(patterns)) == len(STYLES)
    histograms = ScoreHistogramDisplay(id_scores=[1, 2], ood_scores=sets).plot().histograms_
    filled = histograms["in-distribution"]
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
