"""What the shell sees of the ``skdice`` command: imports, signals, and closed standard streams."""

import re
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest

import skdice
from skdice import DICEDetector

COMMANDS = [
    *("fit", "extract", "search", "calibrate", "score", "monitor"),
    *("evaluate", "report", "inspect", "demo"),
]

# Runs `python -m skdice` with the arguments after the first three, and sends the process a signal
# when an audit event (see `sys.addaudithook`) is about something with a given name.
SIGNALLED = """
import atexit, os, runpy, signal, sys

# A shell that runs the tests in the background makes them ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
event, name, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
del sys.argv[1:4]
sent = []

def send(seen, arguments):
    if seen == event and name in str(arguments[0]) and not sent:
        sent.append(number)
        os.kill(os.getpid(), number)

sys.addaudithook(send)
atexit.register(lambda: send("exit", ["exit"]))
runpy.run_module("skdice", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    rows = np.random.default_rng(0).normal(size=(50, 4))
    np.save(folder / "rows.npy", rows)
    skdice.save(DICEDetector("identity", sparsity=0).fit(rows), folder / "det.safetensors")
    return folder


@pytest.fixture
def shell(files):
    """Return a function that runs a line of shell among the files, with `skdice` defined."""

    def shell(line):
        return subprocess.run(
            ["sh", "-c", f'skdice() {{ {sys.executable} -m skdice "$@"; }}\n{line}'],
            cwd=files,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return shell


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("--help", 0),
        ("--version", 0),
        *((f"{command} --help", 0) for command in COMMANDS),
        ("", 2),
        ("fly", 2),
        ("score", 2),
        ("score det x --colour", 2),
        ("score '' x", 2),
        ("score det ''", 2),
        ("fit x --head h -o d.safetensors --sparsity 90", 2),
        ("fit x --head h -o d.safetensors --score best", 2),
        ("fit x --head h -o d.safetensors --shaping relu", 2),
        ("fit x --head h -o d.safetensors --shaping react:q=1", 2),
        ("calibrate det x --contamination 0.6", 2),
        ("extract m x -o f.npy --batch-size 0", 2),
        ("evaluate det --id x --ood =x", 2),
        ("evaluate det --id x --ood a=1 --ood a=2", 2),
        ("evaluate det --id x --ood y --png p.jpg", 2),
        ("score det x -o s.txt", 2),
        ("monitor det x --state s.json --false-alarm 2", 2),
        ("search x --head h", 2),
    ],
)
def test_help_and_argument_errors_import_no_numerical_library(line, code):
    program = (
        "import sys, atexit; heavy = {'numpy', 'scipy', 'sklearn', 'joblib', 'torch', 'dask'};"
        "atexit.register(lambda: print('imported', *sorted(heavy & set(sys.modules))));"
        "from skdice.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *shlex.split(line)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == "imported"
    assert (done.stderr == "") == (code == 0)


def test_the_command_alone_shows_the_first_steps(shell):
    done = shell("skdice")
    assert (done.returncode, done.stdout) == (2, "")
    steps = re.findall(r"^  skdice (\w+) ", done.stderr, re.MULTILINE)
    assert steps == ["extract", "fit", "calibrate", "score", "monitor"]
    assert shell("skdice 2>&-").stdout == ""


def test_importing_the_package_imports_no_numerical_library():
    program = "import sys, skdice.cli; print(*{'numpy', 'scipy', 'sklearn'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    ("event", "name"),
    [
        ("import", "sklearn"),
        ("import", "skdice.cli"),
        ("open", "rows.npy"),
        ("open", "scores.npy"),
        ("exit", "exit"),
    ],
)
def test_a_signal_ends_the_process_with_its_code_in_silence(
    files, tmp_path, event, name, sent, code
):
    (tmp_path / "scores.npy").write_text("old")
    command = ["score", "det.safetensors", "rows.npy", "--quiet", "-o", tmp_path / "scores.npy"]
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, event, name, str(int(sent)), *command],
        cwd=files,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.npy"]
    if event != "exit":
        assert (tmp_path / "scores.npy").read_text() == "old"


def test_a_signal_that_the_parent_ignores_stays_ignored(files):
    # This is how `nohup` and shells protect what runs in the background.
    program = SIGNALLED.replace("signal.default_int_handler", "signal.SIG_IGN")
    arguments = ["import", "sklearn", str(int(signal.SIGINT)), "inspect", "det.safetensors"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=files,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "threshold" in done.stdout


@pytest.mark.parametrize(
    "line", ["inspect det.safetensors", "score det.safetensors rows.npy", "--version"]
)
def test_a_closed_stderr_changes_nothing(shell, line):
    expected, done = shell(f"skdice {line}"), shell(f"skdice {line} 2>&-")
    assert (done.returncode, done.stdout) == (0, expected.stdout)
    assert done.stdout != ""


def test_a_closed_stderr_receives_no_summary_on_stdout(shell, files):
    done = shell("skdice score det.safetensors rows.npy -o s.npy 2>&-")
    assert (done.returncode, done.stdout) == (0, "")
    detector = skdice.load(files / "det.safetensors")
    expected = detector.score_samples(np.load(files / "rows.npy"))
    np.testing.assert_array_equal(np.load(files / "s.npy"), expected)
    done = shell("skdice score det.safetensors missing.npy 2>&-")
    assert (done.returncode, done.stdout) == (2, "")


def test_no_file_takes_the_place_of_a_closed_stream(files):
    # The next file opened would get the number of the closed stream, and what a library prints
    # would be written into that file.
    program = (
        "import os, runpy, sys\n"
        "def check(event, arguments):\n"
        "    if event == 'import' and arguments[0] == 'sklearn':\n"
        "        for number in (0, 1, 2):\n"
        "            os.fstat(number)\n"
        "sys.addaudithook(check)\n"
        "runpy.run_module('skdice', run_name='__main__', alter_sys=True)\n"
    )
    line = shlex.join([sys.executable, "-c", program, "inspect", "det.safetensors"])
    done = subprocess.run(f"{line} <&- >&- 2>&-", shell=True, cwd=files, timeout=120)
    assert done.returncode == 0


def test_a_closed_stdin_is_named(shell):
    done = shell("skdice score det.safetensors - <&-")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "skdice: cannot read FEATURES from standard input: it is closed; "
        "expected the contents of a .npy file\n"
    )


def test_a_reader_that_goes_away_ends_the_command_in_silence(shell, files):
    np.save(files / "many.npy", np.zeros((100_000, 4)))
    done = shell("skdice score det.safetensors many.npy | head -n 2")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_one_line(shell):
    done = shell("skdice score det.safetensors rows.npy >/dev/full")
    assert done.returncode == 2
    assert done.stderr == "skdice: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    "line",
    [
        "score det.safetensors ''",
        "score '' rows.npy",
        "score det.safetensors rows.npy -o ''",
        "fit rows.npy --head '' -o new.safetensors",
        "evaluate det.safetensors --id rows.npy --ood ''",
        "extract '' images -o new.npy",
        "demo --output ''",
    ],
)
def test_an_empty_path_is_refused(shell, files, line):
    before = sorted(files.iterdir())
    done = shell(f"skdice {line}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].endswith("expected a path, got ''")
    assert sorted(files.iterdir()) == before


@pytest.mark.parametrize("arguments", [["inspect", "none"], ["inspect", "det.safetensors"]])
def test_main_restores_the_signal_handlers(files, monkeypatch, capsys, arguments):
    from skdice.cli import main

    def own(number, frame):
        raise AssertionError("no signal is sent")

    monkeypatch.chdir(files)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, own) for number in numbers]
    try:
        main(arguments)
        assert [signal.getsignal(number) for number in numbers] == [own, own]
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
