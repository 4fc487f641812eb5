"""The figures of a report are those of the detector and of the metrics, whatever it is given."""

import hashlib
import json
from importlib.util import find_spec

import numpy as np
import pytest
from reported import KINDS
from scipy.stats import betabinom
from sklearn import config_context
from sklearn.ensemble import IsolationForest
from sklearn.metrics import auc
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import skdice
from skdice import DICEDetector, ViMDetector, sparsity_path
from skdice.io import save_features
from skdice.metrics import auroc, confidence_interval, fpr_at_tpr
from skdice.monitoring import batch_test
from skdice.report import OODReport


def labelled(inside, outside):
    return np.repeat([1, -1], [len(inside), len(outside)]), np.concatenate([inside, outside])


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_those_of_the_detector_and_of_the_metrics(kind, report_of, detector_of, rows):
    report, detector, (X_id, ood) = report_of(kind), detector_of(kind), rows
    inside = np.asarray(detector.score_samples(X_id))
    for measured, (name, X) in zip(report.sets, ood.items(), strict=True):
        y, s = labelled(inside, np.asarray(detector.score_samples(X)))
        assert measured.name == name
        assert measured.n_rows == len(X)
        assert measured.fpr95.value == fpr_at_tpr(y, s)
        assert measured.auroc.value == auroc(y, s)
        assert measured.fpr95.interval == confidence_interval(y, s, metric="fpr_at_tpr")
        assert measured.auroc.interval == confidence_interval(y, s)
    for mean, name in ((report.fpr95, "fpr95"), (report.auroc, "auroc")):
        values = [getattr(each, name) for each in report.sets]
        assert mean.value == np.mean([each.value for each in values])
        assert mean.interval[0] < mean.value < mean.interval[1]
    for measured, X in zip((report.inside, *report.sets), (X_id, *ood.values()), strict=True):
        if kind == "no threshold":
            assert measured.n_flagged is measured.flagged is None
        else:
            assert measured.n_flagged == (detector.predict(X) == -1).sum()
            assert measured.flagged == measured.n_flagged / len(X)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_to_look_at_are_those_with_the_lowest_and_the_highest_scores(
    kind, report_of, detector_of, rows
):
    report, detector, (X_id, _) = report_of(kind), detector_of(kind), rows
    scores = np.asarray(detector.score_samples(X_id))
    least, most = report.inside.least_typical, report.inside.most_typical
    assert [each.score for each in least] == sorted(scores)[:10]
    assert [each.score for each in most] == sorted(scores)[::-1][:10]
    for each in (*least, *most):
        assert each.score == scores[each.row]
        if hasattr(detector, "calibration_scores_"):
            assert each.pvalue == detector.pvalues(X_id[each.row : each.row + 1])[0]
        else:
            assert each.pvalue is None
        if hasattr(detector, "offset_"):
            assert each.flagged == (each.score < detector.offset_)


def test_classes_are_those_of_the_full_head(report_of, detector_of, rows, fashion):
    report, detector, (X_id, _) = report_of("conformal"), detector_of("conformal"), rows
    logits = X_id.astype(np.float32) @ fashion.head.weight.T + fashion.head.bias
    classes, flags = logits.argmax(axis=1), detector.predict(X_id) == -1
    assert [each.predicted for each in report.inside.classes] == sorted(set(classes.tolist()))
    for each in report.inside.classes:
        assert each.n_rows == (classes == each.predicted).sum()
        assert each.n_flagged == flags[classes == each.predicted].sum()
        assert each.threshold == detector.offset_
    assert sum(each.n_flagged for each in report.inside.classes) == report.inside.n_flagged
    for each in report.inside.least_typical:
        assert each.predicted == classes[each.row]


def test_a_detector_without_a_head_has_no_classes(report_of):
    report = report_of("only foreign")
    assert report.detector.head is None
    assert report.inside.classes == ()
    assert report.inside.least_typical[0].predicted is None


@pytest.mark.parametrize("kind", ["quantile", "conformal", "confidence"])
def test_the_probability_of_so_many_flags_is_beta_binomial(kind, report_of, detector_of):
    report, record = report_of(kind), detector_of(kind).calibration_
    law = betabinom(report.inside.n_rows, record.rank, record.n_samples + 1 - record.rank)
    assert report.inside.pvalue == pytest.approx(law.sf(report.inside.n_flagged - 1))


def test_there_is_no_probability_without_a_calibration(report_of):
    assert report_of("uncalibrated").inside.pvalue is None
    assert report_of("no threshold").inside.pvalue is None


@pytest.mark.parametrize("kind", ["conformal", "react", "search"])
def test_the_sparsity_path_goes_through_the_figures_of_the_report(
    kind, report_of, detector_of, rows, fashion
):
    report, detector, (X_id, ood) = report_of(kind), detector_of(kind), rows
    path = report.path
    assert path.deployed == getattr(detector, "sparsity_", 0.1)
    at = path.sparsities.index(path.deployed)
    for measured in report.sets:
        assert path.auroc[measured.name][at] == pytest.approx(measured.auroc.value, abs=1e-4)
        assert path.fpr95[measured.name][at] == pytest.approx(measured.fpr95.value, abs=0.01)
    scores = [
        sparsity_path(fashion.head, fashion.id_train[:1500], X, [0.9], shaping=detector.shaping)[0]
        for X in (X_id, ood["mnist"])
    ]
    found = path.auroc["mnist"][path.sparsities.index(0.9)]
    assert found == pytest.approx(auroc(*labelled(*scores)))
    assert path.mean_auroc[at] == np.mean([values[at] for values in path.auroc.values()])
    assert path.mean_fpr95[at] == np.mean([values[at] for values in path.fpr95.values()])


@pytest.mark.parametrize("kind", ["identity", "vim", "fdbd", "ensemble"])
def test_a_detector_that_prunes_no_head_has_no_path(kind, report_of):
    assert report_of(kind).path is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_becomes_json(kind, report_of):
    told = json.loads(json.dumps(report_of(kind).to_dict(), allow_nan=False))
    assert told["auroc"]["value"] == report_of(kind).auroc.value


def test_the_histogram_holds_all_rows(report_of):
    for measured in report_of("conformal").sets:
        histogram = measured.histogram
        assert len(histogram.edges) == len(histogram.inside) + 1
        assert np.sum(histogram.inside) == pytest.approx(1)
        assert np.sum(histogram.outside) == pytest.approx(1)
        assert np.all(np.diff(histogram.edges) > 0)


def test_scores_that_are_all_the_same_have_a_histogram():
    X = np.ones((50, 3))
    report = OODReport.from_detector(DICEDetector(np.eye(3), sparsity=0).fit(X), X, {"same": X})
    assert report.auroc.value == 0.5
    assert max(report.sets[0].histogram.inside) == 1


def test_the_curve_begins_and_ends_in_the_corners_and_keeps_its_area(report_of):
    for measured in report_of("conformal").sets:
        fpr, tpr = np.transpose(measured.roc)
        assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
        assert auc(fpr, tpr) == pytest.approx(measured.auroc.value, abs=0.01)


def test_operating_points_are_shares_below_the_ranks_of_the_rates(report_of, detector_of, rows):
    X_id, ood = rows
    detector = detector_of("vim")
    inside, outside = np.sort(detector.score_samples(X_id)), detector.score_samples(ood["mnist"])
    expected = [np.mean(outside < inside[rank]) for rank in (8, 16, 40, 80, 160)]  # of 800 rows
    np.testing.assert_allclose(report_of("vim").sets[0].operating, expected)


def test_a_row_alone_has_no_interval(detector_of, rows):
    X_id, ood = rows
    report = OODReport.from_detector(detector_of("vim"), X_id, {"one": ood["mnist"][:1]})
    assert report.sets[0].auroc.interval is report.auroc.interval is report.fpr95.interval is None
    assert len(report.sets[0].most_typical) == 1


def test_the_rule_of_roc_curve(detector_of, rows):
    X_id, ood = rows
    detector = detector_of("vim")
    report = OODReport.from_detector(detector, X_id, ood, rule="roc_curve")
    y, s = labelled(detector.score_samples(X_id), detector.score_samples(ood["mnist"]))
    assert report.sets[0].fpr95.value == fpr_at_tpr(y, s, rule="roc_curve")


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_thresholds_of_predicted_classes(fashion, rows, confidence, tmp_path):
    X_id, ood = rows
    detector = DICEDetector(fashion.head).fit(fashion.id_train)
    heldout = fashion.id_test[2000:3500]
    classes = predicted_by(fashion.head, heldout)
    # Classes 3 and 7 are left with too few rows for thresholds of their own.
    kept = ~np.isin(classes, [3, 7]) | (np.arange(len(classes)) < 50)
    with pytest.warns(UserWarning, match="2 of 10 predicted classes have too few"):
        detector.calibrate(
            heldout[kept], method="conformal", by="prediction", confidence=confidence
        )
    report = OODReport.from_detector(detector, X_id, ood)
    assert report.inside.n_flagged == (detector.predict(X_id) == -1).sum()
    assert report.sets[0].n_flagged == (detector.predict(ood["mnist"]) == -1).sum()
    found, flagged = predicted_by(fashion.head, X_id), detector.predict(X_id) == -1
    for each in report.inside.classes:
        assert each.threshold == detector.class_offsets_[each.predicted]
        assert each.n_rows == (found == each.predicted).sum()
        assert each.n_flagged == flagged[found == each.predicted].sum()
    test = batch_test(detector, X_id)
    assert report.inside.pvalue == test.pvalue
    tested = ~np.isin(found, [3, 7])
    assert report.inside.n_tested == test.n_rows == tested.sum()
    assert report.inside.n_tested_flagged == test.n_flagged == flagged[tested].sum()
    if find_spec("jinja2"):
        report.to_html(tmp_path / "report.html")
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert ", for 8 of 10 classes" in text
        assert f"Nothing is known about the other {(~tested).sum()} rows." in text
    pvalues = detector.pvalues(X_id)
    for each in (*report.inside.least_typical, *report.inside.most_typical):
        assert each.pvalue == pvalues[each.row]
    assert report.promise.by == "prediction"
    assert report.promise.fallback_classes == (3, 7)
    assert any("2 classes had too few calibration rows" in each for each in report.warnings)


def predicted_by(head, X):
    return (X.astype(np.float32) @ head.weight.T + head.bias).argmax(axis=1)


@pytest.fixture
def files(tmp_path, detector_of, rows):
    X_id, ood = rows
    skdice.save(detector_of("ensemble"), tmp_path / "detector.safetensors")
    np.save(tmp_path / "test.npy", X_id)
    save_features(tmp_path / "a b.npz", ood["mnist"])
    return tmp_path


def test_files_are_named_by_their_digests_and_the_command_runs(files, report_of):
    paths = files / "detector.safetensors", files / "test.npy", files / "a b.npz"
    report = OODReport.from_detector(paths[0], paths[1], {"mnist": paths[2]})
    assert report.sets[0] == report_of("ensemble").sets[0]
    digests = [report.detector.digest, *(each.digest for each in report.data)]
    for path, digest in zip(paths, digests, strict=True):
        assert digest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report.detector.written_by["skdice"] == skdice.__version__
    assert report.command == (
        *("skdice", "report", str(paths[0]), "--id", str(paths[1])),
        *("--ood", f"mnist={paths[2]}"),
    )


def test_rows_in_memory_have_a_digest_of_their_values_and_no_command(report_of, detector_of, rows):
    report, (X_id, _) = report_of("vim"), rows
    expected = hashlib.sha256(np.ascontiguousarray(X_id).tobytes()).hexdigest()
    assert report.data[0].digest.sha256 == expected
    assert report.command is None
    assert report.detector.source == "in memory"


def test_a_detector_in_memory_has_the_digest_that_its_file_stores(detector_of, tmp_path):
    from safetensors import safe_open

    path = tmp_path / "detector.safetensors"
    skdice.save(detector_of("ensemble"), path)
    with safe_open(path, "np") as file:
        stored = file.metadata()["sha256"]
    X = np.zeros((3, 128))
    report = OODReport.from_detector(detector_of("ensemble"), X, {"zeros": X})
    assert report.detector.digest.sha256 == stored


def test_a_detector_that_cannot_be_saved_has_no_digest(report_of):
    digest = report_of("foreign member").detector.digest
    assert digest.sha256 is None
    assert digest.of.startswith("not computed")


def test_members_have_their_parameters_and_fitted_values(report_of, detector_of):
    report, detector = report_of("ensemble"), detector_of("ensemble")
    assert [each.name for each in report.detector.members] == ["energy", "dice", "fdbd", "vim"]
    dice, vim = report.detector.members[1], report.detector.members[3]
    assert dice.kind == "DICEDetector"
    assert dice.parameters["sparsity"] == "0.1"
    assert "head" not in dice.parameters
    kept = int(detector.named_estimators_["dice"].mask_.sum())
    assert dice.fitted["weights kept"] == f"{kept:,} of 1,280 (90.0 %)"
    assert vim.fitted["alpha"] == f"{detector.named_estimators_['vim'].alpha_:.6g}"


def largest(logits):
    return logits.max(axis=1)


def test_a_function_among_the_parameters_has_no_address(fashion, rows):
    detector = DICEDetector(fashion.head, score_func=largest).fit(fashion.id_train[:100])
    report = OODReport.from_detector(detector, *rows)
    assert report.detector.own.parameters["score_func"] == "function largest"
    assert report.path is not None


@pytest.mark.parametrize("library", ["torch", "dask", "pandas"])
def test_rows_of_every_library(library, detector_of, rows, report_of):
    X_id, ood = (np.asarray(rows[0], np.float32), np.asarray(rows[1]["mnist"], np.float32))
    if library == "torch":
        convert = pytest.importorskip("torch").from_numpy
    elif library == "dask":
        da = pytest.importorskip("dask.array")
        convert = lambda X: da.from_array(X, chunks=(100, -1))  # noqa: E731
    else:
        convert = pytest.importorskip("pandas").DataFrame
    for kind in ("conformal", "ensemble"):
        detector = detector_of(kind)
        report = OODReport.from_detector(detector, convert(X_id), {"mnist": convert(ood)})
        expected = report_of(kind)
        assert report.sets[0].auroc.value == pytest.approx(expected.sets[0].auroc.value, abs=1e-4)
        assert report.inside.n_flagged == pytest.approx(expected.inside.n_flagged, abs=1)
        assert report.data[0].n_rows == len(X_id)
        if library == "dask":
            assert report.data[0].digest.sha256 is None
            assert "Dask" in report.data[0].digest.of
            assert report.path is None
        else:
            digest = hashlib.sha256(X_id.tobytes()).hexdigest()
            assert report.data[0].digest.sha256 == digest


def test_a_detector_whose_arrays_are_those_of_another_library(fashion, rows):
    torch = pytest.importorskip("torch")
    train, X_id, mnist = (
        torch.asarray(np.asarray(X, np.float32))
        for X in (fashion.id_train[:500], rows[0], rows[1]["mnist"])
    )
    with config_context(array_api_dispatch=True):
        for detector in (DICEDetector(fashion.head), ViMDetector(fashion.head)):
            detector.fit(train).calibrate(X_id[:300])
            report = OODReport.from_detector(detector, X_id[300:], {"mnist": mnist})
            assert report.inside.n_flagged == (detector.predict(X_id[300:]) == -1).sum()
            assert (report.path is not None) == isinstance(detector, DICEDetector)


@pytest.mark.parametrize(
    ("ood", "reason"),
    [
        ({}, "ood is {}, expected a mapping"),
        ([1], r"ood is \[1\], expected a mapping"),
        ({"mean": 1}, "named 'mean'"),
        ({"in-distribution": 1}, "named 'in-distribution'"),
        ({3: 1}, "named 3"),
    ],
)
def test_sets_that_are_refused(ood, reason, detector_of, rows):
    with pytest.raises(ValueError, match=reason):
        OODReport.from_detector(detector_of("vim"), rows[0], ood)


def test_inputs_that_are_refused(detector_of, rows, tmp_path, fashion):
    X_id, ood = rows
    with pytest.raises(ValueError, match="rule is 'authors'"):
        OODReport.from_detector(detector_of("vim"), X_id, ood, rule="authors")
    with pytest.raises(TypeError, match=r"detector is a IsolationForest, expected a detector of"):
        OODReport.from_detector(IsolationForest(), X_id, ood)
    pipeline = make_pipeline(FunctionTransformer(), detector_of("vim"))
    with pytest.raises(TypeError, match=r"Pipeline give its last step, pipeline\[-1\]"):
        OODReport.from_detector(pipeline, X_id, ood)
    with pytest.raises(ValueError, match="not fitted"):  # scikit-learn's NotFittedError is one
        OODReport.from_detector(DICEDetector(fashion.head), X_id, ood)
    with pytest.raises(FileNotFoundError, match="no such file"):
        OODReport.from_detector(detector_of("vim"), tmp_path / "none.npy", ood)
    bad = ood["mnist"].copy()
    bad[7, 3] = np.nan
    with pytest.raises(ValueError, match="blurred: Input X contains NaN in row 7, column 3"):
        OODReport.from_detector(detector_of("vim"), X_id, {"blurred": bad})
    np.save(tmp_path / "narrow.npy", X_id[:, :5])
    with pytest.raises(ValueError, match=r"narrow.npy: X has 5 features, but"):
        OODReport.from_detector(detector_of("vim"), tmp_path / "narrow.npy", ood)


def test_the_detector_is_left_as_it_was(detector_of, rows):
    detector = detector_of("fdbd")
    before = dict(vars(detector))
    OODReport.from_detector(detector, *rows)
    assert vars(detector) == before
