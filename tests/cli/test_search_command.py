"""``skdice search``: a table of the candidates, and the best of them in a file."""

import json

import numpy as np
import pytest

import skdice
from skdice import DICEDetector, make_ensemble
from skdice.cli import main
from skdice.io import save_features
from skdice.metrics import auroc


@pytest.fixture(scope="module")
def folder(tmp_path_factory, fashion):
    folder = tmp_path_factory.mktemp("search")
    np.save(folder / "train.npy", fashion.id_train)
    np.save(folder / "test.npy", fashion.id_test)
    for name, rows in fashion.ood.items():
        np.save(folder / f"{name}.npy", rows)
    np.savez(folder / "head.npz", weight=fashion.head.weight, bias=fashion.head.bias)
    return folder


@pytest.fixture
def run(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)

    def run(*arguments):
        code = main(["search", "train.npy", "--head", "head.npz", *arguments])
        return code, *capsys.readouterr()

    return run


def mean_auroc(detector, X_id, sets):
    def of_set(X):
        y = np.repeat([1, -1], [len(X_id), len(X)])
        scores = [detector.score_samples(rows) for rows in (X_id, X)]
        return auroc(y, np.concatenate(scores))

    return np.mean([of_set(X) for X in sets])


def test_the_figures_are_those_of_fitted_detectors_and_the_best_is_written(run, folder, fashion):
    options = ("--id", "test.npy", "--ood", "digits=mnist.npy", "--ood", "textures.npy", "--json")
    code, out, err = run(*options, "--contamination", "0.1", "-o", "best.safetensors")
    assert (code, err) == (0, "")
    printed = json.loads(out)
    means = {name: found["mean"]["auroc"] for name, found in printed["candidates"].items()}
    sets = [fashion.ood["mnist"], fashion.ood["textures"]]
    assert list(printed["candidates"]["ensemble"]["sets"]) == ["digits", "textures"]
    for name, detector in (
        ("sparsity 0", DICEDetector(fashion.head, sparsity=0)),
        ("sparsity 0.9", DICEDetector(fashion.head, sparsity=0.9)),
        ("ensemble", make_ensemble(fashion.head)),
    ):
        expected = mean_auroc(detector.fit(fashion.id_train), fashion.id_test, sets)
        assert means[name] == pytest.approx(expected, abs=1e-4)
    assert printed["best"] == max(means, key=means.get) == "ensemble"
    written = skdice.load(folder / "best.safetensors")
    expected = make_ensemble(fashion.head, contamination=0.1).fit(fashion.id_train)
    assert written.offset_ == expected.offset_


def test_a_fifth_of_the_rows_is_held_out_where_no_others_are_given(run, folder, fashion):
    is_held = np.zeros(4000, bool)
    is_held[np.random.default_rng(0).choice(4000, 800, replace=False)] = True
    detector = DICEDetector(fashion.head, sparsity=0.1).fit(fashion.id_train[~is_held])
    expected = mean_auroc(detector, fashion.id_train[is_held], [fashion.ood["mnist"]])
    printed = json.loads(run("--ood", "mnist.npy", "--json")[1])
    found = printed["candidates"]["sparsity 0.1"]["mean"]["auroc"]
    assert found == pytest.approx(expected, abs=1e-4)
    assert printed["output"] is None


def test_the_score_and_the_shaping_are_those_of_the_options(run, folder, fashion):
    # With these options a sparsity is the best, so that it is what the file holds.
    options = ("--shaping", "react:threshold=1.5", "--id", "test.npy", "--ood", "mnist.npy")
    code, out, err = run(*options, "-o", "dice.safetensors")
    assert code == 0
    assert "The best mean AUROC is that of sparsity 0.1" in out
    assert "; ensemble has 9" in out
    assert "fitted sparsity 0.1 on all features; wrote dice.safetensors" in err
    written = skdice.load(folder / "dice.safetensors")
    assert (written.sparsity, written.shaping.threshold) == (0.1, 1.5)
    assert written.n_samples_seen_ == 4000


def test_errors_name_the_file(run, folder):
    np.save(folder / "narrow.npy", np.ones((4, 3)))
    bad = np.load(folder / "mnist.npy")[:10]
    bad[7, 2] = np.nan
    np.save(folder / "bad.npy", bad)
    for options, message in (
        (("--ood", "narrow.npy"), "narrow.npy: it has 3 features, but the head expects 128"),
        (("--ood", "bad.npy"), "bad.npy: Input X contains NaN in row 7"),
        (("--ood", "none.npy"), "no such file: none.npy"),
    ):
        code, out, err = run(*options)
        assert (code, out) == (2, "")
        assert message in err
    before = (folder / "mnist.npy").read_bytes()
    save_features(folder / "ood.safetensors", bad[:5])
    assert run("--ood", "ood.safetensors", "-o", "ood.safetensors")[0] == 2
    assert (folder / "mnist.npy").read_bytes() == before
    np.save(folder / "few.npy", np.ones((4, 128)))
    assert main(["search", "few.npy", "--head", "head.npz", "--ood", "mnist.npy"]) == 2
