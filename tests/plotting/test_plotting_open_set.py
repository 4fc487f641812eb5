"""Tests of the displays of classifiers that may say "unknown"."""

import pytest

pytest.importorskip("matplotlib")

from copy import deepcopy

import matplotlib.pyplot as plt
import numpy as np
from drawing import drawn, legend_of
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from skdice import DICEDetector, OpenSetClassifier
from skdice.metrics import aurc, oscr_auc, oscr_curve, risk_coverage_curve
from skdice.plotting import OpenSetDisplay, RiskCoverageDisplay

pytestmark = pytest.mark.usefixtures("matplotlib_left_alone")

DISPLAYS = [OpenSetDisplay, RiskCoverageDisplay]


@pytest.fixture(scope="module")
def judged():
    """A fitted classifier, and rows and labels to judge it by."""
    X, y = load_digits(return_X_y=True)
    y[y >= 8] = -1
    detector = DICEDetector(None, sparsity=0)
    model = OpenSetClassifier(LogisticRegression(max_iter=200), detector, random_state=0)
    return model.fit(X[::2] / 16, y[::2]), X[1::2] / 16, y[1::2]


@pytest.mark.parametrize("cls", DISPLAYS)
def test_both_ways_to_make_a_display_draw_the_metric(judged, ax, cls):
    model, X, y = judged
    predictions = y, model.predict_known(X), model.score_samples(X)
    display = drawn(cls.from_estimator(model, X, y, ax=ax, name="digits"), ax)
    if cls is OpenSetDisplay:
        first, second, _ = oscr_curve(*predictions)
        area = f"(OSCR area {oscr_auc(*predictions):.3f})"
    else:
        first, second, _ = risk_coverage_curve(*predictions)
        area = f"(AURC {aurc(*predictions):.3f})"
    np.testing.assert_array_equal(display.line_.get_xdata(), first)
    np.testing.assert_array_equal(display.line_.get_ydata(), second)
    assert legend_of(ax) == ("the mark is the threshold", [f"digits {area}"])
    other = cls.from_predictions(*predictions)
    np.testing.assert_array_equal(other.line_.get_xydata(), display.line_.get_xydata())
    assert other.operating_point_ is None
    assert legend_of(other.ax_) == ("", [area])


def test_the_mark_is_what_predict_does(judged):
    model, X, y = judged
    predicted = model.predict(X)
    unknown, accepted = y == -1, predicted != -1
    display = OpenSetDisplay.from_estimator(model, X, y)
    assert display.operating_point == pytest.approx(
        (accepted[unknown].mean(), (predicted == y)[~unknown].mean())
    )
    risk_coverage = RiskCoverageDisplay.from_estimator(model, X, y)
    assert risk_coverage.operating_point == pytest.approx(
        (accepted.mean(), (predicted != y)[accepted].mean())
    )
    # One threshold for all rows is a point of the curves.
    for each in (display, risk_coverage):
        distance = np.abs(each.line_.get_xydata() - each.operating_point_.get_xydata()).max(axis=1)
        assert distance.min() < 1e-12


@pytest.mark.parametrize("cls", DISPLAYS)
def test_curves_on_the_same_axes_have_looks_and_names_of_their_own(judged, ax, cls):
    model, X, y = judged
    cls.from_estimator(model, X, y, ax=ax, name="$a_1$")
    second = cls.from_estimator(model, X, y, ax=ax, name="b")
    third = second.plot(ax, name="c", color="black", linewidth=3)
    drawn(third, ax)
    assert [text.split(" (")[0] for text in legend_of(ax)[1]] == [r"\$a_1\$", "b", "c"]
    curves = [line for line in ax.get_lines() if len(line.get_xdata()) > 1]
    assert len({line.get_color() for line in curves}) == 3
    assert third.line_.get_linewidth() == 3
    assert third.operating_point_.get_color() == "black"


@pytest.mark.parametrize("cls", DISPLAYS)
def test_data_alone(ax, cls):
    first, second = cls._names
    display = drawn(cls(**{first: [0, 0.5, 1], second: [0, 0.2, 0.4]}).plot(ax), ax)
    assert display.operating_point_ is None
    assert ax.get_legend() is None
    np.testing.assert_array_equal(getattr(display, second), [0, 0.2, 0.4])
    with pytest.raises(ValueError, match=f"{first} has 2 values and {second} has 1"):
        cls(**{first: [0, 1], second: [0]})
    with pytest.raises(ValueError, match=f"{second} holds 0 to 40, expected fractions"):
        cls(**{first: [0, 1], second: [0, 40]})
    assert not plt.get_fignums()


def test_a_classifier_that_accepts_nothing_has_no_mark(judged):
    model, X, y = judged
    strict = deepcopy(model)
    strict.detector_.offset_ = 1e9
    assert RiskCoverageDisplay.from_estimator(strict, X, y).operating_point is None


def test_without_unknown_rows(judged):
    model, X, y = judged
    with pytest.raises(ValueError, match="y_true has no unknown row"):
        OpenSetDisplay.from_estimator(model, X[y != -1], y[y != -1])
    RiskCoverageDisplay.from_estimator(model, X[y != -1], y[y != -1])
