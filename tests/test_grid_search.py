"""Tests of searches with scikit-learn: Pipeline, GridSearchCV and worker processes."""

from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skdice import DICEDetector, LinearHead
from skdice.shaping import ReAct


@pytest.fixture(scope="module")
def labelled(fashion):
    """Return in-distribution rows with the label +1, followed by OOD rows with the label -1."""
    outliers = fashion.ood["mnist"][:300]
    X = np.concatenate([fashion.id_test[:600], outliers]).astype(np.float32)
    return X, np.repeat([1, -1], [600, 300])


def search(head, grid, **parameters):
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    return GridSearchCV(
        DICEDetector(head, shaping=ReAct()), grid, cv=folds, scoring="roc_auc", **parameters
    )


@pytest.mark.slow
def test_grid_search_over_sparsity_and_shaping(fashion, labelled):
    X, y = labelled
    grid = {"sparsity": [0, 0.1, 0.9], "shaping__quantile": [0.5, 0.9]}
    parallel = search(fashion.head, grid, n_jobs=2).fit(X, y)
    serial = search(fashion.head, grid).fit(X, y)
    scores = parallel.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) == 6
    np.testing.assert_allclose(scores, serial.cv_results_["mean_test_score"], rtol=1e-6)
    best = parallel.best_estimator_
    assert best.head is fashion.head
    # The refit trains on the in-distribution rows only.
    assert best.n_samples_seen_ == 600
    assert parallel.best_score_ > 0.9


def test_labels_in_sorted_order_need_shuffled_folds(fashion, labelled):
    X, y = labelled
    detector = DICEDetector(fashion.head, sparsity=0.1)
    shuffled = cross_val_score(
        detector, X, y, scoring="roc_auc", cv=StratifiedKFold(2, shuffle=True, random_state=1)
    )
    assert (shuffled > 0.9).all()
    halves = [(np.arange(600), np.arange(600, 900)), (np.arange(600, 900), np.arange(600))]
    with pytest.raises(ValueError, match=r"labelled -1.*StratifiedKFold\(shuffle=True\)"):
        cross_val_score(detector, X, y, cv=halves, scoring=lambda *_: 0.0, error_score="raise")


def test_a_pipeline_searches_its_last_step(fashion, labelled):
    X, y = labelled
    pipeline = make_pipeline(FunctionTransformer(), DICEDetector(fashion.head))
    folds = StratifiedKFold(2, shuffle=True, random_state=0)
    grid_search = GridSearchCV(
        pipeline, {"dicedetector__sparsity": [0.1, 0.95]}, cv=folds, scoring="roc_auc"
    ).fit(X, y)
    assert grid_search.best_params_ == {"dicedetector__sparsity": 0.1}
    assert set(grid_search.predict(X)) == {-1, 1}


def weight_file(detector, X, y=None):
    """Return the inode number of the file that the weight of the head is mapped from."""
    return float(Path(detector.head.weight.filename).stat().st_ino)


def test_all_workers_map_one_copy_of_the_head(tmp_path):
    rng = np.random.default_rng(0)
    # joblib maps arrays of more than 1 MB, and this weight has 1.2 MB.
    head = LinearHead(rng.normal(size=(600, 256)))
    X = np.abs(rng.normal(size=(60, 256)))
    with joblib.parallel_config("loky", n_jobs=2, temp_folder=str(tmp_path)):
        found = GridSearchCV(
            DICEDetector(head), {"sparsity": [0, 0.1, 0.5, 0.7]}, cv=3, scoring=weight_file
        ).fit(X)
    inodes = [found.cv_results_[f"split{i}_test_score"] for i in range(3)]
    assert len(np.unique(inodes)) == 1


def test_a_fitted_detector_scores_in_worker_processes(fashion):
    detector = DICEDetector(fashion.head, sparsity=0.1).fit(fashion.id_train)
    blocks = np.array_split(fashion.id_test, 4)
    scores = joblib.Parallel(n_jobs=2)(
        joblib.delayed(detector.score_samples)(block) for block in blocks
    )
    np.testing.assert_allclose(
        np.concatenate(scores), detector.score_samples(fashion.id_test), rtol=1e-5
    )
