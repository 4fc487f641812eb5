"""DICE says when it is out of its depth: `head_agreement_`, and ties that prune too much."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import skdice
from skdice import DICEDetector, DICEDetectorCV, LinearHead, make_ensemble, sparsity_path
from skdice._passes.mean import Wanted, measure
from skdice._rows.door import as_source
from skdice.datasets import load_fashion_mnist_ood
from skdice.io import open_features
from skdice.metrics import compare

# By hand: the mean of ROWS is (2, 2), so the contributions are [[2, -2], [0, 2]] and sparsity 0.25
# prunes the weight -1 alone. The rows (4, 1), (0, 3) keep their class, while (1, 2) has class 1
# of the full head by (-1, 2) and of the pruned head by (1, 2), and (3, 2) class 1 by (1, 2) and
# class 0 by (3, 2).
HEAD = LinearHead(np.array([[1.0, -1.0], [0.0, 1.0]]))
ROWS = np.array([[4.0, 1.0], [0.0, 3.0], [1.0, 2.0], [3.0, 2.0]])
PATTERN = "the pruned head gives only"


@pytest.fixture(scope="module")
def fashion():
    return load_fashion_mnist_ood()


def agreement(X, head, **parameters):
    """Return the agreement on all rows, by the definition."""
    detector = DICEDetector(head, **parameters).fit(X)
    full = (X @ head.weight.T + head.bias).argmax(axis=1)
    pruned = (X @ (detector.mask_ * head.weight).T + head.bias).argmax(axis=1)
    return (full == pruned).mean()


def test_a_tiny_head_by_hand():
    with pytest.warns(UserWarning, match=PATTERN) as caught:
        detector = DICEDetector(HEAD, sparsity=0.25).fit(ROWS)
    assert detector.head_agreement_ == 0.75
    assert str(caught[0].message) == (
        "at sparsity=0.25 the pruned head gives only 75.0% of 4 rows of the fit the class that the "
        "full head gives (head_agreement_, expected 95% at least): DICE prunes evidence that this "
        "head needs, as happens with few or signed features, and then it mostly detects worse than "
        "without pruning. Lower the sparsity (0 prunes nothing), or take make_ensemble(head). In "
        "an ensemble nothing has to be done: its other members do not prune."
    )
    assert caught[0].filename == __file__


def test_weights_and_left_out_rows_count_as_in_the_fit():
    outlier = np.array([[3.0, 2.0]])
    X, y = np.concatenate([ROWS, outlier]), [1, 1, 1, 1, -1]
    assert DICEDetector(HEAD, sparsity=0.25).fit(X, y).head_agreement_ == 0.75
    assert (
        DICEDetector(HEAD, sparsity=0.25)
        .fit(X, sample_weight=y and [1, 1, 1, 1, 0])
        .head_agreement_
        == 0.75
    )
    weights = [1, 2, 1, 3]
    weighted = DICEDetector(HEAD, sparsity=0.25).fit(ROWS, sample_weight=weights)
    repeated = DICEDetector(HEAD, sparsity=0.25).fit(np.repeat(ROWS, weights, axis=0))
    assert weighted.head_agreement_ == repeated.head_agreement_ == pytest.approx(4 / 7)


def test_what_never_disagrees_is_1_without_a_warning(recwarn):
    for head, sparsity in ((HEAD, 0), (HEAD.weight[1:], 0.5), ("identity", 0), ("identity", 0.1)):
        assert DICEDetector(head, sparsity=sparsity).fit(ROWS).head_agreement_ == 1
    assert not len(recwarn)


def test_partial_fit_sets_none_and_forgets_that_of_a_fit(fashion):
    detector = DICEDetector(fashion.head).fit(fashion.id_train)
    assert hasattr(detector, "head_agreement_")
    detector.partial_fit(fashion.id_train).calibrate(fashion.id_test)
    assert not hasattr(detector, "head_agreement_")


def test_the_embedded_network(fashion):
    for sparsity, expected in ((0.1, 0.999), (0.7, 0.998)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            detector = DICEDetector(fashion.head, sparsity=sparsity).fit(fashion.id_train)
        X = fashion.id_train.astype(np.float32)
        assert round(agreement(X, fashion.head, sparsity=sparsity), 3) == expected
        assert detector.head_agreement_ == pytest.approx(expected, abs=0.003)
    X = fashion.id_train.astype(np.float32)
    assert DICEDetector(fashion.head, sparsity=0.95).fit(X).head_agreement_ == pytest.approx(
        agreement(X, fashion.head, sparsity=0.95), abs=0.02
    )


def test_the_network_of_the_authors(cifar10):
    head = LinearHead.from_file(cifar10 / "head.npz")
    X = open_features(cifar10 / "id_train.npy")
    for sparsity in (0.1, 0.7):
        detector = DICEDetector(head, sparsity=sparsity).fit(X)
        assert detector.head_agreement_ == pytest.approx(0.999, abs=0.003)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 700), st.sampled_from([None, 1, 2]), st.integers(0, 99))
def test_the_sample_depends_on_the_number_of_a_row_alone(n_rows, batch_size, n_jobs, seed):
    rows = np.arange(n_rows, dtype=np.float64)[:, None]
    sample = measure(
        as_source(rows), Wanted(n_sampled=300), batch_size=batch_size, n_jobs=n_jobs
    ).sample
    whole = measure(as_source(rows), Wanted(n_sampled=300)).sample
    np.testing.assert_array_equal(sample.rows, whole.rows)
    assert abs(len(sample.rows) - min(n_rows, 300)) <= 20
    weights = np.random.default_rng(seed).integers(1, 3, n_rows).astype(float)
    source = as_source(rows).inliers(None, weights)
    weighted = measure(source, Wanted(n_sampled=300), batch_size=batch_size).sample
    np.testing.assert_array_equal(weighted.rows, whole.rows)
    np.testing.assert_array_equal(weighted.weights, weights[whole.rows[:, 0].astype(int)])


@pytest.mark.parametrize("period", [2, 10, 16, 100, 1000])
def test_the_sample_has_no_period_and_covers_sorted_rows(period):
    rows = np.arange(100_000.0)[:, None]
    sample = measure(as_source(rows), Wanted(n_sampled=4000)).sample
    assert len(sample.rows) <= 4096
    counts = np.bincount(sample.rows[:, 0].astype(int) % period, minlength=period)
    assert abs(counts - 4000 / period).max() <= 10
    counts = np.bincount(sample.rows[:, 0].astype(int) // (100_000 // period), minlength=period)
    assert abs(counts - 4000 / period).max() <= 10


def test_every_kind_of_source_has_the_same_sample(fashion, tmp_path):
    X = np.ascontiguousarray(fashion.id_train, dtype=np.float32)
    expected = DICEDetector(fashion.head, sparsity=0.95).fit(X)
    np.savez_compressed(tmp_path / "x.npz", X)
    np.save(tmp_path / "x.npy", X)
    sources = [open_features(tmp_path / "x.npz"), open_features(tmp_path / "x.npy")]
    for source in sources:
        found = DICEDetector(fashion.head, sparsity=0.95).fit(source)
        assert found.head_agreement_ == expected.head_agreement_


def test_tensors_have_the_same_sample(fashion):
    torch = pytest.importorskip("torch")
    X = fashion.id_train.astype(np.float32)
    expected = DICEDetector(fashion.head, sparsity=0.95).fit(X).head_agreement_
    found = DICEDetector(fashion.head, sparsity=0.95).fit(torch.asarray(X))
    assert found.head_agreement_ == expected


def test_dask_has_the_same_sample_where_it_knows_the_rows(fashion):
    da = pytest.importorskip("dask.array")
    X = fashion.id_train.astype(np.float32)
    expected = DICEDetector(fashion.head, sparsity=0.95).fit(X).head_agreement_
    for chunk in (300, 4000):
        chunked = da.from_array(X, chunks=(chunk, -1))
        found = DICEDetector(fashion.head, sparsity=0.95).fit(chunked)
        assert found.head_agreement_ == pytest.approx(expected, abs=1e-12)
    unknown = chunked.rechunk((500, -1))
    unknown = unknown[unknown[:, 0] > -1]
    found = DICEDetector(fashion.head, sparsity=0.95).fit(unknown)
    assert found.head_agreement_ == pytest.approx(expected, abs=0.03)


def test_dead_units_prune_more_than_asked_for():
    rng = np.random.default_rng(0)
    head = LinearHead(rng.normal(size=(10, 100)))
    X = rng.uniform(size=(200, 100))
    X[:, 48:] = 0  # 52 units of 100 are dead
    with pytest.warns(UserWarning, match="asks for") as caught:
        detector = DICEDetector(head, sparsity=0.5).fit(X)
    (message,) = (str(each.message) for each in caught if "asks for" in str(each.message))
    pruned = 1 - detector.mask_.mean()
    below = (X.mean(axis=0) * head.weight < 0).mean()
    assert pruned == pytest.approx(below + 0.52)
    assert 0.72 < pruned < 0.8
    assert message == (
        f"sparsity=0.5 asks for 50% of the weights to be pruned, and {pruned:.0%} are: the "
        "contributions of 520 weights tie at the threshold 0, 52 units of 100 being always zero. "
        f"Every sparsity from {below:.3f} to {pruned:.3f} gives this mask; a lower one keeps these "
        "weights."
    )
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("error:.*asks for")
def test_no_warning_where_ties_cost_nothing(small):
    head, X = small
    DICEDetector(head, sparsity=0.5).fit(X)  # no ties
    DICEDetector("identity", sparsity=0.1).fit(np.abs(X))  # only weights of zero are pruned


def test_a_search_warns_of_its_choice_alone(small):
    head, X = small
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sparsity_path(head, X, X, [0.1, 0.5, 0.9])
        assert not caught
        detector = DICEDetectorCV(head, sparsities=[0.8, 0.9], cv=3).fit(X, outliers=X[:20] + 9)
    assert [PATTERN in str(each.message) for each in caught] == [True]
    assert detector.head_agreement_ < 0.95


def test_an_ensemble_hears_of_its_member(small):
    head, X = small
    with pytest.warns(UserWarning, match="In an ensemble nothing has to be done"):
        ensemble = make_ensemble(head).fit(X)
    assert ensemble.named_estimators_["dice"].head_agreement_ < 0.95
    assert ensemble.named_estimators_["energy"].head_agreement_ == 1


def test_it_is_saved_and_shown(tmp_path, capsys):
    detector = DICEDetector(HEAD, sparsity=0.25).fit(ROWS)
    path = tmp_path / "d.safetensors"
    skdice.save(detector, path)
    assert skdice.load(path).head_agreement_ == 0.75
    from skdice.cli import main

    main(["inspect", str(path)])
    assert "head agreement    0.75" in capsys.readouterr().out.replace("head_agreement", "")
    main(["inspect", str(path), "--json"])
    assert json.loads(capsys.readouterr().out)["head_agreement"] == 0.75
    skdice.save(DICEDetector(HEAD).partial_fit(ROWS), path)
    assert not hasattr(skdice.load(path), "head_agreement_")


def test_a_report_shows_a_low_one():
    detectors = {
        "dice": DICEDetector(HEAD, sparsity=0.25).fit(ROWS),
        "energy": DICEDetector(HEAD, sparsity=0).fit(ROWS),
        "partial": DICEDetector(HEAD, sparsity=0).partial_fit(ROWS),
    }
    report = compare(detectors, ROWS, {"far": ROWS - 5})
    header, dice, energy, partial = report._table()
    assert (header[-1], dice[-1], energy[-1], partial[-1]) == ("agreement", "75.0", "100.0", "")
    assert report.to_dict()["dice"]["head_agreement"] == 0.75
    del detectors["dice"]
    assert "agreement" not in repr(compare(detectors, ROWS, {"far": ROWS - 5}))
