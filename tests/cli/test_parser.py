"""Errors of the parser: proposals, the usage of the right command, and endings; completion."""

import shutil
import subprocess
import sys

import pytest

from skdice.cli import main


@pytest.fixture
def refused(capsys):
    """Return a function that runs a command whose arguments are wrong, and returns its stderr."""

    def refused(line):
        with pytest.raises(SystemExit) as raised:
            main(line.split())
        assert raised.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        return err

    return refused


@pytest.mark.parametrize(
    ("line", "usage", "message"),
    [
        ("scroe d x", "skdice [-h]", "invalid choice: 'scroe'; did you mean score?"),
        ("zzz", "skdice [-h]", "invalid choice: 'zzz' (choose from demo, extract, fit, "),
        ("--versoin", "skdice [-h]", "unrecognized arguments: --versoin; did you mean --version?"),
        # The option that is missing because of the typing error is not what the user must hear.
        ("fit x --haed h -o d.safetensors", "skdice fit", "--haed; did you mean --head"),
        ("fit x --head h --sparsty=0.1", "skdice fit", "--sparsty=0.1; did you mean --sparsity?"),
        ("fit x --head h --detector vin", "skdice fit", "invalid choice: 'vin'; did you mean vim?"),
        ("score d x --colour", "skdice score", "unrecognized arguments: --colour\n"),
        ("score d x y", "skdice score", "unrecognized arguments: y\n"),
        ("score d x -q", "skdice score", "unrecognized arguments: -q\n"),
        ("score d", "skdice score", "the following arguments are required: FEATURES"),
        ("monitor d x --state s.json --agian", "skdice monitor", "did you mean --again?"),
    ],
)
def test_an_error_proposes_names_and_shows_the_usage_of_its_command(refused, line, usage, message):
    err = refused(line)
    assert err.startswith(f"usage: {usage}")
    assert message in err


def test_options_may_be_shortened_and_arguments_may_begin_with_dashes(capsys):
    assert main(["score", "none.safetensors", "x", "--js"]) == 2
    assert main(["inspect", "--", "--none"]) == 2
    assert capsys.readouterr().err.count("no such file: ") == 2


@pytest.mark.parametrize(
    ("line", "endings"),
    [
        ("fit x --head h -o d.npy", ".safetensors"),
        ("search x --head h --ood y -o d", ".safetensors"),
        ("calibrate d x -o d.npz", ".safetensors"),
        ("score d x -o s.txt", ".npy, .csv, .parquet or .jsonl"),
        ("extract m x -o f.txt", ".npy, .npz, .safetensors, .h5, .hdf5, .zarr, .parquet, .csv"),
        ("extract m x -o f.npy --head-output h.pt", ".npz or .safetensors"),
        ("evaluate d --id x --ood y --png p.jpg", ".png"),
        ("monitor d x --state s.json --png p.pdf", ".png"),
        ("monitor d x --state s.npy", ".json"),
        ("report d --id x --ood y -o r.pdf", ".html or .md"),
    ],
)
def test_an_output_has_the_ending_of_its_format(refused, line, endings):
    given = line.replace(" --state s.json", "").replace(" --head-output", "").split()[-1]
    assert f"expected a name that ends in {endings}" in (err := refused(line))
    assert f"got {given!r}" in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_the_completion_script_of_a_shell_is_printed(shell, capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as raised:
        main(["--print-completion", shell])
    assert raised.value.code == 0
    assert "skdice" in capsys.readouterr().out


def test_completion_without_its_library_names_the_extra(monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "pip install 'skdice[completion]'" in refused("--print-completion bash")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("cal", "calibrate"),
        ("fit --spa", "--sparsity"),
        ("fit x --detector en", "ensemble"),
        ("fit tra", "train.npy"),
        ("fit x --head hea", "head.npz"),
        ("demo --output fol", "folder"),
    ],
)
def test_bash_completes_commands_options_and_files(tmp_path, capsys, words, expected):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    (tmp_path / "completion").write_text(capsys.readouterr().out)
    for name in ("train.npy", "head.npz"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    n_words = len(words.split())
    program = (
        f"source ./completion; COMP_WORDS=(skdice {words}); COMP_CWORD={n_words}; _shtab_skdice; "
        'echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert done.stdout.split() == [expected]
