"""The contributions of the units."""

import pytest

pytest.importorskip("matplotlib")

import numpy as np
from drawing import drawn, legend_of
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from skdice import DICEDetector, DICEDetectorCV
from skdice.io import open_features
from skdice.plotting import (
    UnitContributionDisplay,
)
from skdice.shaping import ReAct

pytestmark = pytest.mark.usefixtures("matplotlib_left_alone")


def test_unit_contributions_against_numpy(fashion, fitted, ax):
    X_id, X_ood = fashion.id_test[fashion.id_test_labels == 3], fashion.ood["mnist"]
    display = UnitContributionDisplay.from_estimator(fitted, X_id, X_ood, class_index=3, ax=ax)
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
            detector, fashion.id_test, fashion.ood, class_index=2, id_name="clothes", ax=ax
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
            detector.set_params(batch_size=size), rows, {"same": X}, class_index=1, ax=ax
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
    search = DICEDetectorCV(fashion.head, sparsities=[0.7], cv=2).fit(*labelled)
    display = UnitContributionDisplay.from_estimator(
        search, *[labelled[0]] * 2, class_index=0, ax=ax
    )
    np.testing.assert_array_equal(display.kept, search.mask_[0])


def test_unit_contributions_of_logits(ax):
    """One unit is enough for a picture."""
    detector = DICEDetector("identity", sparsity=0).fit(np.ones((3, 1)))
    display = UnitContributionDisplay.from_estimator(
        detector, [[1.0], [3.0]], [[0.0]], class_index=0, ax=ax
    )
    drawn(display, ax)
    assert (display.mean["in-distribution"], display.variance["in-distribution"]) == (2, 1)


def test_unit_contributions_that_cannot_be_drawn(fashion, fitted):
    rows = fashion.id_test[:5].astype(np.float64)

    def make(detector, X_id, ood, class_index):
        return UnitContributionDisplay.from_estimator(detector, X_id, ood, class_index=class_index)

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
