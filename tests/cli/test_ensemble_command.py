"""Ensembles in the command: fitted, calibrated, inspected, measured, and their verdicts."""

import csv
import json

import numpy as np
import pytest

import skdice
from skdice import make_ensemble
from skdice.cli import main
from skdice.metrics import evaluate

NAMES = ["energy", "dice", "fdbd", "vim"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, fashion):
    folder = tmp_path_factory.mktemp("ensemble")
    np.save(folder / "train.npy", fashion.id_train)
    np.save(folder / "heldout.npy", fashion.id_test[:1500])
    np.save(folder / "test.npy", fashion.id_test[1500:])
    np.save(folder / "mnist.npy", fashion.ood["mnist"])
    np.savez(folder / "head.npz", weight=fashion.head.weight, bias=fashion.head.bias)
    return folder


@pytest.fixture
def run(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)

    def run(line):
        code = main(line.split())
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def ensemble(run, fashion):
    """Fit and calibrate an ensemble in a file by the command, and in Python."""
    code, _, err = run("fit train.npy --head head.npz --detector ensemble -o e.safetensors")
    assert (code, err[:20]) == (0, "fitted on 4,000 rows")
    assert run("calibrate e.safetensors heldout.npy --method conformal")[0] == 0
    expected = make_ensemble(fashion.head).fit(fashion.id_train)
    return expected.calibrate(fashion.id_test[:1500], method="conformal")


def test_the_file_is_the_ensemble_of_python(run, folder, ensemble):
    assert skdice.load(folder / "e.safetensors").offset_ == ensemble.offset_


def test_inspect_shows_the_members(run, ensemble):
    facts = json.loads(run("inspect e.safetensors --json")[1])
    assert facts["detector"] == "ConformalEnsemble"
    members = {member["name"]: member for member in facts["members"]}
    assert list(members) == NAMES
    assert [member["detector"] for member in members.values()] == [
        *("DICEDetector", "DICEDetector", "FDBDDetector", "ViMDetector")
    ]
    assert (members["energy"]["sparsity"], members["dice"]["sparsity"]) == (0, 0.1)
    assert (members["dice"]["kept_weights"], members["dice"]["weights"]) == (1152, 1280)
    assert members["dice"]["shaping"]["class"] == "ReAct"
    _, out, _ = run("inspect e.safetensors")
    assert "member dice " in out
    assert "DICEDetector, sparsity 0.1, " in out
    assert "calibration method         conformal" in out


def test_evaluate_measures_the_members_beside_the_ensemble(run, ensemble, fashion):
    X_id, sets = fashion.id_test[1500:], {"mnist": fashion.ood["mnist"]}
    printed = json.loads(run("evaluate e.safetensors --id test.npy --ood mnist.npy --json")[1])
    (expected,) = evaluate(ensemble, X_id, sets).results.values()
    assert printed["sets"]["mnist"]["auroc"] == pytest.approx(expected.sets["mnist"].auroc)
    assert printed["id_flagged"] == expected.id_flagged
    assert list(printed["members"]) == NAMES
    for name, member in ensemble.named_estimators_.items():
        (alone,) = evaluate(member, X_id, sets).results.values()
        found = printed["members"][name]["mean"]
        assert found["auroc"] == pytest.approx(alone.mean.auroc, abs=1e-6)
        assert found["fpr95"] == pytest.approx(alone.mean.fpr95, abs=1e-3)
    _, out, _ = run("evaluate e.safetensors --id test.npy --ood mnist.npy")
    assert [line.split()[1] for line in out.splitlines() if "  member " in line] == NAMES


def test_score_names_the_member_that_objects(run, folder, ensemble, fashion):
    assert run("score e.safetensors mnist.npy -o s.csv --quiet") == (0, "", "")
    with (folder / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    X = fashion.ood["mnist"]
    assert [int(row["row"]) for row in rows] == list(range(len(X)))
    np.testing.assert_array_equal(
        [np.float32(row["score"]) for row in rows], ensemble.score_samples(X)
    )
    np.testing.assert_array_equal([float(row["pvalue"]) for row in rows], ensemble.pvalues(X))
    assert [row["is_ood"] for row in rows] == [
        "true" if label == -1 else "false" for label in ensemble.predict(X)
    ]
    objecting = ensemble.member_pvalues(X).argmin(axis=1)
    # Far in the tail p-values are 0 in float64; their logarithms still differ.
    tied = (np.sort(ensemble.member_pvalues(X), axis=1)[:, 0] == 0).tolist()
    for row, place, is_tied in zip(rows, objecting, tied, strict=True):
        assert is_tied or row["member"] == NAMES[place]
    first = json.loads(run("score e.safetensors mnist.npy --json")[1].splitlines()[0])
    assert list(first) == ["row", "score", "pvalue", "is_ood", "member"]
