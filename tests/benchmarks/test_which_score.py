"""Tests of the benchmark behind the page "Which score, when"."""

from pathlib import Path

import numpy as np
import pytest

from skdice.metrics import compare
from skdice.shaping import ReAct

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def folder(tmp_path, fashion):
    np.savez(tmp_path / "head.npz", weight=fashion.head.weight, bias=fashion.head.bias)
    np.save(tmp_path / "id_train.npy", fashion.id_train[:1000])
    np.save(tmp_path / "id_test.npy", fashion.id_test[:900])
    for name, rows in fashion.ood.items():
        np.save(tmp_path / f"ood_{name}.npy", rows[:200])
    return tmp_path


def test_a_folder_is_measured_as_compare_measures_its_rows(folder, fashion):
    from which_score import detectors, measure, read_network

    network = read_network(folder)
    assert set(network.ood) == set(fashion.ood)
    found = measure(network)
    judged = network.id_test[np.random.default_rng(0).permutation(900)[300:600]]
    fitted = {
        name: detector.fit(network.id_train) for name, detector in detectors(network.head).items()
    }
    report = compare(fitted, judged, network.ood)
    for name, quality in found.items():
        assert quality.auroc == pytest.approx(report.results[name].mean.auroc)
        assert quality.fpr95 == pytest.approx(report.results[name].mean.fpr95)
        assert quality.flagged < 0.15
        assert quality.auroc_interval is None


def test_the_members_of_the_ensemble_are_among_the_scores(fashion):
    """The table shows what the ensemble gains over each of its members."""
    from which_score import detectors

    table = detectors(fashion.head)
    members = dict(table["ensemble"].estimators)
    for name, shown in (
        ("energy", "energy + ReAct 0.99"),
        ("dice", "DICE 0.1 + ReAct 0.99"),
        ("fdbd", "fDBD"),
        ("vim", "ViM"),
    ):
        wanted, found = members[name].get_params(), table[shown].get_params()
        assert repr(wanted) == repr(found)
    assert repr(members["dice"].shaping) == repr(ReAct(quantile=0.99))


def test_regret_is_the_distance_to_the_best_of_each_network():
    from which_score import Quality, format_table, regrets

    results = {
        "one": {"a": Quality(0.9, 0.3, 0.05), "b": Quality(0.8, 0.2, 0.05)},
        "two": {"a": Quality(0.7, 0.5, 0.05), "b": Quality(0.95, 0.1, 0.05)},
    }
    auroc, fpr95 = regrets(results, "auroc"), regrets(results, "fpr95")
    np.testing.assert_allclose(auroc["a"], [0, 25])
    np.testing.assert_allclose(auroc["b"], [10, 0])
    np.testing.assert_allclose(fpr95["a"], [10, 40])
    np.testing.assert_allclose(fpr95["b"], [0, 0])
    row = next(line for line in format_table(results).splitlines() if line.startswith("a "))
    assert row.split() == ["a", "90.0", "70.0", "80.0", "70.0", "25.0"]


def test_an_interval_holds_the_measured_value(folder):
    from which_score import measure, read_network

    network = read_network(folder)
    for quality in measure(network, n_resamples=20).values():
        low, high = quality.auroc_interval
        assert low < quality.auroc < high
        low, high = quality.fpr95_interval
        assert low <= quality.fpr95 <= high


def test_a_folder_without_outliers_is_refused(folder):
    from which_score import read_network

    for path in folder.glob("ood_*.npy"):
        path.unlink()
    with pytest.raises(ValueError, match=r"1 files head\.\* and 0 files ood_\*\.npy, expected"):
        read_network(folder)
