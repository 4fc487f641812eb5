"""``skdice report`` writes the report that Python writes."""

import json
import re
import shlex

import numpy as np
import pytest

import skdice
from skdice import DICEDetector
from skdice.cli import main
from skdice.report import OODReport

pytest.importorskip("jinja2")


@pytest.fixture
def folder(tmp_path, monkeypatch, fashion):
    """A folder with a detector and feature files, which is the current one."""
    monkeypatch.chdir(tmp_path)
    detector = DICEDetector(fashion.head).fit(fashion.id_train[:500])
    skdice.save(detector.calibrate(fashion.id_test[:300], method="conformal"), "det.safetensors")
    np.save("test.npy", fashion.id_test[300:700])
    np.save("digits.npy", fashion.ood["mnist"][:200])
    np.save("b c.npy", fashion.ood["textures"][:150])
    return tmp_path


LINE = "report det.safetensors --id test.npy --ood digits.npy --ood 'd=b c.npy' -o "


@pytest.mark.parametrize("name", ["report.html", "card.md"])
def test_the_command_writes_what_python_writes(folder, name, capsys):
    assert main(shlex.split(LINE + name)) == 0
    told = capsys.readouterr()
    assert told.out == ""
    report = OODReport.from_detector(
        "det.safetensors", "test.npy", {"digits": "digits.npy", "d": "b c.npy"}
    )
    assert told.err == (
        f"mean FPR95 {report.fpr95.value:.1%}, mean AUROC {report.auroc.value:.1%}, "
        f"{len(report.warnings)} warnings; wrote {name}\n"
    )
    written = (folder / name).read_text(encoding="utf-8")
    (report.to_html if name.endswith("html") else report.to_markdown)(folder / name)
    expected = (folder / name).read_text(encoding="utf-8")
    date = r"20\d\d-\d\d-\d\d[ T]\d\d:\d\d(:\d\d\+00:00)?"
    assert re.sub(date, "", written) == re.sub(date, "", expected)
    assert shlex.join(["skdice", *shlex.split(LINE + name)]).partition(" --ood")[0] in written


def test_the_command_of_the_report_is_understood_and_gives_the_same_report(folder, capsys):
    report = OODReport.from_detector("det.safetensors", "test.npy", {"d": "b c.npy"})
    assert main([*report.command[1:], "-o", "again.html", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert (folder / "again.html").exists()


def test_the_result_as_json(folder, capsys):
    assert main([*shlex.split(LINE + "report.html"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    report = OODReport.from_detector(
        "det.safetensors", "test.npy", {"digits": "digits.npy", "d": "b c.npy"}
    )
    assert told == {
        "output": "report.html",
        "promise": report.promise.statement,
        "id_flagged": report.inside.flagged,
        "ood_flagged": {each.name: each.flagged for each in report.sets},
        "fpr95": report.fpr95.value,
        "auroc": report.auroc.value,
        "warnings": list(report.warnings),
    }


def test_the_array_of_a_file_with_several(folder):
    arrays = {"a": np.load("digits.npy"), "b": np.load("b c.npy")}
    np.savez("many.npz", **arrays)
    np.savez("test.npz", a=np.load("test.npy"), b=np.zeros((2, 3)))
    line = "report det.safetensors --id test.npz --ood many.npz --key a -o report.html"
    assert main(shlex.split(line)) == 0
    assert "--key a -o report.html" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE + "none/report.html", "no such folder: none"),
        (LINE.replace("d=", "mean=") + "report.html", "an OOD set is named 'mean'"),
        (LINE.replace("digits.npy", "none.npy") + "report.html", "no such file: none.npy"),
    ],
)
def test_input_errors(folder, line, message, capsys):
    assert main(shlex.split(line)) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("name", ["report.pdf", "report"])
def test_the_ending_must_fit(folder, name, capsys):
    with pytest.raises(SystemExit):
        main(shlex.split(LINE + name))
    assert f"expected a name that ends in .html or .md, got '{name}'" in capsys.readouterr().err


def test_a_bad_row_names_its_file(folder, capsys):
    X = np.load("digits.npy")
    X[3, 5] = np.inf
    np.save("digits.npy", X)
    assert main(shlex.split(LINE + "report.html")) == 2
    assert "digits.npy: Input X contains infinity" in capsys.readouterr().err
