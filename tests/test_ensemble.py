"""ConformalEnsemble: the combination, its guarantee, and members of every kind."""

import importlib
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import config_context
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skdice
from skdice import ConformalEnsemble, DICEDetector, LinearHead, make_ensemble
from skdice._engines.reference_scores import MOST_SCORES, ReferenceDistribution
from skdice._persistence.decode import build
from skdice._persistence.encode import encode
from skdice.io import open_features, save_features
from skdice.shaping import ReAct


class Column(OutlierMixin, BaseEstimator):
    """Takes a column of the rows, times a factor, for the score."""

    def __init__(self, column=0, factor=1.0):
        self.column, self.factor = column, factor

    def fit(self, X, y=None):
        self.n_features_in_ = X.shape[1]
        return self

    def score_samples(self, X):
        return self.factor * X[:, self.column]


class Noise(Column):
    """Scores that have nothing to do with the rows' order, but are a function of each row."""

    def score_samples(self, X):
        return np.modf(1e4 * np.abs(X[:, self.column]))[0]


class Broken(Column):
    def score_samples(self, X):
        return np.where(X[:, 0] > 1, np.nan, X[:, 0])


def log_pvalues(reference, scores):
    """The p-values of a member, with their exponential tail, written apart from skdice."""
    start = np.quantile(reference, 0.02)
    distances = start - reference[reference < start]
    values = []
    for score in scores:
        log_p = np.log((1 + np.sum(reference <= score)) / (len(reference) + 1))
        if score < start and len(distances):
            at_start = np.log((1 + np.sum(reference <= start)) / (len(reference) + 1))
            log_p = at_start - (start - score) / distances.mean()
        values.append(log_p)
    return np.array(values)


def members(head):
    return [
        ("energy", DICEDetector(head, sparsity=0, shaping=ReAct())),
        ("dice", DICEDetector(head)),
        ("forest", IsolationForest(n_estimators=10, random_state=0)),
    ]


@pytest.mark.parametrize("combination", ["fisher", "min"])
def test_the_score_is_the_combination_of_the_members(fashion, combination):
    ensemble = ConformalEnsemble(members(fashion.head), combination=combination)
    ensemble.fit(fashion.id_train)
    X = np.concatenate([fashion.id_test[:100], fashion.ood["textures"][:100]])
    alone = [clone(each).fit(fashion.id_train) for _, each in members(fashion.head)]
    log_p = np.stack(
        [
            log_pvalues(each.score_samples(fashion.id_train), each.score_samples(X))
            for each in alone
        ],
        axis=1,
    )
    expected = log_p.mean(axis=1) if combination == "fisher" else log_p.min(axis=1)
    np.testing.assert_allclose(ensemble.score_samples(X), expected, rtol=1e-5)
    np.testing.assert_allclose(ensemble.member_pvalues(X), np.exp(log_p), rtol=1e-5)
    for n, each in enumerate(alone):
        np.testing.assert_allclose(
            ensemble.member_scores(X)[:, n], each.score_samples(X), rtol=1e-6
        )
    # The threshold is that of the combined scores of the fitted rows.
    assert np.sum(ensemble.score_samples(fashion.id_train) < ensemble.offset_) == 200


def test_p_values_by_hand():
    reference = ReferenceDistribution.from_scores(np.arange(1.0, 10.0))
    # One of nine lies below the 2 % quantile, 1.16, by 0.16; it is the whole tail.
    np.testing.assert_allclose(
        np.exp(reference.log_pvalues(np.array([2.0, 2.5, 9.0, 99.0]))), [0.3, 0.3, 1.0, 1.0]
    )
    expected = np.log(0.2) - np.array([0.16, 1.16]) / 0.16
    np.testing.assert_allclose(reference.log_pvalues(np.array([1.0, 0.0])), expected)


@given(st.integers(1, 300), st.integers(0, 2**32 - 1), st.booleans())
def test_p_values_are_those_of_the_definition(n, seed, ties):
    rng = np.random.default_rng(seed)
    reference, scores = rng.normal(size=n), rng.normal(scale=3, size=50)
    if ties:
        reference, scores = reference.round(), scores.round()
    found = ReferenceDistribution.from_scores(reference).log_pvalues(scores)
    np.testing.assert_allclose(found, log_pvalues(reference, scores), rtol=1e-9, atol=1e-12)


def test_a_sketch_is_small_and_close_to_all_scores():
    scores = np.random.default_rng(0).standard_t(3, size=200_000)
    sketch = ReferenceDistribution.from_scores(scores)
    assert len(sketch.scores) <= MOST_SCORES + 1
    asked = np.linspace(-30, 10, 500)
    expected = log_pvalues(scores, asked)
    np.testing.assert_allclose(np.exp(sketch.log_pvalues(asked)), np.exp(expected), atol=2e-4)
    assert (np.diff(sketch.log_pvalues(asked)) >= 0).all()


def oodeel_fisher_statistic(reference, scores):
    """The statistic of oodeel's FisherAggregator, written apart from it; high scores are good.

    oodeel puts one bound below and one above the sorted scores of a layer, takes i / (n + 2) for
    the i-th of these n + 2 values, and interpolates linearly between them.
    """
    n = len(reference)
    statistic = np.zeros(len(scores))
    for column, asked in zip(reference.T, scores.T, strict=True):
        low = column.min() * (1 / n if column.min() > 0 else n)
        high = column.max() * (n if column.max() > 0 else 1 / n)
        values = np.sort([low, *column, high])
        statistic -= 2 * np.log(np.interp(asked, values, np.arange(1, n + 3) / (n + 2)))
    return statistic


def test_fisher_is_the_statistic_of_oodeel_at_the_reference_scores():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 2)) @ np.array([[1.0, 0.7, -0.4], [0.0, 0.7, 0.9]])
    ensemble = ConformalEnsemble([(f"column{n}", Column(n)) for n in range(3)]).fit(X)
    # Below the 2 % quantile of a member skdice has an exponential tail, and oodeel has none.
    body = X[(np.quantile(X, 0.02, axis=0) <= X).all(axis=1)]
    assert len(body) > 450
    # The count i of scores at or below is (i + 1) / (n + 2) there and (i + 1) / (n + 1) here.
    expected = -oodeel_fisher_statistic(X, body) / (2 * 3) + np.log(502 / 501)
    np.testing.assert_allclose(ensemble.score_samples(body), expected, rtol=1e-9, atol=1e-12)


ADVERSARIES = {
    "copies": [Column(0), Column(0), Column(0)],
    "negations": [Column(0), Column(0, -1.0)],
    "noise": [Column(0), Noise(1), Noise(2)],
    "many": [Column(n) for n in range(3)] + [Column(n, -2.0) for n in range(3)],
}


@pytest.mark.parametrize("combination", ["fisher", "min"])
@pytest.mark.parametrize("kind", ADVERSARIES)
def test_the_false_alarm_rate_is_guaranteed_for_any_members(kind, combination):
    rng = np.random.default_rng(len(kind))
    named = [(f"m{n}", each) for n, each in enumerate(ADVERSARIES[kind])]
    population = rng.standard_t(3, size=(5000, 3))
    shares, pvalues = [], []
    for _ in range(1000):
        rows = population[rng.permutation(len(population))[:438]]
        ensemble = ConformalEnsemble(named, combination=combination).fit(rows[:139])
        ensemble.calibrate(rows[139:238], method="conformal")
        shares.append(np.mean(ensemble.predict(rows[238:]) == -1))
        pvalues.append(ensemble.pvalues(rows[238:]))
    error = np.std(shares) / np.sqrt(len(shares))
    assert np.mean(shares) <= 0.05 + 3 * error
    # The p-values are super-uniform at every level, not only at that of the threshold.
    for level in (0.01, 0.05, 0.2, 0.5):
        at_most = np.mean(np.array(pvalues) <= level, axis=1)
        assert at_most.mean() <= level + 3 * at_most.std() / np.sqrt(len(at_most))


def flagged_by_minimum_and_by_members(ensemble, calibration, X):
    """The share that the minimum flags at 5 %, and what each member flags alone at 5 % / K."""
    ensemble.calibrate(calibration, method="conformal")
    scores = np.sort(ensemble.member_scores(calibration), axis=0)
    rank = int(0.05 / scores.shape[1] * (len(scores) + 1))
    alone = np.mean(ensemble.member_scores(X) < scores[rank - 1], axis=0)
    return np.mean(ensemble.predict(X) == -1), alone


@pytest.mark.parametrize("make", [lambda head: ConformalEnsemble(members(head)), make_ensemble])
def test_the_minimum_catches_what_each_member_catches_at_its_share(fashion, make):
    ensemble = make(fashion.head).set_params(combination="min").fit(fashion.id_train)
    for X in fashion.ood.values():
        flagged, alone = flagged_by_minimum_and_by_members(ensemble, fashion.id_test[:1500], X)
        # The reference rows and the calibration rows place the same quantile a little apart.
        assert flagged >= alone.max() - 0.02


def test_the_minimum_has_its_floor_on_the_network_of_the_authors(cifar10):
    head = LinearHead.from_file(cifar10 / "head.npz")
    ensemble = make_ensemble(head, combination="min").fit(np.load(cifar10 / "id_train.npy"))
    calibration = np.load(cifar10 / "id_test.npy")[::2]
    for name in ("cifar100", "fashion_mnist", "textures"):
        X = np.load(cifar10 / f"ood_{name}.npy")
        flagged, alone = flagged_by_minimum_and_by_members(ensemble, calibration, X)
        assert flagged >= alone.max() - 0.02


def test_sources_agree(fashion, tmp_path):
    da, torch = pytest.importorskip("dask.array"), pytest.importorskip("torch")
    parts = members(fashion.head)[:2]
    X, Z = fashion.id_train, fashion.id_test[:500]
    expected = ConformalEnsemble(parts).fit(X)
    save_features(tmp_path / "X.npz", X)
    chunked = da.from_array(X, chunks=(700, X.shape[1]))
    for rows in (open_features(tmp_path / "X.npz"), torch.from_numpy(X), chunked):
        ensemble = ConformalEnsemble(parts, batch_size=333).fit(rows)
        np.testing.assert_allclose(ensemble.offset_, expected.offset_, rtol=1e-5)
        np.testing.assert_allclose(ensemble.score_samples(Z), expected.score_samples(Z), atol=1e-2)
    lazy = expected.member_pvalues(da.from_array(Z, chunks=(99, X.shape[1])))
    # Rounding may carry a score over one reference score, which is a step of 1 / 4001.
    np.testing.assert_allclose(lazy.compute(), expected.member_pvalues(Z), atol=6e-4)
    scores = expected.score_samples(torch.from_numpy(Z))
    assert type(scores) is torch.Tensor
    np.testing.assert_allclose(scores, expected.score_samples(Z), rtol=1e-5, atol=1e-6)
    half = expected.score_samples(Z.astype(np.float16))
    assert half.dtype == np.float32


def test_dask_and_memory_agree_for_the_whole_ensemble(fashion):
    da = pytest.importorskip("dask.array")
    X, Z = fashion.id_train, fashion.id_test[:500]
    expected = make_ensemble(fashion.head).fit(X)
    found = make_ensemble(fashion.head).fit(da.from_array(X, chunks=(700, X.shape[1])))
    np.testing.assert_allclose(found.offset_, expected.offset_, rtol=1e-4)
    np.testing.assert_allclose(found.member_scores(Z), expected.member_scores(Z), rtol=1e-4)
    lazy = found.score_samples(da.from_array(Z, chunks=(99, Z.shape[1])))
    np.testing.assert_allclose(lazy.compute(), expected.score_samples(Z), atol=1e-2)


def test_known_outliers_are_left_out(fashion, labelled):
    X, y = labelled
    parts = members(fashion.head)
    found = ConformalEnsemble(parts).fit(X, y)
    expected = ConformalEnsemble(parts).fit(X[y == 1])
    np.testing.assert_allclose(found.score_samples(X), expected.score_samples(X), rtol=1e-6)
    assert found.n_samples_seen_ == np.sum(y == 1)


def test_members_tell_who_objects(fashion):
    frame = pd.DataFrame(fashion.id_test[:3], index=["a", "b", "c"])
    frame.columns = [f"unit{n}" for n in range(frame.shape[1])]
    train = pd.DataFrame(fashion.id_train, columns=frame.columns)
    ensemble = ConformalEnsemble(members(fashion.head)[:2]).fit(train)
    assert type(ensemble.member_scores(frame)) is np.ndarray
    with config_context(transform_output="pandas"):
        pvalues = ensemble.member_pvalues(frame)
    assert list(pvalues.columns) == ["energy", "dice"]
    assert list(pvalues.index) == ["a", "b", "c"]
    assert ensemble.set_output(transform="pandas").member_scores(frame).shape == (3, 2)
    with pytest.raises(ValueError, match="transform is 'numpy', expected"):
        ensemble.set_output(transform="numpy")


def test_nested_parameters_clone_pickle_and_html(fashion):
    ensemble = ConformalEnsemble(members(fashion.head))
    assert ensemble.get_params()["dice__sparsity"] == 0.1
    copy = clone(ensemble).set_params(dice__sparsity=0.3, forest=LocalOutlierFactor(novelty=True))
    assert dict(copy.estimators)["dice"].sparsity == 0.3
    assert dict(ensemble.estimators)["dice"].sparsity == 0.1
    fitted = copy.fit(fashion.id_train[:500])
    assert type(fitted.named_estimators_["forest"]) is LocalOutlierFactor
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(
        again.score_samples(fashion.id_test), fitted.score_samples(fashion.id_test)
    )
    html = ensemble._repr_html_()
    assert all(name in html for name in ("energy", "dice", "forest", "IsolationForest"))


def test_a_pipeline_and_an_ensemble_can_be_members(fashion):
    head = LinearHead(fashion.head.weight)
    inner = ConformalEnsemble([("forest", IsolationForest(n_estimators=5, random_state=0))])
    parts = [("scaled", make_pipeline(StandardScaler(), DICEDetector(head))), ("inner", inner)]
    ensemble = ConformalEnsemble(parts).fit(fashion.id_train)
    assert ensemble.score_samples(fashion.id_test).shape == (3000,)
    assert ensemble.head_ is None


def test_an_ensemble_is_saved_and_loaded_bit_for_bit(fashion, tmp_path):
    ensemble = make_ensemble(fashion.head, combination="min").fit(fashion.id_train)
    ensemble.calibrate(fashion.id_test[:1000], method="conformal")
    path = tmp_path / "ensemble.safetensors"
    skdice.save(ensemble, path)
    loaded = skdice.load(path)
    X = np.concatenate([fashion.id_test[1000:1300], fashion.ood["textures"][:300]])
    for method in ("score_samples", "predict", "pvalues", "member_pvalues"):
        np.testing.assert_array_equal(getattr(loaded, method)(X), getattr(ensemble, method)(X))
    assert loaded.calibration_ == ensemble.calibration_
    assert loaded.get_params()["dice__sparsity"] == 0.1
    # The head is stored once.
    weight = fashion.head.weight.nbytes
    assert path.stat().st_size < 5 * weight + 8 * (4 * 8001 + 64 * 128 + 5000)
    skdice.save(loaded, path)
    np.testing.assert_array_equal(skdice.load(path).score_samples(X), ensemble.score_samples(X))
    with pytest.raises(ValueError, match=r"the member 'forest' is IsolationForest.* another lib"):
        skdice.save(ConformalEnsemble(members(fashion.head)).fit(fashion.id_train[:500]), path)


@pytest.mark.parametrize(
    "change",
    [
        lambda document, arrays: document["members"].append(document["members"][0]),
        lambda document, arrays: document["members"].clear(),
        lambda document, arrays: document["members"][0].update(name="vim"),
        lambda document, arrays: document["members"][0].update(tail_mean=-1.0),
        lambda document, arrays: document["members"][0].update(document={"kind": "x"}),
        lambda document, arrays: arrays.pop("1.reference_scores"),
        lambda document, arrays: arrays.update({"9.mask": np.ones((2, 2))}),
        lambda document, arrays: (
            arrays["0.reference_counts"].sort(kind="stable")
            or arrays.update({"0.reference_counts": arrays["0.reference_counts"][::-1]})
        ),
        lambda document, arrays: document["parameters"].update(combination="max"),
        lambda document, arrays: document["fitted"].update(feature_names="x"),
    ],
)
def test_a_resealed_file_of_an_ensemble_is_refused(fashion, tmp_path, change):
    ensemble = make_ensemble(fashion.head).fit(fashion.id_train[:500])
    document, arrays = encode(ensemble)
    arrays = {name: array.copy() for name, array in arrays.items()}
    change(document, arrays)
    with pytest.raises((ValueError, KeyError, TypeError)):
        build(document, arrays)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("combination", ["fisher", "min"])
def test_the_torch_module_and_its_exports_score_like_the_ensemble(fashion, combination, tmp_path):
    torch = pytest.importorskip("torch")
    ensemble = make_ensemble(fashion.head, combination=combination).fit(fashion.id_train)
    ensemble.calibrate(fashion.id_test[:1000], method="conformal")
    X = np.concatenate([fashion.id_test[1000:1300], fashion.ood["textures"][:300]])
    module, rows = ensemble.to_torch(), torch.from_numpy(X)
    # A score may round to the other side of a reference score, which is a step of 1 / 4001.
    np.testing.assert_allclose(module(rows), ensemble.score_samples(X), atol=5e-3)
    assert np.mean(module.is_ood(rows).numpy() == (ensemble.predict(X) == -1)) >= 0.998
    scripted = torch.jit.script(module)
    torch.testing.assert_close(scripted(rows), module(rows))
    assert module.is_ood(torch.full((1, X.shape[1]), torch.nan)).tolist() == [True]
    with pytest.raises(ValueError, match="the member 'forest' is IsolationForest"):
        ConformalEnsemble(members(fashion.head)).fit(fashion.id_train[:500]).to_torch()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning", "ignore::DeprecationWarning")
def test_in_onnx_runtime(fashion, tmp_path):
    pytest.importorskip("onnxruntime")
    torch = pytest.importorskip("torch")
    from exporting import onnx_run

    ensemble = make_ensemble(fashion.head).fit(fashion.id_train)
    X = np.concatenate([fashion.id_test[:300], fashion.ood["textures"][:300]])
    module = ensemble.to_torch()
    (scores,) = onnx_run(module, torch.from_numpy(X[:7]), X, tmp_path)
    # A member's score may round to the other side of a reference score, which is a step.
    np.testing.assert_allclose(scores, ensemble.score_samples(X), atol=5e-3)


@pytest.mark.parametrize(
    ("estimators", "error", "message"),
    [
        ([], ValueError, "estimators is an empty list"),
        ([("a", Column()), ("a", Column())], ValueError, "two members have the name 'a'"),
        ([("a__b", Column())], ValueError, "the name 'a__b', expected a name without '__'"),
        ([("n_jobs", Column())], ValueError, "the name 'n_jobs'"),
        ([("a", StandardScaler())], TypeError, "the member 'a' is StandardScaler.*score_samples"),
        ([("a", LocalOutlierFactor())], TypeError, "LocalOutlierFactor has it with novelty=True"),
        ([Column()], TypeError, "expected pairs"),
        ([("a", Broken())], ValueError, "the score by 'a' of row 1 is nan"),
        (
            [
                ("a", DICEDetector(np.eye(3))),
                ("b", DICEDetector(np.eye(3) * 2)),
            ],
            ValueError,
            "the members 'a' and 'b' have different heads",
        ),
    ],
)
def test_bad_members_are_named(estimators, error, message):
    X = np.array([[0.0, 1, 2], [3.0, 1, 0], [1.0, 0, 1]])
    with pytest.raises(error, match=message):
        ConformalEnsemble(estimators).fit(X)


def test_a_member_without_a_voice_is_named():
    X = np.random.default_rng(0).normal(size=(50, 3))
    with pytest.warns(UserWarning, match="'mute' gives all 50 rows the score 0: .* no voice"):
        ConformalEnsemble([("mute", Column(factor=0.0)), ("a", Column())]).fit(X)


def test_a_member_that_needs_rows_in_memory_refuses_a_cluster():
    da = pytest.importorskip("dask.array")
    rows = da.ones((20, 3), chunks=(5, 3))
    with pytest.raises(TypeError, match="Column needs its rows in memory"):
        ConformalEnsemble([("a", Column())]).fit(rows)


def test_features_that_overflow_give_an_error_and_no_warning(fashion):
    ensemble = make_ensemble(fashion.head).fit(fashion.id_train.astype(np.float32))
    X = fashion.id_test[:20].astype(np.float32)
    X[3] = np.linspace(0, 3e38, X.shape[1])
    with pytest.raises(ValueError, match="of row 3 is"):
        ensemble.score_samples(X)


def assert_close_scores(scores, expected):
    assert np.allclose(scores, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max(axis=0))


def test_members_are_fitted_and_scored_on_the_device_that_they_name(fashion, monkeypatch):
    torch = pytest.importorskip("torch")
    engines = importlib.import_module("skdice._engines.run")
    made, make = [], engines._torch_engine

    def make_and_note(layer, *others):
        made.append(type(layer).__name__)
        return make(layer, *others)

    for module in (engines, importlib.import_module("skdice._base")):
        monkeypatch.setattr(module, "torch_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(engines, "_torch_engine", make_and_note)
    X = fashion.id_train[:2000]
    detector = make_ensemble(fashion.head, device="cuda").fit(X)
    expected = {"MaskedLayer", "FDBDLayer", "ViMLayer"}
    assert set(made) == expected
    made.clear()
    scores = detector.member_scores(X)
    assert set(made) == expected
    assert_close_scores(scores, make_ensemble(fashion.head).fit(X).member_scores(X))


def test_the_options_of_make_ensemble_reach_the_ensemble_and_its_members():
    detector = make_ensemble("identity", n_jobs=2, batch_size=100, verbose=1)
    parameters = detector.get_params()
    for name, value in {"n_jobs": 2, "batch_size": 100, "verbose": 1}.items():
        assert parameters[name] == value
        assert all(parameters[f"{member}__{name}"] == value for member, _ in detector.estimators)


def test_a_tensor_is_fitted_and_scored_as_an_array_is(fashion):
    torch = pytest.importorskip("torch")
    X = fashion.id_train[:2000]
    native = make_ensemble(fashion.head).fit(torch.from_numpy(X))
    assert isinstance(native.score_samples(torch.from_numpy(X)), torch.Tensor)
    scores = native.member_scores(torch.from_numpy(X))
    assert_close_scores(scores, make_ensemble(fashion.head).fit(X).member_scores(X))
