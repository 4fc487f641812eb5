import numpy as np
import pytest
from joblib import parallel_config
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_score

import skdice
from skdice import DICEDetector, DICEDetectorCV, LinearHead, sparsity_path
from skdice._pseudo_outliers import GENERATORS
from skdice._trials import LEAVE_OUT, PSEUDO_OUTLIERS, fold_trials, predicted_classes
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
def test_the_path_is_that_of_single_detectors(fashion, dtype, shaping, score_func):
    train, test = fashion.id_train[:700].astype(dtype), fashion.ood["mnist"][:900].astype(dtype)
    options = {"shaping": shaping, "score_func": score_func}
    scores = sparsity_path(fashion.head, train, test, SPARSITIES, batch_size=200, **options)
    for sparsity, found in zip(SPARSITIES, scores, strict=True):
        detector = DICEDetector(fashion.head, sparsity=sparsity, **options).fit(train)
        expected = detector.score_samples(test)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-5 if dtype != np.float64 else 1e-12)


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
def test_sparsities_out_of_range(fashion, labelled, sparsities, reason):
    with pytest.raises(ValueError, match=reason):
        sparsity_path(fashion.head, *labelled[:1] * 2, sparsities)
    with pytest.raises(ValueError, match=reason):
        DICEDetectorCV(fashion.head, sparsities).fit(*labelled)


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
        fashion.head, SPARSITIES, shaping=shaping, scoring=scoring, cv=folds
    ).fit(X, y)

    def key(params):
        return (params["sparsity"], repr(params.get("shaping")))

    results = expected.cv_results_
    place = {key(each): n for n, each in enumerate(results["params"])}
    order = [place[key(each)] for each in found.cv_results_["params"]]
    for name in ("split0", "split1", "split2", "mean", "std"):
        name += "_test_score"
        np.testing.assert_allclose(
            found.cv_results_[name], results[name][order], rtol=1e-5, atol=1e-7
        )
    assert found.best_score_ == pytest.approx(expected.best_score_)
    assert found.cv_results_["mean_test_score"][found.best_index_] == found.best_score_
    assert (found.cv_results_["rank_test_score"][found.best_index_]) == 1
    assert set(found.cv_results_) <= set(results)
    best = DICEDetector(fashion.head, sparsity=found.sparsity_, shaping=found.best_shaping_).fit(
        X, y
    )
    np.testing.assert_array_equal(found.score_samples(X), best.score_samples(X))
    assert found.offset_ == best.offset_


def test_it_is_a_detector_afterwards(fashion, labelled, tmp_path):
    X, y = labelled
    detector = DICEDetectorCV(fashion.head, [0.1, 0.95]).fit(X, y)
    assert detector.sparsity_ == 0.1
    assert detector.n_splits_ == 5
    assert detector.n_samples_seen_ == 800
    detector.calibrate(fashion.id_test[800:], contamination=0.1)
    assert set(detector.predict(X)) == {-1, 1}
    detector.save(tmp_path / "d.safetensors")
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
        DICEDetectorCV(fashion.head, [0, 0.1], cv=2), X, y, scoring="roc_auc", cv=folds
    )
    assert (scores > 0.9).all()


def test_files_and_known_outliers_beside(fashion, labelled, tmp_path):
    X, y = labelled
    np.save(tmp_path / "in.npy", X[y == 1])
    np.save(tmp_path / "out.npy", X[y == -1])
    found = DICEDetectorCV(
        fashion.head, SPARSITIES, outliers=open_features(tmp_path / "out.npy"), cv=2
    ).fit(open_features(tmp_path / "in.npy"))
    inside, outside = X[y == 1], X[y == -1]
    folds = StratifiedKFold(2, shuffle=True, random_state=0).split(inside, np.ones(800))
    for n, (train, test) in enumerate(folds):
        for place, sparsity in enumerate(SPARSITIES):
            detector = DICEDetector(fashion.head, sparsity=sparsity).fit(inside[train])
            scores = detector.score_samples(np.concatenate([inside[test], outside]))
            auroc = roc_auc_score(np.repeat([1, -1], [400, 400]), scores)
            assert found.cv_results_[f"split{n}_test_score"][place] == pytest.approx(auroc)


def test_outliers_in_a_file_stay_with_this_process(fashion, labelled, tmp_path):
    """A mapped file cannot be sent to other processes, as rows in memory are."""
    X, y = labelled
    np.save(tmp_path / "out.npy", X[y == -1])
    outliers = open_features(tmp_path / "out.npy")
    search = DICEDetectorCV(fashion.head, SPARSITIES, outliers=outliers, cv=2)
    expected = search.fit(X[y == 1]).cv_results_["mean_test_score"]
    with parallel_config(backend="loky", n_jobs=2):
        found = search.fit(X[y == 1]).cv_results_["mean_test_score"]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", PSEUDO_OUTLIERS)
def test_pseudo_outliers(fashion, name):
    detector = DICEDetectorCV(fashion.head, SPARSITIES, outliers=name, cv=3)
    first = detector.fit(fashion.id_test[:900]).cv_results_["mean_test_score"]
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(
        detector.fit(fashion.id_test[:900]).cv_results_["mean_test_score"], first
    )


def test_leaving_one_class_out(fashion):
    X = fashion.id_test[:600]
    found = DICEDetectorCV(fashion.head, SPARSITIES, outliers="leave-one-class-out", cv=3).fit(X)
    weight, bias = fashion.head.weight, fashion.head.bias
    classes = (X @ weight.T + bias).argmax(axis=1)
    folds = StratifiedKFold(3, shuffle=True, random_state=0).split(X, np.ones(600))
    for n, (train, test) in enumerate(folds):
        for place, sparsity in enumerate(SPARSITIES):
            aurocs = []
            for left_out in range(10):
                head = LinearHead(np.delete(weight, left_out, 0), np.delete(bias, left_out))
                known = X[train][classes[train] != left_out]
                scores = DICEDetector(head, sparsity=sparsity).fit(known).score_samples(X[test])
                aurocs.append(roc_auc_score(classes[test] != left_out, scores))
            auroc = found.cv_results_[f"split{n}_test_score"][place]
            assert auroc == pytest.approx(np.mean(aurocs))
    # All classes are back in the detector.
    assert found.coef_.shape == weight.shape


def test_leaving_classes_out_of_many():
    """Of more than ten classes, each fold leaves out ten, the same ones in every fit."""
    rng = np.random.default_rng(0)
    head, X = LinearHead(rng.normal(size=(40, 8))), rng.normal(size=(900, 8))
    classes = predicted_classes(head, X)
    fold = np.arange(600), np.arange(600, 900)
    trials = list(fold_trials(head, X, np.ones(900, int), fold, LEAVE_OUT, classes))
    assert len(trials) == 10
    left_out = {int(classes[600:][trial.y_true == -1][0]) for trial in trials}
    assert len(left_out) == 10
    for trial in trials:
        assert trial.head.weight.shape == (39, 8)


@pytest.mark.parametrize(
    "X", [np.tile([[1.0, 0, 0]], (30, 1)), np.repeat(np.eye(3), [28, 1, 1], axis=0)]
)
def test_no_class_can_be_left_out(X):
    with pytest.raises(ValueError, match="needs rows of two classes to fit on and to score"):
        DICEDetectorCV(LinearHead(np.eye(3)), cv=3, outliers="leave-one-class-out").fit(X)


def test_what_pseudo_outliers_keep():
    rng = np.random.default_rng(0)
    X = np.abs(rng.normal(size=(4000, 3))).astype(np.float32)
    X[:, 1] += X[:, 0]
    head = LinearHead(np.eye(3))
    permuted = GENERATORS["permutation"](X, head, rng)
    np.testing.assert_array_equal(np.sort(permuted, axis=0), np.sort(X, axis=0))
    assert abs(np.corrcoef(permuted.T)[0, 1]) < 0.1 < np.corrcoef(X.T)[0, 1]
    noise = GENERATORS["noise"](X, head, rng)
    np.testing.assert_allclose(noise.mean(axis=0), X.mean(axis=0), rtol=0.1)
    assert (noise >= X.min(axis=0)).all()
    assert (noise <= X.max(axis=0)).all()
    mixed = GENERATORS["mixture"](X, head, np.random.default_rng(1))
    assert mixed.dtype == noise.dtype == permuted.dtype == np.float32
    other = 2 * mixed - X
    assert (other.argmax(axis=1) != X.argmax(axis=1)).all()
    with pytest.raises(ValueError, match="all 5 rows of a fold for class 0"):
        GENERATORS["mixture"](np.tile([[1.0, 0, 0]], (5, 1)), head, rng)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"outliers": "mixup"}, "outliers is 'mixup', expected one of permutation, mixture"),
        ({"outliers": np.ones((3, 2))}, "outliers has 2 features, but X has 128"),
        ({"shaping": []}, "shaping is an empty list"),
        ({"cv": KFold(3)}, "a fold has no (outliers|in-distribution)"),
        ({"scoring": "neg_brier_score"}, "predict_proba"),
        ({"scoring": "accuracy"}, "predict"),
        ({"head": None}, "The 'head' parameter of DICEDetectorCV"),
    ],
)
def test_what_cannot_be_searched_is_said(fashion, labelled, change, reason):
    detector = DICEDetectorCV(**{"head": fashion.head, "sparsities": [0, 0.5], **change})
    with pytest.raises((ValueError, AttributeError), match=reason):
        detector.fit(*labelled)
    assert not hasattr(detector, "coef_")


def test_no_outliers_at_all(fashion):
    with pytest.raises(ValueError, match=r"no outliers to choose by: label known ones -1 in y"):
        DICEDetectorCV(fashion.head).fit(fashion.id_test)
