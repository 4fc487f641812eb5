"""scikit-learn's own battery for every estimator, and the checks that it leaves out."""

from collections import Counter
from unittest import SkipTest

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import (
    check_dataframe_column_names_consistency,
    check_estimator,
    check_global_output_transform_pandas,
    check_param_validation,
    check_set_output_transform,
    check_set_output_transform_pandas,
    check_transformer_get_feature_names_out,
    check_transformer_get_feature_names_out_pandas,
    estimator_checks_generator,
)

import skdice._base
from skdice import DICEDetector, DICEDetectorCV, FDBDDetector, LinearHead, ViMDetector
from skdice._head import as_linear_head
from skdice.shaping import ASH, VRA, ReAct, Scale

pytestmark = [
    # The battery's matrices have two to five columns, so some class loses all its weights.
    pytest.mark.filterwarnings("ignore:.*left without any weight"),
    # The battery fits few rows, and features of any sign as if they were logits.
    pytest.mark.filterwarnings("ignore:.*fewer than the .* features"),
    pytest.mark.filterwarnings("ignore:.*nothing but rounding"),
    pytest.mark.filterwarnings("ignore:alpha_ is -"),
    # Checks of scikit-learn that skip themselves cause this warning.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning"),
]


class SearchWithOutliers(DICEDetectorCV):
    """A search that has its outliers already, because the battery gives `fit` only rows."""

    def fit(self, X, y=None):
        shape = X.shape if hasattr(X, "shape") else np.asarray(X).shape
        outliers = -np.ones((4, shape[1])) if len(shape) == 2 else None
        return super().fit(X, outliers=outliers)


SHAPINGS = [ReAct(), ReAct(threshold=1.0), VRA(), VRA(alpha=0.1, beta=1.0), ASH(), Scale()]
DETECTORS = [
    DICEDetector(head="identity"),
    DICEDetector(head="identity", sparsity=0, score_func="msp", shaping=ReAct()),
    SearchWithOutliers(head="identity", cv=2),
    FDBDDetector(head="identity"),
    ViMDetector(head="identity"),
]
# The battery of the oldest supported scikit-learn has at least these checks.
MIN_CHECKS = 44
# Checks that run once per array library and device, and are skipped for those not here.
NEED_OTHER_LIBRARIES = {"check_array_api_input", "check_array_api_mixed_inputs"}


def assert_all_passed(results):
    """Assert that all checks ran but those of libraries and devices that are not here."""
    by_status = {
        status: [each["check_name"] for each in results if each["status"] == status]
        for status in {each["status"] for each in results}
    }
    assert set(by_status.pop("skipped", [])) <= NEED_OTHER_LIBRARIES
    assert set(by_status) == {"passed"}
    assert len(by_status["passed"]) >= MIN_CHECKS


@pytest.mark.parametrize("estimator", [*DETECTORS, *SHAPINGS], ids=repr)
def test_battery(estimator):
    assert_all_passed(check_estimator(estimator, on_fail="raise"))


def failures(estimator):
    results = check_estimator(estimator, on_fail=None, on_skip=None)
    return Counter(each["check_name"] for each in results if each["status"] == "failed")


@pytest.mark.parametrize("first", [StandardScaler(), ReAct()], ids=repr)
def test_battery_of_a_pipeline(first):
    # Pipeline fits its steps in place and hands on no offset_, so a few checks fail for any
    # outlier detector in it. No check may fail for ours that passes for scikit-learn's.
    ours = make_pipeline(first, DICEDetector(head="identity"))
    theirs = make_pipeline(first, IsolationForest(n_estimators=5, random_state=0))
    results = check_estimator(ours, on_fail=None, on_skip=None)
    assert sum(each["status"] == "passed" for each in results) >= MIN_CHECKS - 4
    assert failures(ours) <= failures(theirs)


def width_of(check, monkeypatch):
    """Return the one width of the matrices on which a check fits a detector; 3 if it fits none."""
    widths = set()

    def recorded(head, n_features):
        widths.add(n_features)
        return as_linear_head(head, n_features)

    with monkeypatch.context() as patch:
        patch.setattr(skdice._base, "as_linear_head", recorded)
        check(DICEDetector(head="identity"))
    assert len(widths) <= 1
    return widths.pop() if widths else 3


@pytest.mark.parametrize("n_classes", [1, 4])
def test_battery_with_a_head_of_fixed_width(n_classes, monkeypatch):
    rng = np.random.default_rng(0)
    n_passed = 0
    for _, check in estimator_checks_generator(DICEDetector(head="identity")):
        try:
            head = LinearHead(rng.normal(size=(n_classes, width_of(check, monkeypatch))))
            check(DICEDetector(head))
        except SkipTest:
            assert check.func.__name__ in NEED_OTHER_LIBRARIES
        else:
            n_passed += 1
    assert n_passed >= MIN_CHECKS


@pytest.mark.parametrize("estimator", [*DETECTORS, *SHAPINGS], ids=repr)
def test_checks_that_the_battery_leaves_out(estimator):
    name = type(estimator).__name__
    check_param_validation(name, estimator)
    check_dataframe_column_names_consistency(name, estimator)


# These checks mix input with and without column names on purpose.
@pytest.mark.filterwarnings("ignore:X (has|does not have valid) feature names")
@pytest.mark.parametrize("estimator", SHAPINGS, ids=repr)
@pytest.mark.parametrize(
    "check",
    [
        check_global_output_transform_pandas,
        check_set_output_transform,
        check_set_output_transform_pandas,
        check_transformer_get_feature_names_out,
        check_transformer_get_feature_names_out_pandas,
    ],
    ids=lambda check: check.__name__,
)
def test_transformer_output_checks(estimator, check):
    check(type(estimator).__name__, estimator)
