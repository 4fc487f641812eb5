import re
import subprocess
import sys

import numpy as np
import pytest

import skdice
from skdice.cli import main


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
    ]


def test_demo_figures_are_those_of_the_detector(demo, fashion):
    folder, printed = demo
    detector = skdice.load(folder / "detector.safetensors")
    order = np.random.default_rng(0).permutation(3000)
    validation, test = fashion.id_test[order[::2]], fashion.id_test[order[1::2]]
    assert (detector.predict(validation) == -1).mean() == 0.05
    flagged = (detector.predict(test) == -1).mean()
    assert f"it flags {flagged:.1%} of the test rows" in printed


def test_demo_draws_a_picture(demo):
    folder, _ = demo
    content = (folder / "demo.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000


def test_demo_without_matplotlib_says_how_to_get_the_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "skdice.plotting._scores", raising=False)
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


@pytest.mark.parametrize("arguments", [[], ["fly"], ["demo", "--colour"]])
def test_a_usage_error_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert "usage: skdice" in capsys.readouterr().err


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
