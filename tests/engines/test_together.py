"""Members that share a part of their computation score as each of them does alone."""

import contextlib
import pickle
from itertools import pairwise

import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin

from skdice import ConformalEnsemble, DICEDetector, FDBDDetector, LinearHead, ViMDetector
from skdice._compat.extras import has_numba
from skdice._engines import sparse
from skdice._engines.layer import GeometricLayers, HeadLayers, NestedLayers
from skdice._engines.run import forced_engine
from skdice._engines.together import Member, groups_of
from skdice.shaping import ReAct, Scale

pytestmark = pytest.mark.filterwarnings("ignore:at sparsity:UserWarning")
RNG = np.random.default_rng(0)
HEAD = LinearHead(RNG.normal(size=(30, 64)), RNG.normal(size=30))
OTHER_HEAD = LinearHead(HEAD.weight, HEAD.bias + 1)
MEMBERS = {
    "energy": DICEDetector(HEAD, sparsity=0, shaping=ReAct()),
    "dice": DICEDetector(HEAD, sparsity=0.1, shaping=ReAct()),
    "half": DICEDetector(HEAD, sparsity=0.5, shaping=ReAct(), score_func="msp"),
    "plain": DICEDetector(HEAD, sparsity=0.3),
    "scaled": DICEDetector(HEAD, sparsity=0.3, shaping=Scale()),
    "function": DICEDetector(HEAD, score_func=lambda logits: logits.max(axis=1)),
    "fdbd": FDBDDetector(HEAD),
    "vim": ViMDetector(HEAD),
    "fdbd again": FDBDDetector(HEAD),
}

OTHERS = {"dice": MEMBERS["dice"], "no shaping": DICEDetector(HEAD, sparsity=0)}


def features(dtype, n_rows=700):
    return np.maximum(np.random.default_rng(1).normal(size=(n_rows, 64)), 0).astype(dtype)


def layers_of(ensemble):
    """Return the names of the members of each group."""
    members = ensemble._layer.members
    return [
        (type(group.layers), {members[place].name for place in group.places})
        for group in groups_of(members)
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("engine", [None, "dense", "sparse", "few"])
def test_each_member_scores_as_it_does_alone(dtype, engine):
    X = features(dtype)
    ensemble = ConformalEnsemble(list(MEMBERS.items())).fit(X)

    def scores():
        alone = [member.score_samples(X) for member in ensemble.estimators_]
        return ensemble.member_scores(X), np.column_stack(alone)

    if engine is None:
        together, alone = scores()
    else:
        with forced_engine(engine):
            together, alone = scores()
    rtol = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(together, alone, rtol=rtol, atol=rtol)


def test_what_is_shared():
    ensemble = ConformalEnsemble(list(MEMBERS.items())).fit(features(np.float64))
    assert layers_of(ensemble) == [
        (HeadLayers, {"energy", "dice", "half", "fdbd", "vim", "fdbd again"}),
        (type(None), {"plain"}),
        (type(None), {"scaled"}),
        (type(None), {"function"}),
    ]
    # Nested layers without all weights of the head, or after another shaping, have other logits.
    for name, first in (("half", "dice"), ("plain", "no shaping")):
        few = [("fdbd", MEMBERS["fdbd"]), (name, MEMBERS[name]), (first, OTHERS[first])]
        ensemble = ConformalEnsemble(few).fit(features(np.float64))
        assert layers_of(ensemble) == [(GeometricLayers, {"fdbd"}), (NestedLayers, {name, first})]


def test_the_weights_of_nested_layers_are_those_of_the_first_and_what_it_prunes():
    ensemble = ConformalEnsemble(list(MEMBERS.items())[:3]).fit(features(np.float64))
    (group,) = groups_of(ensemble._layer.members)
    first, *others = group.layers.layers
    counts = [np.count_nonzero(layer.weight) for layer in group.layers.layers]
    assert all(more >= fewer for more, fewer in pairwise(counts))
    for layer, pruned in zip(others, group.layers.pruned, strict=True):
        np.testing.assert_array_equal(layer.weight + pruned.weight, first.weight)
        assert not pruned.bias.any()


def test_other_numbers_are_not_shared():
    """Members of different biases, fitted apart, have nothing in common but the rows."""
    X = features(np.float64)
    pairs = [DICEDetector(head, sparsity=s) for head in (HEAD, OTHER_HEAD) for s in (0, 0.1)]
    layers = [each.fit(X)._layer for each in pairs]
    layers += [FDBDDetector(head).fit(X)._layer for head in (HEAD, OTHER_HEAD)]
    members = [Member(str(n), layer) for n, layer in enumerate(layers)]
    assert [group.places for group in groups_of(members)] == [(0, 1), (2, 3), (4,), (5,)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_not_finite_is_named(value):
    """It is named with and without the member whose score would show it."""
    X = features(np.float32)
    for members in (list(MEMBERS.items()), list(MEMBERS.items())[:2]):
        ensemble = ConformalEnsemble(members).fit(X)
        broken = X.copy()
        broken[345, 6] = value
        with pytest.raises(ValueError, match=r"row 345"):
            ensemble.score_samples(broken)


def test_the_groups_are_made_once_and_left_out_of_pickles():
    X = features(np.float32)
    ensemble = ConformalEnsemble(list(MEMBERS.items())[:3]).fit(X)
    before = len(pickle.dumps(ensemble))
    scores = ensemble.score_samples(X)
    groups = ensemble._layer.groups
    ensemble.score_samples(X)
    assert ensemble._layer.groups is groups
    assert len(pickle.dumps(ensemble)) == before
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(ensemble)).score_samples(X), scores)


@pytest.mark.skipif(not has_numba(), reason="the sparse engine needs numba")
def test_few_pruned_weights_are_subtracted(monkeypatch):
    """A large head is multiplied once: the tenth that DICE prunes is computed by itself."""
    rng = np.random.default_rng(2)
    head = LinearHead(rng.normal(size=(600, 512)).astype("f4"), np.zeros(600, "f4"))
    X = np.maximum(rng.normal(size=(20_000, 512)), 0).astype("f4")
    pair = [(f"s{s}", DICEDetector(head, sparsity=s)) for s in (0, 0.1)]
    ensemble = ConformalEnsemble(pair).fit(X)
    computed, logits = [], sparse.SparseLayer.logits

    def counted(self, block):
        computed.append(len(self._head.weights))
        return logits(self, block)

    monkeypatch.setattr(sparse.SparseLayer, "logits", counted)
    scores = ensemble.member_scores(X)
    n_pruned = int((~ensemble.named_estimators_["s0.1"].mask_).sum())
    assert set(computed) == {n_pruned}
    alone = [member.score_samples(X) for member in ensemble.estimators_]
    np.testing.assert_allclose(scores, np.column_stack(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", [None, "dense", "sparse", "few"])
def test_a_logit_that_overflows_to_nan_is_reported_by_every_score(engine):
    """The largest of the other logits would look like a good row."""
    head = LinearHead(np.full((40, 64), 1.0, "f4") * np.where(np.arange(64) < 32, 1, -1))
    members = [(f"s{s}", DICEDetector(head, sparsity=s, score_func="max_logit")) for s in (0, 0.1)]
    X = np.abs(np.random.default_rng(0).normal(size=(3000, 64))).astype("f4")
    ensemble = ConformalEnsemble(members).fit(X)
    X[7] = 3e38
    choice = contextlib.nullcontext() if engine is None else forced_engine(engine)
    with choice, pytest.raises(ValueError, match="row 7"):
        ensemble.member_scores(X)


def test_a_function_of_the_user_sees_no_feature_that_is_not_finite():
    """Beside fDBD, whose score would show it, the features are not checked for other members."""
    seen = []

    class Kept(TransformerMixin, BaseEstimator):
        def fit(self, X, y=None):
            return self

        def transform(self, X):
            seen.append(bool(np.isfinite(X).all()))
            return X

    members = [("fdbd", FDBDDetector(HEAD)), ("kept", DICEDetector(HEAD, shaping=Kept()))]
    X = features(np.float32)
    ensemble = ConformalEnsemble(members).fit(X)
    X[5, 3] = np.nan
    with pytest.raises(ValueError, match="row 5"):
        ensemble.score_samples(X)
    assert all(seen)
