"""The choice of an engine: the results are the same whichever engine of the CPU is chosen."""

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
from reference import dice_scores
from sklearn.preprocessing import FunctionTransformer

from skdice import DICEDetector, DICEDetectorCV, LinearHead, sparsity_path
from skdice._engines import run as engine_run
from skdice._engines.run import forced_engine
from skdice.io import open_features, save_features
from skdice.shaping import ASH, ReAct

TOLERANCE = {np.float16: 1e-5, np.float32: 1e-5, np.float64: 1e-12}


@pytest.fixture
def engine():
    """Return a function that has one engine of the CPU chosen from then on."""
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(forced_engine(name))


def problem(dtype, n_classes=30, n_features=140):
    rng = np.random.default_rng(0)
    head = LinearHead(rng.normal(size=(n_classes, n_features)), rng.normal(size=n_classes))
    return head, np.maximum(rng.normal(size=(1500, n_features)), 0).astype(dtype)


def negated_sum(logits):
    return -logits.sum(axis=1)


@pytest.mark.parametrize("score_func", ["energy", "max_logit", "msp", "gen", negated_sum])
@pytest.mark.parametrize("shaping", [None, ReAct(), ASH()], ids=repr)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_all_engines_score_alike(engine, dtype, shaping, score_func):
    head, X = problem(dtype)
    detector = DICEDetector(head, sparsity=0.8, shaping=shaping, score_func=score_func)
    results = []
    for name in ("dense", "sparse", "few"):
        engine(name)
        detector.fit(X)
        scores, logits = detector.score_samples(X), detector.logits(X)
        assert scores.dtype == logits.dtype == (np.float64 if dtype == np.float64 else np.float32)
        results.append([scores, logits, [detector.offset_]])
    for dense, *others in zip(*results, strict=True):
        for other in others:
            np.testing.assert_allclose(
                other, dense, rtol=5 * TOLERANCE[dtype], atol=TOLERANCE[dtype]
            )


@pytest.mark.parametrize("sparsity", [0, 0.1, 0.7, 0.95])
@pytest.mark.parametrize("name", ["dense", "sparse", "few"])
def test_each_engine_is_the_papers_formula(engine, name, sparsity):
    head, X = problem(np.float64)
    engine(name)
    found = DICEDetector(head, sparsity=sparsity).fit(X).score_samples(X)
    np.testing.assert_allclose(
        found, dice_scores(head.weight, head.bias, X.mean(axis=0), X, 100 * sparsity), rtol=1e-12
    )


@pytest.mark.parametrize("name", ["dense", "sparse", "few"])
def test_blocks_threads_and_sources_change_nothing(engine, name, tmp_path):
    head, X = problem(np.float32)
    engine(name)
    save_features(tmp_path / "X.npz", X)
    expected = DICEDetector(head).fit(X).score_samples(X)
    for options in ({"batch_size": 64}, {"batch_size": 333, "n_jobs": 3}, {"n_jobs": 2}):
        detector = DICEDetector(head, **options).fit(X)
        for rows in (X, np.asfortranarray(X), open_features(tmp_path / "X.npz")):
            np.testing.assert_allclose(detector.score_samples(rows), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["dense", "sparse", "few"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_number_of_threads_gives_the_same_bits(engine, name, dtype):
    head, X = problem(dtype)
    engine(name)
    detector = DICEDetector(head, batch_size=100, n_jobs=1).fit(X)
    scores, logits = detector.score_samples(X), detector.logits(X)
    for n_jobs in (None, 2, 5):
        detector.set_params(n_jobs=n_jobs)
        assert np.array_equal(detector.score_samples(X), scores)
        assert np.array_equal(detector.logits(X), logits)


@pytest.mark.parametrize("name", ["sparse", "few"])
def test_the_kernels_name_the_row_that_overflows(engine, name):
    head, X = problem(np.float32)
    engine(name)
    detector = DICEDetector(head).fit(X)
    X[1234] = 3e38
    with pytest.raises(ValueError, match="the score of row 1234 is"):
        detector.score_samples(X)
    with pytest.raises(ValueError, match="the logits of row 1234 is"):
        detector.logits(X)


def surest_class(logits):
    return logits.argmax(axis=1)


@pytest.mark.parametrize("score_func", ["energy", "max_logit", "msp", "gen", surest_class])
@pytest.mark.parametrize("n_classes", [1, 2, 7])
@pytest.mark.parametrize("name", ["dense", "sparse", "few"])
def test_a_row_whose_logits_overflow_has_no_score(engine, name, n_classes, score_func):
    X = np.ones((100, 20), np.float32)
    weight = np.eye(n_classes, 20, dtype=np.float32) + 1
    engine(name)
    detector = DICEDetector((weight, None), sparsity=0, score_func=score_func).fit(X)
    X[3, 0] = 3e38  # its logit of the first class alone is infinite
    with pytest.raises(ValueError, match="the score of row 3 is"):
        detector.score_samples(X)


@pytest.mark.parametrize(
    ("score_func", "value"),
    [
        (lambda logits: logits.max(axis=1).astype(complex), "complex128"),
        (lambda logits: ["inside"] * len(logits), "'inside'"),
        (lambda logits: [None] * len(logits), "None"),
    ],
)
@pytest.mark.parametrize("name", ["dense", "sparse", "few"])
def test_scores_that_are_no_real_numbers_are_refused(engine, name, score_func, value):
    head, X = problem(np.float32)
    engine(name)
    with pytest.raises(ValueError, match=f"score_func returned .*{value}.* expected real numbers"):
        DICEDetector(head, score_func=score_func).fit(X)


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
    pytest.importorskip("numba")
    head, X = problem(np.float32)
    for name in ("dense", "sparse", "few"):
        engine(name)
        DICEDetector(head, verbose=1).fit(X).score_samples(X)
        assert f"scores, {name} engine" in capsys.readouterr().err


@pytest.mark.usefixtures("without_numba")
def test_without_numba_all_is_dense(engine, capsys):
    head, X = problem(np.float32)
    for name in ("dense", "sparse", "few"):
        engine(name)
        detector = DICEDetector(head, sparsity=0.5, verbose=1).fit(X)
        expected = detector.score_samples(X)
        assert "scores, dense engine" in capsys.readouterr().err
        np.testing.assert_allclose(sparsity_path(head, X, X, [0.5])[0], expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["dense", "sparse", "few"])
def test_what_a_shaping_makes_infinite_is_found_in_pruned_units_too(engine, name):
    rng = np.random.default_rng(0)
    X = rng.uniform(1, 2, (900, 40))
    # Unit 5 contributes the least to every class: nothing of it is kept.
    weight = np.where(np.arange(40) == 5, -9.0, rng.uniform(1, 2, (30, 40)))
    engine(name)
    detector = DICEDetector(LinearHead(weight), sparsity=0.5, shaping=FunctionTransformer(np.log))
    detector.fit(X)
    assert not detector.mask_[:, 5].any()
    X[7, 5] = 0
    with np.errstate(divide="ignore"), pytest.raises(ValueError, match="score of row 7 is nan"):
        detector.score_samples(X)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("score_func", ["energy", "max_logit", "msp", "gen", negated_sum])
@pytest.mark.parametrize("shaping", [None, ReAct(threshold=1.0)], ids=repr)
@pytest.mark.parametrize("n_jobs", [1, 3])
def test_the_engine_that_reads_once_names_the_value_that_is_not_finite(
    engine, n_jobs, shaping, score_func, value
):
    head, X = problem(np.float32)
    # No weight of unit 5 is kept. Unit 7 has positive weights only, unit 8 has both signs.
    weight = np.where(np.arange(140) == 5, -9.0, head.weight)
    weight[:, 7], weight[:, 8] = 4, np.where(np.arange(30) % 2, 4, -4)
    engine("few")
    detector = DICEDetector(
        (weight, head.bias),
        shaping=shaping,
        score_func=score_func,
        batch_size=300,
        n_jobs=n_jobs,
    ).fit(X)
    for column in (5, 7, 8, 139):
        broken = X.copy()
        broken[1234, column] = value
        for method in (detector.score_samples, detector.logits, detector.calibrate):
            with pytest.raises(ValueError, match=f"in row 1234, column {column};"):
                method(broken)


@pytest.mark.parametrize("n_jobs", [None, 1])
def test_functions_of_the_user_run_one_at_a_time_unless_asked(engine, n_jobs):
    head, X = problem(np.float32)
    engine("sparse")
    running, most = [], []

    def slow(logits):
        running.append(1)
        most.append(len(running))
        time.sleep(0.005)
        running.pop()
        return logits.max(axis=1)

    detector = DICEDetector(head, score_func=slow, n_jobs=n_jobs, batch_size=100).fit(X)
    detector.score_samples(X)
    assert max(most) == 1


def test_small_blocks_are_left_to_the_dense_engine(engine, capsys):
    head, X = problem(np.float32)
    engine("sparse")
    DICEDetector(head, batch_size=10, verbose=1).fit(X)
    assert "dense engine" in capsys.readouterr().err


@pytest.mark.parametrize("score_func", ["energy", "max_logit", "msp", "gen"])
def test_blocks_that_share_memory_do_not_mix(engine, score_func):
    """The last block is smaller than the others, and the blocks of two threads are apart."""
    head, X = problem(np.float64)
    engine("dense")
    detector = DICEDetector(head, score_func=score_func).fit(X)
    expected = np.concatenate([detector.score_samples(X[n : n + 1]) for n in range(len(X))])
    for n_jobs in (None, 4):
        detector.set_params(batch_size=37, n_jobs=n_jobs)
        np.testing.assert_allclose(detector.score_samples(X), expected, rtol=1e-12)


def test_only_logits_that_are_done_with_share_memory():
    """What a user's function is given, and what `logits` returns, stays as it is."""
    head, X = problem(np.float64)
    kept = []
    detector = DICEDetector(head, batch_size=500, score_func=lambda z: kept.append(z) or z[:, 0])
    detector.fit(X)
    kept.clear()
    detector.score_samples(X)
    np.testing.assert_array_equal(np.concatenate(kept), detector.logits(X))


def test_weights_are_packed_once_and_anew_after_a_fit(engine, monkeypatch):
    pytest.importorskip("numba")
    head, X = problem(np.float32)
    packed = []
    pack = engine_run.SparseLayer
    monkeypatch.setitem(
        engine_run.PACKED_LAYERS, "sparse", lambda *arrays: packed.append(1) or pack(*arrays)
    )
    engine("sparse")
    detector = DICEDetector(head).fit(X)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(detector.score_samples, [X] * 8))
    assert len(packed) == 1
    assert all(np.array_equal(scores, results[0]) for scores in results)
    copy = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(copy.score_samples(X), results[0])
    assert len(packed) == 2
    detector.set_params(sparsity=0.9).fit(X)
    expected = dice_scores(head.weight, head.bias, X.mean(axis=0, dtype=float), X, 90)
    np.testing.assert_allclose(detector.score_samples(X), expected, rtol=1e-5)
    # The fitted arrays are read-only because engines keep packed copies of them.
    for fitted in (detector, copy):
        with pytest.raises(ValueError, match="read-only"):
            fitted.coef_[0, 0] = 1


def test_a_score_that_is_changed_after_the_fit_waits_for_the_next_fit():
    """The threshold belongs to the score of the fit."""
    head, X = problem(np.float32)
    detector = DICEDetector(head).fit(X)
    energies = detector.score_samples(X)
    detector.set_params(score_func="msp")
    for fitted in (detector, pickle.loads(pickle.dumps(detector))):
        np.testing.assert_array_equal(fitted.score_samples(X), energies)
    assert detector.fit(X).score_samples(X).max() <= 1
