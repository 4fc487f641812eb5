"""Tests of ``skdice monitor``: counting from call to call, and a state that is old or new."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import skdice
from skdice import DICEDetector
from skdice.cli import _monitor, main
from skdice.monitoring import FlagMonitor
from skdice.monitoring._flags import flagged_rows
from skdice.monitoring._state import digest_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A calibrated detector, good rows in three files, and odd rows in one."""
    folder = tmp_path_factory.mktemp("monitor")
    rng = np.random.default_rng(0)
    weight, X = rng.normal(size=(3, 8)), np.abs(rng.normal(size=(4000, 8)))
    detector = DICEDetector(weight, sparsity=0.1).fit(X[:1000])
    detector.calibrate(X[1000:3000], 0.05, method="conformal", confidence=0.95)
    skdice.save(detector, folder / "det.safetensors")
    detector.calibrate(X[1000:2900], 0.05, method="conformal", confidence=0.95)
    skdice.save(detector, folder / "other.safetensors")
    for name, rows in (("a", X[3000:3400]), ("b", X[3400:3700]), ("c", X[3700:])):
        np.save(folder / f"{name}.npy", rows)
    scores = detector.score_samples(X)
    np.save(folder / "odd.npy", np.repeat(X[[scores.argmin()]], 100, axis=0))
    return folder


@pytest.fixture
def run(folder, tmp_path, capsys, monkeypatch):
    """Run the command in the folder; return its code, stdout and stderr."""
    monkeypatch.chdir(folder)

    def run(*arguments, state=tmp_path / "state.json", detector="det.safetensors"):
        code = main(["monitor", detector, *map(str, arguments), "--state", str(state)])
        return code, *capsys.readouterr()

    run.state = tmp_path / "state.json"
    return run


def test_calls_add_up_to_one_stream(folder, run):
    detector = skdice.load(folder / "det.safetensors")
    expected = FlagMonitor.from_detector(detector)
    for names in (["a.npy"], ["b.npy", "c.npy"]):
        code, out, err = run(*names)
        for name in names:
            rows = np.load(folder / name)
            expected.update(rows)
            n_flagged = int(flagged_rows(detector, rows).sum())
            assert f"{name}: {n_flagged} of {len(rows)} rows flagged" in out
        assert (code, err) == (0, "")
        assert out.endswith(expected.reading + "\n")


def test_an_alarm_gives_code_3_also_in_later_calls(run):
    assert run("a.npy")[0] == 0
    code, out, _ = run("odd.npy", "--json")
    facts = json.loads(out)
    assert code == 3
    assert facts["alarm"]
    assert facts["rows"] == 500
    assert facts["files"] == [{"file": "odd.npy", "rows": 100, "flagged": 100}]
    assert 400 <= facts["alarm_row"] < 500
    code, out, _ = run("b.npy")
    assert code == 3
    assert "Counting went on" in out
    assert "begin another state file" in out
    assert "the alarm is row" not in out  # it lies in a file of the earlier call


def test_the_row_of_the_alarm_is_that_of_its_file(folder, run):
    code, out, _ = run("a.npy", "odd.npy", "b.npy", "--run-length", "5000")
    assert code == 3
    watch = FlagMonitor.from_detector(skdice.load(folder / "det.safetensors"), run_length=5000)
    watch.update(np.load(folder / "a.npy")).update(np.load(folder / "odd.npy"))
    assert watch.change_row_ >= 380
    assert f"the alarm is row {watch.alarm_row_ - 400} of odd.npy" in out


def test_a_file_that_is_counted_twice_has_two_places(run):
    code, out, _ = run("a.npy", "odd.npy", "a.npy", "odd.npy", "--again", "--false-alarm", "1e-56")
    assert code == 3
    alarm_row = int(re.search(r"raised by row (\d+)", out)[1])
    assert 900 < alarm_row < 1000  # in the second of the files odd.npy
    assert f"the alarm is row {alarm_row - 900} of odd.npy" in out


def test_a_file_without_rows_counts_nothing(folder, run):
    """A job that runs every day may find a day on which there was nothing."""
    np.save(folder / "empty.npy", np.empty((0, np.load(folder / "a.npy").shape[1])))
    code, out, err = run("a.npy", "empty.npy")
    assert (code, err) == (0, "")
    assert "empty.npy: 0 of 0 rows flagged (0.0%)" in out
    np.save(folder / "narrow.npy", np.empty((0, 3)))
    code, _, err = run("narrow.npy")
    assert code == 2
    assert "has 3 features" in err


def test_contents_that_were_counted_are_refused_under_another_name_too(folder, run, tmp_path):
    run("a.npy")
    before = run.state.read_bytes()
    copy = tmp_path / "copy.npy"
    copy.write_bytes((folder / "a.npy").read_bytes())
    code, _, err = run("b.npy", copy)
    assert code == 2
    assert "these rows were counted already, from 'a.npy'" in err
    assert run.state.read_bytes() == before  # the rows of b.npy are not counted either
    assert run(copy, "--again")[0] == 0
    code, _, err = run("b.npy", "b.npy")
    assert code == 2
    assert "from 'b.npy'" in err


def resealed(**changes):
    """A function from a state to another one with a digest that matches."""

    def change(text):
        state = json.loads(text) | changes
        del state["sha256"]
        return json.dumps({**state, "sha256": digest_of(state)})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (resealed(past="long ago"), "past is not a list of lists of 5 numbers"),
        (resealed(past=[[1, 2, 3, 4]]), "past is not a list of lists of 5 numbers"),
        (resealed(past=[[1, 2, 3, 4, None]]), "past is not a list of lists of 5 numbers"),
        (resealed(past=[[1, 2, 3, 4, True]]), "past is not a list of lists of 5 numbers"),
        (resealed(files=["a.npy"]), "files is not a mapping of digests to names"),
        (resealed(monitor=5), "not a state of a FlagMonitor|monitor"),
        (lambda text: text[:100], "not JSON, or cut short"),
        (lambda text: text.replace('"schema": 1', '"schema": 2', 1), "newer version of skdice"),
        (lambda text: text.replace("a.npy", "b.npy"), "its digest does not match"),
        (lambda text: "[]", "does not name the format"),
        (lambda text: "[" * 100_000, "not JSON, or cut short"),
        (lambda text: "\xff", "does not name the format|not JSON"),
    ],
)
def test_a_damaged_state_is_refused_and_left_as_it_is(run, change, message):
    run("a.npy")
    text = change(run.state.read_text())
    run.state.write_text(text)
    code, out, err = run("b.npy")
    assert (code, out) == (2, "")
    assert str(run.state) in err
    assert any(part in err for part in message.split("|"))
    assert run.state.read_text() == text


def test_the_state_belongs_to_one_calibration_and_one_guarantee(run):
    run("a.npy", "--run-length", 5000)
    code, _, err = run("b.npy", detector="other.safetensors")
    assert code == 2
    assert "calibration" in err
    code, _, err = run("b.npy", "--run-length", 4000)
    assert code == 2
    assert "--run-length is 4000, but" in err
    assert "was begun with 5000" in err
    assert run("b.npy", "--run-length", 5000)[0] == 0
    with pytest.raises(SystemExit, match="2"):
        run("c.npy", "--run-length", 5000, "--false-alarm", 0.1)


def test_an_interrupted_call_leaves_the_old_state(run, monkeypatch, tmp_path):
    run("a.npy")
    before = run.state.read_bytes()

    def interrupted(*_, **options):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(_monitor, "sealed", interrupted)
        code, _, err = run("b.npy")
        assert code == 2
        assert "no space left" in err
    assert run.state.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert run("b.npy")[0] == 0


def test_another_process_that_wrote_meanwhile_is_noticed(run, monkeypatch):
    run("a.npy")
    other = run.state.read_text() + "\n"
    monkeypatch.setattr(_monitor, "flagged_rows", lambda *_: run.state.write_text(other) * [False])
    code, _, err = run("b.npy")
    assert code == 2
    assert "was written by another process" in err
    assert run.state.read_text() == other


# Runs `python -m skdice` and sends the process a signal just before the new state gets its name.
SIGNALLED = """
import os, runpy, signal, sys

number = int(sys.argv.pop(1))

def send(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("state.json"):
        os.kill(os.getpid(), number)

# A shell lets what it runs in the background ignore interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.addaudithook(send)
runpy.run_module("skdice", run_name="__main__", alter_sys=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("name", "code"), [("SIGKILL", -9), ("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_at_the_last_moment_leaves_the_old_state(folder, run, tmp_path, name, code):
    run("a.npy")
    before = run.state.read_bytes()
    number = str(int(getattr(signal, name)))
    arguments = ["monitor", "det.safetensors", "b.npy", "--state", str(run.state), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, number, *arguments], cwd=folder, capture_output=True
    )
    assert (done.returncode, done.stdout) == (code, b"")
    assert run.state.read_bytes() == before
    if name != "SIGKILL":  # which leaves a hidden folder
        assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert run("b.npy")[0] == 0


@pytest.mark.slow
def test_a_killed_process_leaves_the_old_or_the_new_state(folder, tmp_path):
    state = tmp_path / "state.json"
    command = [sys.executable, "-m", "skdice", "monitor", "det.safetensors", "--state", str(state)]
    subprocess.run([*command, "a.npy"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    detector = skdice.load(folder / "det.safetensors")
    started = time.perf_counter()
    subprocess.run([*command, "b.npy"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    for share in (0.8, 0.9, 0.95, 1.0):
        with subprocess.Popen(
            [*command, "c.npy", "--again"], cwd=folder, stdout=subprocess.DEVNULL
        ) as process:
            time.sleep(share * seconds)
            process.kill()
        content = json.loads(state.read_text())["monitor"]
        n_rows = FlagMonitor.from_json(content, detector=detector).n_samples_
        assert (n_rows - 700) % 300 == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.npy"], "missing.npy"),
        (["-"], "standard input"),
    ],
)
def test_bad_input_is_told_and_no_state_is_made(run, arguments, message):
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err
    assert not run.state.exists()


def test_a_detector_without_calibration(run, folder, tmp_path):
    X = np.load(folder / "a.npy")
    skdice.save(DICEDetector(np.ones((2, 8)), sparsity=0).fit(X), tmp_path / "bare.safetensors")
    code, _, err = run("b.npy", detector=str(tmp_path / "bare.safetensors"))
    assert code == 2
    assert "not calibrated" in err


def test_the_state_is_a_json_file_and_no_input(run, folder, capsys):
    before = (folder / "a.npy").read_bytes()
    with pytest.raises(SystemExit):
        run("a.npy", state=folder / "a.npy")
    assert "expected a name that ends in .json" in capsys.readouterr().err
    assert (folder / "a.npy").read_bytes() == before


def test_the_picture(run, tmp_path):
    pytest.importorskip("matplotlib")
    code, _, err = run("a.npy", "--png", "missing/picture.png")
    assert code == 2
    assert "no such folder: missing" in err
    assert not run.state.exists()
    code, *_ = run("a.npy", "odd.npy", "--png", tmp_path / "picture.png")
    assert code == 3
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_shows_the_stream_from_the_first_call_on(folder, run, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from skdice import plotting

    drawn, plot = [], plotting.MonitorDisplay.plot
    monkeypatch.setattr(
        plotting.MonitorDisplay, "plot", lambda self, ax: drawn.append(self) or plot(self, ax)
    )
    picture = tmp_path / "picture.png"
    run("a.npy")
    run("odd.npy")
    run("b.npy", "c.npy", "--png", picture)
    (display,) = drawn
    expected = FlagMonitor.from_detector(skdice.load(folder / "det.safetensors"))
    ends = {}
    for name in ("a", "odd", "b", "c"):
        expected.update(np.load(folder / f"{name}.npy"))
        ends[expected.n_samples_] = expected.evidence_, expected.n_flagged_ / expected.n_samples_
    assert (np.diff(display.rows) > 0).all()
    assert len(display.rows) == 4 * _monitor.POINTS_OF_FILE
    shown = {
        n: values
        for n, *values in zip(display.rows, display.evidence, display.flag_rate, strict=True)
    }
    for n_rows, values in ends.items():
        assert shown[n_rows] == pytest.approx(values, rel=1e-9)
    assert display.alarm_row == expected.alarm_row_
    assert ((display.low <= display.flag_rate) & (display.flag_rate <= display.high)).all()


def test_the_past_in_the_state_is_bounded(run, monkeypatch):
    monkeypatch.setattr(_monitor, "MOST_POINTS", 30)
    for name in ("a.npy", "b.npy", "c.npy"):
        run(name)
    state = json.loads(run.state.read_text())
    assert len(state["past"]) <= 30
    assert state["past"][-1][0] == 1000
    assert state["past"][0][0] < 200
