"""The p-values of the members of an ensemble."""

import pytest

pytest.importorskip("matplotlib")

import numpy as np
from drawing import drawn, legend_of
from sklearn.exceptions import NotFittedError

from skdice import DICEDetector, make_ensemble
from skdice.plotting import MemberPvaluesDisplay

pytestmark = pytest.mark.usefixtures("matplotlib_left_alone")


@pytest.fixture(scope="module")
def ensemble(fashion):
    fitted = make_ensemble(fashion.head).fit(fashion.id_train)
    return fitted.calibrate(fashion.id_test[:1000], contamination=0.1, method="conformal")


def test_one_row_shows_each_member_and_the_verdict(fashion, ensemble, ax):
    X = fashion.ood["mnist"][:1]
    display = drawn(MemberPvaluesDisplay.from_estimator(ensemble, X, ax=ax), ax)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["energy", "dice", "fdbd", "vim", "combined"]
    expected = np.append(ensemble.member_pvalues(X)[0], ensemble.pvalues(X))
    (points,) = display.points_
    np.testing.assert_allclose(points.get_xdata(), np.maximum(expected, 1e-8))
    assert points.get_ydata().tolist() == [0, 1, 2, 3, 4]
    assert display.level_line_.get_xdata() == [0.1, 0.1]
    assert [text.get_text() for text in ax.texts] == [f"{pvalue:.2g}" for pvalue in expected]
    assert legend_of(ax)[1] == ["row 0", "level 0.1"]
    assert ax.get_xscale() == "log"


def test_a_bar_is_as_long_as_the_evidence(fashion, ensemble, ax):
    """A bar goes from 1 to the p-value."""
    X = fashion.id_test[2000:2003]
    display = drawn(MemberPvaluesDisplay.from_estimator(ensemble, X, ax=ax), ax)
    for row, bars in enumerate(display.bars_):
        segments = np.array(bars.get_segments())
        np.testing.assert_allclose(segments[:4, 0, 0], ensemble.member_pvalues(X)[row])
        assert (segments[:, 1, 0] == 1).all()
        np.testing.assert_array_equal(segments[:, 0, 1], display.points_[row].get_ydata())
    assert not ax.texts


def test_without_conformal_calibration_there_is_no_combined_pvalue(fashion, ax):
    ensemble = make_ensemble(fashion.head).fit(fashion.id_train[:1000])
    display = drawn(MemberPvaluesDisplay.from_estimator(ensemble, fashion.id_test[:1], ax=ax), ax)
    assert display.combined_pvalues is None
    assert [label.get_text() for label in ax.get_yticklabels()][-1] == "vim"


def test_data_frames_of_the_ensemble_are_drawn(fashion, ensemble, ax):
    pytest.importorskip("pandas")
    X = fashion.id_test[:2]
    expected = ensemble.member_pvalues(X)
    ensemble.set_output(transform="pandas")
    try:
        display = MemberPvaluesDisplay.from_estimator(ensemble, X, ax=ax)
    finally:
        ensemble.set_output(transform="default")
    np.testing.assert_array_equal(display.member_pvalues, expected)


@pytest.mark.parametrize("pvalue", [0.0, 1e-300, 1e-9])
def test_a_pvalue_beyond_the_axis_is_an_arrow_at_its_end(ax, pvalue):
    """The other p-values keep their room, and a p-value of 0 has a place on the log axis."""
    display = MemberPvaluesDisplay(member_pvalues=[[pvalue, 0.2]], member_names=["far", "near"])
    drawn(display.plot(ax), ax)
    assert display.points_[0].get_xdata().tolist() == [1e-8, 0.2]
    (arrows,) = [line for line in ax.lines if line.get_marker() == "<"]
    assert arrows.get_xydata().tolist() == [[1e-8, 0]]
    assert ax.get_xlim() == (1e-8, 1)
    assert ax.texts[0].get_text() == f"{pvalue:.2g}"


def test_displays_side_by_side_do_not_overlap():
    """A warning of the layout engine is an error here."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for ax in (left, right):
        MemberPvaluesDisplay(member_pvalues=[[0.5, 0.1]], member_names=["a", "b"]).plot(ax)
    figure.draw_without_rendering()
    assert left.get_tightbbox().x1 <= right.get_tightbbox().x0


def test_names_are_shown_as_they_are(ax):
    display = MemberPvaluesDisplay(
        member_pvalues=[[0.5], [0.1]], member_names=["$x$"], row_names=["_a", "b"]
    )
    drawn(display.plot(ax), ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == [r"\$x\$"]
    assert legend_of(ax)[1] == [" _a", "b"]


def test_what_cannot_be_drawn_is_refused(fashion, ensemble):
    with pytest.raises(TypeError, match="instance of DICEDetector, expected a fitted Conformal"):
        MemberPvaluesDisplay.from_estimator(DICEDetector(fashion.head), fashion.id_test[:1])
    with pytest.raises(NotFittedError):
        MemberPvaluesDisplay.from_estimator(make_ensemble(fashion.head), fashion.id_test[:1])
    with pytest.raises(ValueError, match="there are 6 rows, expected 1 to 5"):
        MemberPvaluesDisplay.from_estimator(ensemble, fashion.id_test[:6])
    good = {"member_pvalues": [[0.5, 0.1]], "member_names": ["a", "b"]}
    for wrong, message in (
        ({"member_pvalues": [0.5, 0.1]}, "member_pvalues has 1 dimensions, expected 2"),
        ({"member_pvalues": [[0.5, 1.1]]}, "member_pvalues has values outside of 0 to 1"),
        ({"member_pvalues": [[0.5, np.nan]]}, "member_pvalues has values outside of 0 to 1"),
        ({"member_names": ["a"]}, "there are 1 member_names, expected 2"),
        ({"combined_pvalues": [0.1, 0.2]}, "there are 2 combined_pvalues, expected 1"),
        ({"level": 5}, "level is 5, expected a number between 0 and 1"),
        ({"row_names": ["a", "b"]}, "there are 2 row_names, expected 1"),
    ):
        with pytest.raises(ValueError, match=message):
            MemberPvaluesDisplay(**good | wrong)
