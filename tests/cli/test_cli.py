import dataclasses
import io
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import skdice
from skdice import DICEDetector, FDBDDetector, ViMDetector, shaping
from skdice._scores import SCORES
from skdice.cli import _argument_types, _arguments, main
from skdice.io import _head_files, _save, _score_files, save_features
from skdice.shaping import ReAct


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Run the demo once, as a user does; return its folder and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-m", "skdice", "demo", "--output", str(folder)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stderr == ""
    return folder, done.stdout


def test_demo_prints_the_whole_table(demo):
    _, printed = demo
    for name in (
        "MSP",
        "MaxLogit",
        "Energy",
        "ReAct",
        "DICE, sparsity 0.1",
        "DICE + ReAct, sparsity 0.7",
        "FDBD",
        "ViM",
        "Ensemble",
    ):
        (row, *_) = re.findall(rf"^{re.escape(name)} +(\d.*)$", printed, re.MULTILINE)
        cells = [tuple(map(float, cell)) for cell in re.findall(r"([\d.]+) / *([\d.]+)", row)]
        assert len(cells) == 4
        np.testing.assert_allclose(cells[3], np.mean(cells[:3], axis=0), atol=0.11)
    assert "Published, not measured here" in printed
    assert [line[:2] for line in printed.splitlines() if re.match(r"\d\. ", line)] == [
        "1.",
        "2.",
        "3.",
        "4.",
    ]


def test_demo_compares_the_ensemble_with_the_best_and_the_worst_choice(demo):
    """The sentence has the figures of the table of the test half."""
    _, printed = demo
    on_validation, on_test = re.split(r"The test half, which had no part\nin the choice", printed)
    row = r"^(\S.*?) +[\d.]+ / .* ([\d.]+) / *([\d.]+) +[\d.]+ +[\d.]+$"
    aurocs = {name: float(auroc) for name, _, auroc in re.findall(row, on_validation, re.MULTILINE)}
    ensemble = aurocs.pop("Ensemble")
    best, worst = max(aurocs, key=aurocs.get), min(aurocs, key=aurocs.get)
    assert f"you would choose {best}:" in on_test
    assert f"The worst single choice, {worst}, would have given" in on_test
    assert aurocs[worst] < ensemble
    measured = {name: auroc for name, _, auroc in re.findall(row, on_test, re.MULTILINE)}
    sentence = re.search(
        r"the ensemble of .* gives [\d.]+ / ([\d.]+), where .* gives [\d.]+ / [\d.]+: its AUROC is "
        r"([\d.]+) points (above|below) that of the best single choice, and ([\d.]+) points above "
        r"that of the worst",
        on_test,
        re.IGNORECASE,
    )
    assert sentence[1] == measured["Ensemble"]
    distance = float(measured["Ensemble"]) - float(measured[best])
    assert float(sentence[2]) == pytest.approx(abs(distance), abs=0.11)
    assert sentence[3] == ("above" if distance >= 0 else "below")


def test_demo_figures_are_those_of_the_detector(demo, fashion):
    folder, printed = demo
    detector = skdice.load(folder / "detector.safetensors")
    order = np.random.default_rng(0).permutation(3000)
    validation, test = fashion.id_test[order[::2]], fashion.id_test[order[1::2]]
    assert (detector.predict(validation) == -1).mean() == 0.05
    flagged = (detector.predict(test) == -1).mean()
    assert f"it flags {flagged:.1%} of the test rows" in printed


def test_demo_draws_a_picture(demo):
    pytest.importorskip("matplotlib")
    folder, _ = demo
    content = (folder / "demo.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000


def test_demo_without_matplotlib_says_how_to_get_the_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith("skdice.plotting")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "skdice.cli._pictures", raising=False)
    assert main(["demo", "--output", str(tmp_path)]) == 0
    assert "No picture: " in (printed := capsys.readouterr().out)
    assert "pip install 'skdice[plot]'" in printed
    assert [each.name for each in tmp_path.iterdir()] == ["detector.safetensors"]


def test_an_input_error_is_one_line_and_exit_code_2(tmp_path, capsys):
    (tmp_path / "taken").write_text("a file")
    assert main(["demo", "--output", str(tmp_path / "taken")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"skdice: .*taken.*\n", captured.err)


FIT = ("fit", "train.npy", "--head", "head.npz", "--layer", "fc")
EVALUATE = ("evaluate", "det.safetensors", "--id", "test.npy")
EXTRACT = ("extract", "model.pt2", "images", "-o", "new.npy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["demo", "--colour"], "unrecognized arguments: --colour"),
        (
            [*FIT, "-o", "x.safetensors", "--sparsity", "90"],
            "--sparsity: expected a fraction from 0 to below 1, got '90'; did you mean 0.9?",
        ),
        ([*FIT, "-o", "x.safetensors", "--sparsity", "1"], "from 0 to below 1, got '1'"),
        ([*FIT, "-o", "x.safetensors", "--sparsity", "nan"], "from 0 to below 1, got 'nan'"),
        ([*FIT, "-o", "x.safetensors", "--sparsity", "half"], "from 0 to below 1, got 'half'"),
        (
            [*FIT, "-o", "x.safetensors", "--contamination", "0"],
            "--contamination: expected a fraction above 0 and at most 0.5, got '0'",
        ),
        ([*FIT, "-o", "x.safetensors", "--contamination", "5"], "got '5'; did you mean 0.05?"),
        (
            [*FIT, "-o", "x.safetensors", "--score", "best"],
            "argument --score: invalid choice: 'best'",
        ),
        (
            [*FIT, "-o", "x.safetensors", "--shaping", "relu"],
            "one of ash, react, scale, vra, got 'relu'",
        ),
        (
            [*FIT, "-o", "x.safetensors", "--shaping", "react:q=1"],
            (
                "expected react:NAME=NUMBER[,NAME=NUMBER] with names among quantile, threshold, "
                "got 'react:q=1'"
            ),
        ),
        (
            [*FIT, "-o", "x.safetensors", "--shaping", "ash:quantile=high"],
            "among quantile, got 'ash:quan",
        ),
        (
            [*FIT, "-o", "x.safetensors", "--shaping", "ash:quantile"],
            "among quantile, got 'ash:quantile'",
        ),
        ([*EVALUATE, "--ood", "in-distribution=x"], "another name than 'in-distribution'"),
        ([*EVALUATE, "--ood", "=x"], "argument --ood: expected NAME=FILE, got '=x'"),
        ([*EVALUATE, "--ood", "x="], "argument --ood: expected NAME=FILE, got 'x='"),
        (
            [*EVALUATE, "--ood", "a=1", "--ood", "a=2"],
            "argument --ood: the name 'a' is given twice, to 1 and to 2",
        ),
        ([*EVALUATE, "--ood", "x", "--png", "p.jpg"], "a name that ends in .png, got 'p.jpg'"),
        (
            [*EXTRACT, "--batch-size", "0"],
            "--batch-size: expected a whole number of at least 1, got '0'",
        ),
        ([*EXTRACT, "--batch-size", "1.5"], "at least 1, got '1.5'"),
    ],
)
def test_an_argument_error_is_exit_code_2_and_shows_the_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: skdice")
    assert message in err


def test_the_parser_knows_the_scores_shapings_and_formats_of_the_package():
    # It repeats their names because it must not import the modules that define them.
    assert sorted(_argument_types.SCORES) == sorted(SCORES)
    classes = {name.lower(): getattr(shaping, name) for name in shaping.__all__}
    parameters = {name: sorted(shaping_().get_params()) for name, shaping_ in classes.items()}
    known = {name: sorted(options) for name, options in _argument_types.SHAPINGS.items()}
    assert known == parameters
    assert sorted(_argument_types.FEATURE_ENDINGS) == sorted(_save._WRITERS)
    assert sorted(_argument_types.HEAD_ENDINGS) == sorted(_head_files._WRITERS)
    assert _argument_types.SCORE_ENDINGS == _score_files.SCORE_ENDINGS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ash", ("ash", {})),
        ("React:quantile=0.8", ("react", {"quantile": 0.8})),
        ("vra:alpha=0.5,beta=1e1", ("vra", {"alpha": 0.5, "beta": 10.0})),
    ],
)
def test_a_shaping_is_a_name_and_options(text, expected):
    arguments = [*FIT, "-o", "x.safetensors", "--shaping", text]
    assert _arguments.build_parser().parse_args(arguments).shaping == expected


def test_ood_sets_are_named_by_the_user_or_by_their_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scale=2.npy").write_text("an equals sign is part of this name")
    sets = ["--ood", "a=b/c.npy", "--ood", "b/d.npy", "--ood", "scale=2.npy"]
    parsed = _arguments.build_parser().parse_args([*EVALUATE, *sets]).ood
    assert parsed == {"a": "b/c.npy", "d": "b/d.npy", "scale=2": "scale=2.npy"}


def test_help_and_version(capsys):
    for arguments, expected in (
        (["--version"], f"skdice {skdice.__version__}"),
        (["--help"], "demo"),
        (["demo", "--help"], "--output FOLDER"),
    ):
        with pytest.raises(SystemExit) as raised:
            main(arguments)
        assert raised.value.code == 0
        assert expected in capsys.readouterr().out


# The other commands run on the embedded data in files.


@pytest.fixture(scope="module")
def files(tmp_path_factory, fashion):
    pytest.importorskip("h5py")
    folder = tmp_path_factory.mktemp("files")
    save_features(folder / "train.npy", fashion.id_train)
    save_features(folder / "test.h5", fashion.id_test, labels=fashion.id_test_labels)
    for name, rows in fashion.ood.items():
        save_features(folder / f"{name}.safetensors", rows)
    np.savez(
        folder / "head.npz", **{"fc.weight": fashion.head.weight, "fc.bias": fashion.head.bias}
    )
    return folder


@pytest.fixture
def run(files, capsys, monkeypatch):
    """Return a function that runs a command among the files: its code, stdout and stderr."""
    monkeypatch.chdir(files)

    def run(*arguments):
        code = main([str(each) for each in arguments])
        return code, *capsys.readouterr()

    return run


def test_fit_calibrate_and_score_do_what_python_does(run, files, fashion):
    expected = DICEDetector(fashion.head, sparsity=0.1, shaping=ReAct(0.8), score_func="gen")
    expected.set_params(contamination=0.1).fit(fashion.id_train)
    code, out, err = run(
        *FIT,
        "--sparsity",
        0.1,
        "--shaping",
        "react:quantile=0.8",
        "--score",
        "gen",
        "--contamination",
        0.1,
        "-o",
        "det.safetensors",
    )
    assert (code, out) == (0, "")
    assert re.fullmatch(
        r"fitted on 4,000 rows for 10 classes x 128 features, kept 1,152 of 1,280 weights, thr.*\n",
        err,
    )
    fitted = skdice.load(files / "det.safetensors")
    assert fitted.offset_ == expected.offset_
    assert fitted.get_params()["verbose"] == 0

    code, out, err = run("calibrate", "det.safetensors", "test.h5", "-o", "cal.safetensors")
    assert (code, out) == (0, "")
    expected.calibrate(fashion.id_test)
    assert skdice.load(files / "cal.safetensors").offset_ == expected.offset_
    assert skdice.load(files / "det.safetensors").offset_ == fitted.offset_

    code, out, err = run("score", "cal.safetensors", "mnist.safetensors")
    lines = [line.split("\t") for line in out.splitlines()]
    scores = expected.score_samples(fashion.ood["mnist"])
    np.testing.assert_array_equal([np.float32(score) for score, _ in lines], scores)
    assert [int(label) for _, label in lines] == list(expected.predict(fashion.ood["mnist"]))
    assert err == ""

    assert run("score", "cal.safetensors", "mnist.safetensors", "-o", "s.npy", "--quiet") == (
        0,
        "",
        "",
    )
    np.testing.assert_array_equal(np.load(files / "s.npy"), scores)
    code, out, err = run("score", "cal.safetensors", "mnist.safetensors", "--json")
    first = json.loads(out.splitlines()[0])
    assert first == {"row": 0, "score": float(scores[0]), "is_ood": lines[0][1] == "-1"}


def test_fit_prunes_as_little_as_the_detector_by_default(run, files, fashion):
    run(*FIT, "-o", "default.safetensors")
    expected = DICEDetector(fashion.head, sparsity=0.1).fit(fashion.id_train)
    np.testing.assert_array_equal(skdice.load(files / "default.safetensors").mask_, expected.mask_)


def test_calibrate_replaces_the_detector_where_no_output_is_named(run, files):
    run(*FIT, "-o", "own.safetensors")
    before = skdice.load(files / "own.safetensors").offset_
    code, out, _ = run("calibrate", "own.safetensors", "test.h5", "--contamination", 0.2, "--json")
    assert code == 0
    printed = json.loads(out)
    assert printed["rows"] == 3000
    assert printed["contamination"] == 0.2
    assert printed["replaced"] == {
        "threshold": before,
        "method": "quantile",
        "contamination": 0.05,
        "confidence": None,
        "by": None,
    }
    assert skdice.load(files / "own.safetensors").offset_ == printed["threshold"] > before


@pytest.mark.parametrize(
    ("stored", "options", "expected"),
    [
        ("quantile", [], "quantile"),
        ("conformal", [], "conformal"),
        ("quantile", ["--method", "conformal"], "conformal"),
        ("conformal", ["--method", "quantile"], "quantile"),
    ],
)
def test_calibrate_keeps_the_method_of_the_file_unless_told_otherwise(
    run, files, fashion, stored, options, expected
):
    detector = DICEDetector(fashion.head).fit(fashion.id_train)
    old = detector.calibrate(fashion.id_test[:1000], method=stored).offset_
    skdice.save(detector, files / "method.safetensors")
    code, _, err = run("calibrate", "method.safetensors", "test.h5", *options)
    assert code == 0
    new = detector.calibrate(fashion.id_test, method=expected).offset_
    assert err == (
        f"threshold {new:.6g} ({expected}, contamination 0.05), from 3,000 rows, replaces "
        f"threshold {old:.6g} ({stored}, contamination 0.05); wrote method.safetensors\n"
    )
    calibrated = skdice.load(files / "method.safetensors")
    assert calibrated.offset_ == new
    assert hasattr(calibrated, "calibration_scores_") == (expected == "conformal")


def test_calibrate_keeps_the_confidence_of_the_file_unless_told_otherwise(run, files, fashion):
    detector = DICEDetector(fashion.head).fit(fashion.id_train)
    skdice.save(detector, files / "sure.safetensors")
    options = ("--method", "conformal", "--confidence", 0.9)
    kept, changed = (options, 0.9), (("--confidence", 0.99), 0.99)
    for more, confidence in (
        kept,
        ((), 0.9),
        changed,
        (("--confidence", "none"), None),
        ((), None),
    ):
        code, out, _ = run("calibrate", "sure.safetensors", "test.h5", "--json", *more)
        assert code == 0
        detector.calibrate(fashion.id_test, method="conformal", confidence=confidence)
        assert json.loads(out)["confidence"] == confidence
        assert json.loads(out)["threshold"] == detector.offset_
    code, _, err = run("calibrate", "sure.safetensors", "test.h5", *options[2:3], 2)
    assert code == 2
    assert "confidence is 2.0, expected" in err
    # A quantile promises nothing, so that the confidence goes.
    code, out, _ = run("calibrate", "sure.safetensors", "test.h5", "--method", "quantile", "--json")
    assert (code, json.loads(out)["confidence"]) == (0, None)


def test_calibrate_keeps_the_contamination_in_force_unless_told_otherwise(run, files, fashion):
    detector = DICEDetector(fashion.head).fit(fashion.id_train)
    detector.calibrate(fashion.id_test[:1000], 0.01)
    skdice.save(detector, files / "rare.safetensors")
    printed = json.loads(run("calibrate", "rare.safetensors", "test.h5", "--json")[1])
    assert (printed["contamination"], printed["replaced"]["contamination"]) == (0.01, 0.01)
    assert skdice.load(files / "rare.safetensors").calibration_.n_samples == 3000
    printed = json.loads(
        run("calibrate", "rare.safetensors", "test.h5", "--contamination", 0.1, "--json")[1]
    )
    assert (printed["contamination"], printed["replaced"]["contamination"]) == (0.1, 0.01)
    assert skdice.load(files / "rare.safetensors").contamination_ == 0.1


def test_calibrating_a_detector_without_a_threshold_replaces_nothing(run, files, fashion):
    skdice.save(
        DICEDetector(fashion.head).partial_fit(fashion.id_train), files / "none.safetensors"
    )
    code, _, err = run("calibrate", "none.safetensors", "test.h5")
    assert code == 0
    assert "replaces" not in err
    skdice.save(
        DICEDetector(fashion.head).partial_fit(fashion.id_train), files / "none.safetensors"
    )
    assert (
        json.loads(run("calibrate", "none.safetensors", "test.h5", "--json")[1])["replaced"] is None
    )


def test_a_detector_without_a_threshold_scores_without_labels(run, files, fashion):
    detector = DICEDetector(fashion.head).partial_fit(fashion.id_train)
    skdice.save(detector, files / "partial.safetensors")
    code, out, _ = run("score", "partial.safetensors", "mnist.safetensors")
    assert code == 0
    assert "\t" not in out
    code, out, _ = run(
        "evaluate", "partial.safetensors", "--id", "test.h5", "--ood", "mnist.safetensors"
    )
    assert code == 0
    assert "flagged" not in out


def test_evaluate_prints_a_table_json_and_a_picture(run, files, fashion):
    run(*FIT, "--sparsity", 0.1, "-o", "e.safetensors")
    arguments = (
        "evaluate",
        "e.safetensors",
        "--id",
        "test.h5",
        "--ood",
        "mnist.safetensors",
        "--ood",
        "patches=textures.safetensors",
    )
    code, out, err = run(*arguments, "--png", "e.png")
    assert (code, err) == (0, "")
    assert (files / "e.png").read_bytes().startswith(b"\x89PNG")
    for word in ("in-distribution is positive", "mnist", "patches", "mean", "flagged as out-of"):
        assert word in out
    printed = json.loads(run(*arguments, "--json")[1])
    detector = skdice.load(files / "e.safetensors")
    inside = np.sort(detector.score_samples(fashion.id_test))
    outside = detector.score_samples(fashion.ood["mnist"])
    fpr95 = np.mean(outside > inside[round(0.05 * len(inside))])
    assert printed["sets"]["mnist"]["fpr95"] == pytest.approx(fpr95)
    assert printed["mean"]["auroc"] == pytest.approx(
        np.mean([each["auroc"] for each in printed["sets"].values()])
    )
    assert printed["sets"]["mnist"]["flagged"] == np.mean(outside < detector.offset_)


@pytest.mark.parametrize(("name", "Detector"), [("vim", ViMDetector), ("fdbd", FDBDDetector)])
def test_the_other_detectors_are_fitted_inspected_and_score(run, files, fashion, name, Detector):
    code, _, err = run(*FIT, "--detector", name, "-o", "other.safetensors")
    assert code == 0
    assert re.fullmatch(r"fitted on 4,000 rows for 10 classes x 128 features, threshold .*\n", err)
    expected = Detector(fashion.head).fit(fashion.id_train)
    assert skdice.load(files / "other.safetensors").offset_ == expected.offset_
    facts = json.loads(run("inspect", "other.safetensors", "--json")[1])
    assert facts["detector"] == Detector.__name__
    assert (facts["classes"], facts["rows_fitted"]) == (10, 4000)
    assert "weights" not in facts
    code, out, _ = run("score", "other.safetensors", "train.npy")
    assert code == 0
    assert len(out.splitlines()) == 4000


@pytest.mark.parametrize(
    "option", [("--sparsity", 0.5), ("--score", "energy"), ("--shaping", "react")]
)
def test_options_of_dice_are_refused_for_other_detectors(run, files, option):
    code, _, err = run(*FIT, "--detector", "vim", *option, "-o", "x.safetensors")
    assert code == 2
    assert f"{option[0]} is an option of --detector dice, and --detector is vim" in err


def test_inspect(run, files):
    run(*FIT, "--sparsity", 0.7, "--shaping", "ash:quantile=0.5", "-o", "i.safetensors")
    code, out, _ = run("inspect", "i.safetensors")
    assert code == 0
    assert re.search(r"^kept weights +384$", out, re.MULTILINE)
    facts = json.loads(run("inspect", "i.safetensors", "--json")[1])
    assert (facts["classes"], facts["features"], facts["rows_fitted"]) == (10, 128, 4000)
    assert facts["shaping"]["class"] == "ASH"
    assert facts["threshold_method"] == "quantile"
    assert facts["contamination"] == 0.05
    assert facts["calibration"] is None
    assert re.search(r"^calibration +none$", out, re.MULTILINE)


def test_calibrate_by_prediction_is_kept_until_told_otherwise(run, files, fashion):
    skdice.save(DICEDetector(fashion.head).fit(fashion.id_train), files / "by.safetensors")
    calibrate = ("calibrate", "by.safetensors", "test.h5")
    code, _, err = run(*calibrate, "--method", "conformal", "--by", "prediction")
    assert code == 0
    assert "(conformal, contamination 0.05, by prediction), from 3,000 rows, replaces thr" in err
    first = skdice.load(files / "by.safetensors")
    assert len(first.class_offsets_) == 10
    facts = json.loads(run("inspect", "by.safetensors", "--json")[1])
    assert facts["calibration"]["by"] == "prediction"
    assert facts["class_thresholds"] == first.class_offsets_.tolist()
    assert facts["fallback_classes"] == []
    # The picture and the shares follow the thresholds of the classes.
    _, out, _ = run(
        "evaluate", "by.safetensors", "--id", "test.h5", "--ood", "mnist.safetensors", "--json"
    )
    flagged = np.mean(first.predict(fashion.id_test) == -1)
    assert json.loads(out)["id_flagged"] == pytest.approx(flagged)
    assert run(*calibrate, "--contamination", 0.1)[0] == 0
    assert skdice.load(files / "by.safetensors").calibration_.by == "prediction"
    replaced = json.loads(run(*calibrate, "--by", "none", "--json")[1])["replaced"]
    assert replaced["by"] == "prediction"
    assert not hasattr(skdice.load(files / "by.safetensors"), "class_offsets_")
    run(*calibrate, "--by", "prediction")
    assert run(*calibrate, "--method", "quantile")[0] == 0
    assert skdice.load(files / "by.safetensors").calibration_.by is None
    code, _, err = run(*calibrate, "--method", "quantile", "--by", "prediction")
    assert code == 2
    assert "by is 'prediction' and method is 'quantile'" in err


@pytest.mark.parametrize("method", ["quantile", "conformal"])
def test_inspect_shows_the_calibration_in_force(run, files, fashion, method):
    detector = DICEDetector(fashion.head).fit(fashion.id_train)
    detector.calibrate(fashion.id_test, 0.01, method=method)
    skdice.save(detector, files / "calibrated.safetensors")
    facts = json.loads(run("inspect", "calibrated.safetensors", "--json")[1])
    record = detector.calibration_
    assert facts["threshold"] == detector.offset_
    assert (facts["threshold_method"], facts["contamination"]) == (method, 0.01)
    assert facts["calibration"] == dataclasses.asdict(record)
    assert facts["parameters"]["contamination"] == 0.05
    out = run("inspect", "calibrated.safetensors")[1]
    assert re.search(r"^contamination +0.01$", out, re.MULTILINE)
    for name, value in (
        ("method", method),
        ("confidence", "none"),
        ("n samples", 3000),
        ("rank", record.rank),
        ("date", record.date),
        ("digest", record.digest),
        ("by", "none"),
    ):
        assert re.search(rf"^calibration {name} +{re.escape(str(value))}$", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (*FIT[:4], "-o", "x.safetensors"),
            r"has no 'weight'; layers in the file: fc. Name one with --layer",
        ),
        ((*FIT[:3], "none.npz", "-o", "x.safetensors"), "no such file: none.npz"),
        (("fit", "none.npy", *FIT[2:], "-o", "x.safetensors"), "no such file: none.npy"),
        (
            ("fit", "test.h5", "--key", "labels", *FIT[2:], "-o", "x.safetensors"),
            r"X has shape \(3000,\)",
        ),
        ((*FIT, "-o", "no/where.safetensors"), "no such folder: no"),
        (("score", "train.npy", "train.npy"), "cannot load train.npy: it is damaged, or not a det"),
        (("score", "none", "train.npy"), "no such file: none"),
        (("score", "bad.safetensors", ".", "-o", "new.npy"), "new.npy lies in the folder"),
        (
            ("fit", "mnist.safetensors", *FIT[2:], "-o", "mnist.safetensors"),
            r"mnist.safetensors is an input, which would be lost",
        ),
        (("calibrate", "bad.safetensors", "bad.safetensors"), "is an input, which would be lost"),
        (("score", "bad.safetensors", "train.npy", "-o", "train.npy"), "is an input"),
        (("score", "bad.safetensors", "nan.npy"), "nan.npy: Input X contains NaN in row 1"),
        (("inspect", "mnist.safetensors"), "holds no skdice detector"),
        (("score", "bad.safetensors", "train.npy"), "X has 128 features, but DICEDetector is exp"),
    ],
)
def test_errors_are_one_line_on_stderr_and_exit_code_2(run, files, arguments, message):
    narrow = DICEDetector("identity", sparsity=0).fit(np.ones((3, 2)))
    skdice.save(narrow, files / "bad.safetensors")
    np.save(files / "nan.npy", [[1.0, 2.0], [np.nan, 0.0]])
    before = (files / "train.npy").read_bytes()
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert (files / "train.npy").read_bytes() == before
    assert re.fullmatch(rf"skdice: .*{message}.*\n", err)
    assert not (files / "x.safetensors").exists()


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line(run, files):
    np.savez(files / "small.npz", weight=np.array([[1.0, 2.0], [3.0, 4.0], [-1.0, -2.0]]))
    np.save(files / "two.npy", np.random.default_rng(0).uniform(size=(50, 2)))
    code, _, err = run(
        "fit", "two.npy", "--head", "small.npz", "--sparsity", 0.4, "-o", "w.safetensors"
    )
    assert code == 0
    assert err.startswith("skdice: warning: 1 of 3 classes")
    assert len(err.splitlines()) == 2


def test_logits_are_not_pruned_unless_asked(run, files, fashion):
    np.save(files / "logits.npy", fashion.id_test[:, :10])
    run("fit", "logits.npy", "--head", "identity", "-o", "logits.safetensors")
    assert skdice.load(files / "logits.safetensors").get_params()["sparsity"] == 0


def test_standard_input_that_is_no_npy_file(run, files, monkeypatch):
    run(*FIT, "-o", "n.safetensors")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"a,b\n1,2\n")))
    code, _, err = run("score", "n.safetensors", "-")
    assert code == 2
    assert "cannot read standard input, which must be a .npy file: " in err


def test_in_a_shell_pipeline(run, files):
    run(*FIT, "-o", "p.safetensors")
    skdice_ = f"{sys.executable} -m skdice"
    done = subprocess.run(
        f"cat train.npy | {skdice_} score p.safetensors - | head -n 3 | cut -f 2",
        shell=True,
        cwd=files,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert set(done.stdout.split()) <= {"1", "-1"}
    assert len(done.stdout.split()) == 3
