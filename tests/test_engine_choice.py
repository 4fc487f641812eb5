"""The engines of the CPU behind a detector: whichever is chosen, the results are the same."""

import numpy as np
import pytest
from reference import dice_scores

import skdice._computation
import skdice._path
from skdice import DICEDetector, DICEDetectorCV, LinearHead, sparsity_path
from skdice.features import open_features, save_features
from skdice.shaping import ASH, ReAct

TOLERANCE = {np.float16: 1e-5, np.float32: 1e-5, np.float64: 1e-12}


@pytest.fixture
def engine(monkeypatch):
    """Return a function that has one engine chosen from then on."""

    def choose(name):
        monkeypatch.setattr(skdice._computation, "choose_engine", lambda *shape: name)
        monkeypatch.setattr(skdice._path, "choose_path_engine", lambda *shape: name)

    return choose


def problem(dtype, n_classes=30, n_features=140):
    rng = np.random.default_rng(0)
    head = LinearHead(rng.normal(size=(n_classes, n_features)), rng.normal(size=n_classes))
    return head, np.maximum(rng.normal(size=(1500, n_features)), 0).astype(dtype)


def negated_sum(logits):
    return -logits.sum(axis=1)


@pytest.mark.parametrize("score_func", ["energy", "max_logit", "msp", "gen", negated_sum])
@pytest.mark.parametrize("shaping", [None, ReAct(), ASH()], ids=repr)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_both_engines_score_alike(engine, dtype, shaping, score_func):
    head, X = problem(dtype)
    detector = DICEDetector(head, sparsity=0.8, shaping=shaping, score_func=score_func)
    results = []
    for name in ("dense", "sparse"):
        engine(name)
        detector.fit(X)
        scores, logits = detector.score_samples(X), detector.logits(X)
        assert scores.dtype == logits.dtype == (np.float64 if dtype == np.float64 else np.float32)
        results.append([scores, logits, [detector.offset_]])
    for dense, sparse in zip(*results, strict=True):
        np.testing.assert_allclose(sparse, dense, rtol=5 * TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("sparsity", [0, 0.1, 0.7, 0.95])
@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_either_engine_is_the_papers_formula(engine, name, sparsity):
    head, X = problem(np.float64)
    engine(name)
    found = DICEDetector(head, sparsity=sparsity).fit(X).score_samples(X)
    np.testing.assert_allclose(
        found, dice_scores(head.weight, head.bias, X.mean(axis=0), X, 100 * sparsity), rtol=1e-12
    )


@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_blocks_threads_and_sources_change_nothing(engine, name, tmp_path):
    head, X = problem(np.float32)
    engine(name)
    save_features(tmp_path / "X.npz", X)
    expected = DICEDetector(head).fit(X).score_samples(X)
    for options in ({"batch_size": 64}, {"batch_size": 333, "n_jobs": 3}, {"n_jobs": 2}):
        detector = DICEDetector(head, **options).fit(X)
        for rows in (X, np.asfortranarray(X), open_features(tmp_path / "X.npz")):
            np.testing.assert_allclose(detector.score_samples(rows), expected, rtol=1e-6)


def test_the_sparse_engine_names_the_row_that_overflows(engine):
    head, X = problem(np.float32)
    engine("sparse")
    detector = DICEDetector(head).fit(X)
    X[1234] = 3e38
    with pytest.raises(ValueError, match="the score of row 1234 is"):
        detector.score_samples(X)
    with pytest.raises(ValueError, match="the logits of row 1234 is"):
        detector.logits(X)


@pytest.mark.parametrize("score_func", ["energy", "max_logit", "msp", "gen"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_path_is_the_same_by_both_engines(engine, dtype, score_func):
    head, X = problem(dtype)
    X[:, :40] = 0  # ties: several sparsities give one mask
    sparsities = [0.5, 0, 0.95, 0.5, 0.1, 0.3]
    paths = []
    for name in ("dense", "sparse"):
        engine(name)
        paths.append(sparsity_path(head, X[:500], X, sparsities, score_func=score_func))
    np.testing.assert_allclose(*paths, rtol=5 * TOLERANCE[dtype])
    assert np.array_equal(paths[1][0], paths[1][3])


def test_the_search_is_the_same_by_both_engines(engine):
    head, X = problem(np.float64)
    y = np.where(np.arange(len(X)) % 4, 1, -1)
    X[y == -1] *= 0.9
    found = []
    for name in ("dense", "sparse"):
        engine(name)
        found.append(DICEDetectorCV(head).fit(X, y).cv_results_["mean_test_score"])
    np.testing.assert_allclose(*found, rtol=1e-12)


def test_verbose_names_the_engine(engine, capsys):
    head, X = problem(np.float32)
    for name in ("dense", "sparse"):
        engine(name)
        DICEDetector(head, verbose=1).fit(X).score_samples(X)
        assert f"scores, {name} engine" in capsys.readouterr().err


def test_without_numba_all_is_dense(engine, monkeypatch):
    head, X = problem(np.float32)
    engine("sparse")
    for module in (skdice._computation, skdice._path):
        monkeypatch.setattr(module, "has_extra", lambda name: False)
        monkeypatch.setattr(module, "available_threads", lambda: 1)
    expected = DICEDetector(head, sparsity=0.5).fit(X).score_samples(X)
    np.testing.assert_allclose(sparsity_path(head, X, X, [0.5])[0], expected, rtol=1e-6)
