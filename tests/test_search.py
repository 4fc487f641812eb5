"""Tests of sparsity_path and DICEDetectorCV."""

import inspect

import numpy as np
import pytest
from joblib import parallel_config
from sklearn import config_context
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    StratifiedGroupKFold,
    StratifiedKFold,
    cross_val_score,
    cross_validate,
)

import skdice
from skdice import DICEDetector, DICEDetectorCV, sparsity_path
from skdice.io import open_features
from skdice.metrics import neg_fpr95_scorer
from skdice.shaping import ASH, ReAct

SPARSITIES = [0, 0.1, 0.5, 0.9]


@pytest.fixture(scope="module")
def labelled(fashion):
    outliers = fashion.ood["mnist"][:400]
    X = np.concatenate([fashion.id_test[:800], outliers]).astype(np.float32)
    return X, np.repeat([1, -1], [800, 400])


@pytest.mark.parametrize("score_func", ["energy", "gen"])
@pytest.mark.parametrize("shaping", [None, ReAct(), ASH()], ids=repr)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_path_has_the_scores_of_single_detectors(fashion, dtype, shaping, score_func):
    train, test = fashion.id_train[:700].astype(dtype), fashion.ood["mnist"][:900].astype(dtype)
    options = {"shaping": shaping, "score_func": score_func}
    paths = sparsity_path(fashion.head, train, test, SPARSITIES, batch_size=200, **options)
    for sparsity, scores in zip(SPARSITIES, paths, strict=True):
        detector = DICEDetector(fashion.head, sparsity=sparsity, **options).fit(train)
        expected = detector.score_samples(test)
        assert scores.dtype == expected.dtype
        np.testing.assert_allclose(scores, expected, rtol=1e-5 if dtype != np.float64 else 1e-12)


@pytest.mark.parametrize(
    ("sparsities", "reason"),
    [
        ([0, 70], r"sparsities holds 70, .*did you mean 0.7\?"),
        ([1.0], "sparsities holds 1, expected"),
        ([np.nan], "holds nan"),
        ([], r"sparsities is \[\], expected a sequence"),
        (0.5, "sparsities.* 0.5"),
    ],
)
def test_sparsities_out_of_range_are_refused(fashion, labelled, sparsities, reason):
    with pytest.raises(ValueError, match=reason):
        sparsity_path(fashion.head, *labelled[:1] * 2, sparsities)
    with pytest.raises(ValueError, match=reason):
        DICEDetectorCV(fashion.head, sparsities=sparsities).fit(*labelled)


@pytest.mark.parametrize("scoring", ["roc_auc", "average_precision", neg_fpr95_scorer])
@pytest.mark.parametrize("shaping", [None, [None, ReAct(), ReAct(0.5)]], ids=["one", "list"])
def test_results_are_those_of_grid_search(fashion, labelled, shaping, scoring):
    X, y = labelled
    folds = StratifiedKFold(3, shuffle=True, random_state=1)
    grid = {"sparsity": SPARSITIES}
    if shaping is not None:
        grid["shaping"] = shaping
    expected = GridSearchCV(DICEDetector(fashion.head), grid, scoring=scoring, cv=folds).fit(X, y)
    found = DICEDetectorCV(
        fashion.head, sparsities=SPARSITIES, shaping=shaping, scoring=scoring, cv=folds
    ).fit(X, y)

    def key(params):
        return (params["sparsity"], repr(params.get("shaping")))

    results = expected.cv_results_
    # The two list the candidates in different orders.
    place = {key(params): n for n, params in enumerate(results["params"])}
    order = [place[key(params)] for params in found.cv_results_["params"]]
    for name in ("split0", "split1", "split2", "mean", "std"):
        name += "_test_score"
        np.testing.assert_allclose(
            found.cv_results_[name], results[name][order], rtol=1e-5, atol=1e-7
        )
    assert found.best_score_ == pytest.approx(expected.best_score_)
    assert found.cv_results_["mean_test_score"][found.best_index_] == found.best_score_
    assert found.cv_results_["rank_test_score"][found.best_index_] == 1
    assert set(found.cv_results_) <= set(results)
    best = DICEDetector(fashion.head, sparsity=found.sparsity_, shaping=found.best_shaping_).fit(
        X, y
    )
    np.testing.assert_array_equal(found.score_samples(X), best.score_samples(X))
    assert found.offset_ == best.offset_


def test_a_fitted_search_is_a_detector(fashion, labelled, tmp_path):
    X, y = labelled
    detector = DICEDetectorCV(fashion.head, sparsities=[0.1, 0.95]).fit(X, y)
    assert detector.sparsity_ == 0.1
    assert detector.n_splits_ == 5
    assert detector.n_samples_seen_ == 800
    detector.calibrate(fashion.id_test[800:], contamination=0.1)
    assert set(detector.predict(X)) == {-1, 1}
    skdice.save(detector, tmp_path / "d.safetensors")
    loaded = skdice.load(tmp_path / "d.safetensors")
    assert loaded.sparsity == 0.1
    np.testing.assert_array_equal(loaded.decision_function(X), detector.decision_function(X))
    again = clone(detector).set_params(sparsities=[0.95]).fit(X, y)
    assert again.sparsity_ == 0.95
    assert not hasattr(detector, "partial_fit")


def test_nested_cross_validation(fashion, labelled):
    X, y = labelled
    folds = StratifiedKFold(2, shuffle=True, random_state=0)
    scores = cross_val_score(
        DICEDetectorCV(fashion.head, sparsities=[0, 0.1], cv=2), X, y, scoring="roc_auc", cv=folds
    )
    assert (scores > 0.9).all()


def test_rows_and_outliers_may_be_in_files(fashion, labelled, tmp_path):
    X, y = labelled
    np.save(tmp_path / "in.npy", X[y == 1])
    np.save(tmp_path / "out.npy", X[y == -1])
    found = DICEDetectorCV(fashion.head, sparsities=SPARSITIES, cv=2).fit(
        open_features(tmp_path / "in.npy"), outliers=open_features(tmp_path / "out.npy")
    )
    inside, outside = X[y == 1], X[y == -1]
    folds = StratifiedKFold(2, shuffle=True, random_state=0).split(inside, np.ones(800))
    for n, (train, test) in enumerate(folds):
        for place, sparsity in enumerate(SPARSITIES):
            detector = DICEDetector(fashion.head, sparsity=sparsity).fit(inside[train])
            scores = detector.score_samples(np.concatenate([inside[test], outside]))
            auroc = roc_auc_score(np.repeat([1, -1], [400, 400]), scores)
            assert found.cv_results_[f"split{n}_test_score"][place] == pytest.approx(auroc)


def test_outliers_in_a_file_stay_with_this_process(fashion, labelled, tmp_path):
    """An open file cannot be sent to other processes, unlike rows in memory."""
    X, y = labelled
    np.save(tmp_path / "out.npy", X[y == -1])
    outliers = open_features(tmp_path / "out.npy")
    search = DICEDetectorCV(fashion.head, sparsities=SPARSITIES, cv=2)
    expected = search.fit(X[y == 1], outliers=outliers).cv_results_["mean_test_score"]
    with parallel_config(backend="loky", n_jobs=2):
        found = search.fit(X[y == 1], outliers=outliers).cv_results_["mean_test_score"]
    np.testing.assert_array_equal(found, expected)


def test_outliers_are_given_to_fit_and_never_to_the_constructor(fashion):
    parameters = inspect.signature(DICEDetectorCV).parameters
    assert "outliers" not in parameters
    assert parameters["head"].default is inspect.Parameter.empty
    kinds = {each.kind for name, each in parameters.items() if name != "head"}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize(
    ("cv", "splitter"),
    [
        (GroupKFold(3), GroupKFold(3)),
        (StratifiedGroupKFold(3), StratifiedGroupKFold(3)),
        (3, StratifiedGroupKFold(3, shuffle=True, random_state=0)),
        (None, StratifiedGroupKFold(5, shuffle=True, random_state=0)),
    ],
    ids=str,
)
def test_groups_stay_together_as_in_grid_search(fashion, labelled, cv, splitter):
    X, y = labelled
    # Groups of 30 rows have in-distribution rows and outliers, so every fold gets both.
    groups = np.arange(len(X)) % 40
    grid = {"sparsity": SPARSITIES}
    expected = GridSearchCV(DICEDetector(fashion.head), grid, scoring="roc_auc", cv=splitter)
    search = DICEDetectorCV(fashion.head, sparsities=SPARSITIES, cv=cv)
    for each in (expected, search):
        each.fit(X, y, groups=groups)
    assert search.n_splits_ == expected.n_splits_
    for n in range(search.n_splits_):
        name = f"split{n}_test_score"
        np.testing.assert_allclose(search.cv_results_[name], expected.cv_results_[name], rtol=1e-5)


def test_groups_of_another_length_and_missing_groups_are_refused(fashion, labelled):
    X, y = labelled
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        DICEDetectorCV(fashion.head).fit(X, y, groups=np.arange(5))
    with pytest.raises(ValueError, match="'groups' parameter should not be None"):
        DICEDetectorCV(fashion.head, cv=GroupKFold(3)).fit(X, y)


def test_another_cross_validation_can_route_outliers_and_groups(fashion, labelled):
    X, y = labelled
    inside, outside = X[y == 1], X[y == -1]
    with config_context(enable_metadata_routing=True):
        search = DICEDetectorCV(fashion.head, sparsities=[0, 0.1], cv=2)
        search.set_fit_request(outliers=True, groups=True)
        found = cross_validate(
            search,
            inside,
            scoring=lambda detector, rows: float(detector.n_samples_seen_),
            cv=2,
            params={"outliers": outside, "groups": np.arange(len(inside)) // 10},
            error_score="raise",
        )
    np.testing.assert_array_equal(found["test_score"], [400, 400])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shaping": []}, "shaping is an empty list"),
        ({"cv": KFold(3)}, "a fold has no (outliers|in-distribution)"),
        ({"scoring": "neg_brier_score"}, "predict_proba"),
        ({"scoring": "accuracy"}, "predict"),
        ({"head": None}, "head is None, expected"),
    ],
)
def test_parameters_that_cannot_be_searched_are_refused(fashion, labelled, change, reason):
    detector = DICEDetectorCV(**{"head": fashion.head, "sparsities": [0, 0.5], **change})
    with pytest.raises((ValueError, AttributeError), match=reason):
        detector.fit(*labelled)
    assert not hasattr(detector, "coef_")


@pytest.mark.parametrize(
    ("outliers", "error", "reason"),
    [
        (None, ValueError, "no outliers to choose by: label known outliers -1 in y, or give"),
        (np.ones((3, 2)), ValueError, "outliers has 2 features, but X has 128"),
        ("permutation", TypeError, "outliers is the path 'permutation': open it with"),
    ],
)
def test_outliers_that_cannot_be_used_are_refused(fashion, outliers, error, reason):
    detector = DICEDetectorCV(fashion.head)
    with pytest.raises(error, match=reason):
        detector.fit(fashion.id_test, outliers=outliers)
    assert not hasattr(detector, "coef_")
