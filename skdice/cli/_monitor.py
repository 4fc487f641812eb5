"""The subcommand that watches the files of a detector in production."""

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._compat.extras import import_extra
from skdice._persistence.files import load
from skdice._rows.sources import Sliceable
from skdice.cli._files import file_name_in_errors, open_rows, refuse_overwriting
from skdice.io._atomic import replacing
from skdice.monitoring import FlagMonitor
from skdice.monitoring._flags import flagged_rows
from skdice.monitoring._state import read_sealed, sealed
from skdice.report._inputs import digest_of_path

EXIT_ALARM = 3
FORMAT = "skdice monitor"
# A file that was counted takes about 150 bytes of the state, so this holds a million files.
MOST_BYTES = 1 << 28
# The state keeps the past of the stream at so many of its rows, for the picture; a file adds some.
MOST_POINTS = 400
POINTS_OF_FILE = 20
# Confidence of the band that the picture shows.
LEVEL = 0.95

# The number of rows, and after these the evidence, the share of flagged rows and its band.
Point = list[float]


def monitor(arguments: Namespace) -> int:
    """Count the rows of new files that a detector flags, and tell whether they are too many.

    Returns
    -------
    int
        3 if the alarm is raised now or was raised by an earlier call, else 0.
    """
    if "-" in arguments.features:
        raise ValueError("a file that is to be known again needs a name, got '-' (standard input)")
    refuse_overwriting(arguments.state, arguments.detector, *arguments.features)
    if arguments.png is not None:
        # A missing library must be found before the scores are computed.
        import_extra("matplotlib", "plot")
        refuse_overwriting(arguments.png, arguments.detector, arguments.state, *arguments.features)
    detector = load(arguments.detector).set_params(verbose=arguments.verbose)
    content = arguments.state.read_bytes() if arguments.state.exists() else None
    counted: dict[str, str] = {}
    past: list[Point] = []
    if content is None:
        watch = _new_monitor(arguments, detector)
    else:
        watch, counted, past = _read_state(arguments.state, content, detector)
        _check_settings(arguments, watch)
    files = []
    first_rows: list[tuple[int, str]] = []
    for path in arguments.features:
        with file_name_in_errors(path):
            digest = str(digest_of_path(Path(path)).sha256)
            if digest in counted and not arguments.again:
                raise ValueError(
                    f"these rows were counted already, from {counted[digest]!r}: leave the file "
                    "out, or give --again to count it once more"
                )
            flags = _flags(detector, open_rows(path, arguments.key))
        first_rows.append((watch.n_samples_, path))
        past += _count(watch, flags)
        counted[digest] = path
        n_flagged = int(np.count_nonzero(flags))
        files.append({"file": path, "rows": len(flags), "flagged": n_flagged})
        if not arguments.json:
            share = n_flagged / max(1, len(flags))
            print(f"{path}: {n_flagged:,} of {len(flags):,} rows flagged ({share:.1%})")
    while len(past) > MOST_POINTS:
        past = past[-1::-2][::-1]  # every second one, and the last
    if arguments.png is not None:
        _draw(arguments.png, watch, past)
    # All files are counted, or none: a call that was interrupted can be repeated as it was.
    _write_state(arguments.state, content, watch, counted, past)
    if arguments.json:
        facts = {
            "files": files,
            "rows": watch.n_samples_,
            "flagged": watch.n_flagged_,
            "rate": watch.rate,
            "alarm": watch.alarm_,
            "alarm_row": watch.alarm_row_,
            "change_row": watch.change_row_,
            "evidence": _finite(watch.evidence_),
            "reading": watch.reading,
        }
        print(json.dumps(facts, allow_nan=False))
    else:
        print(watch.reading)
        if watch.alarm_row_ is not None:
            print(_next_step(watch, first_rows, arguments.state))
    return EXIT_ALARM if watch.alarm_ else 0


def _flags(detector: Any, rows: Sliceable) -> NDArray[np.bool_]:
    """Return the flags of the rows of a file, which may have none: a day may be empty."""
    if len(rows.shape) == 2 and rows.shape[0] == 0:
        if rows.shape[1] != detector.n_features_in_:
            raise ValueError(
                f"the file has {rows.shape[1]} features, but {type(detector).__name__} is "
                f"expecting {detector.n_features_in_} features as input"
            )
        return np.empty(0, np.bool_)
    return flagged_rows(detector, rows)


def _count(watch: FlagMonitor, flags: NDArray[np.bool_]) -> list[Point]:
    """Give a monitor the flags of a file; return its past at some of the rows."""
    points = []
    for part in np.array_split(flags, max(1, min(len(flags), POINTS_OF_FILE))):
        watch.update(part)
        if watch.n_samples_:
            share = watch.n_flagged_ / watch.n_samples_
            band = watch.rate_interval(LEVEL)
            points.append([watch.n_samples_, _finite(watch.evidence_), share, *band])
    return points


def _next_step(watch: FlagMonitor, first_rows: list[tuple[int, str]], state: Path) -> str:
    """Tell where the rows of the alarm are, and what to do.

    `first_rows` are the numbers of the first row of each file of this call, and its path.
    """
    places = []
    for event, row in (("the alarm", watch.alarm_row_), ("the rise", watch.change_row_)):
        before = [(first, path) for first, path in first_rows if row is not None and first <= row]
        # A row of an earlier call is in none of these files.
        if before and row is not None:
            first, path = before[-1]
            places.append(f"{event} is row {row - first} of {path}")
    found = f"Counted from 0, {' and '.join(places)}. " if places else ""
    return (
        f"{found}Look at the flagged inputs (skdice score tells which), and mend the cause. Then "
        f"begin another state file in place of {state}; this one keeps the alarm."
    )


def _finite(evidence: float) -> float:
    """Return evidence as JSON can hold it, which has no infinity."""
    return min(evidence, sys.float_info.max)


def _new_monitor(arguments: Namespace, detector: Any) -> FlagMonitor:
    settings = {
        name: getattr(arguments, name)
        for name in ("false_alarm", "run_length")
        if getattr(arguments, name) is not None
    }
    if not hasattr(detector, "calibration_"):
        raise ValueError(
            f"{arguments.detector}: the detector is not calibrated, so nothing is promised about "
            f"the rate of its false alarms. First run: skdice calibrate {arguments.detector} "
            "HELDOUT.npy --method conformal"
        )
    return FlagMonitor.from_detector(detector, **settings)


def _check_settings(arguments: Namespace, watch: FlagMonitor) -> None:
    """Raise if the options name another guarantee than the one that the state was begun with."""
    for name in ("false_alarm", "run_length"):
        given, kept = getattr(arguments, name), getattr(watch, name)
        if given is not None and given != kept:
            raise ValueError(
                f"--{name.replace('_', '-')} is {given:g}, but {arguments.state} was begun with "
                f"{kept}: leave the option out, or begin another state file"
            )


def _read_state(
    path: Path, content: bytes, detector: Any
) -> tuple[FlagMonitor, dict[str, str], list[Point]]:
    """Return the monitor of a state file, the counted files by their digests, and its past.

    Raises
    ------
    ValueError
        The file is not a whole and unaltered state, was written by a newer version of skdice, or
        belongs to another calibration.
    """
    name = "a state of skdice monitor"
    reason = f"{path}: not {name}"
    if len(content) > MOST_BYTES:
        raise ValueError(
            f"{reason}: it has {len(content):,} bytes, expected {MOST_BYTES:,} at most"
        )
    try:
        # Text that is not UTF-8 is no JSON either.
        state = read_sealed(content.decode("utf-8", errors="replace"), FORMAT, name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    counted = state.get("files")
    if not isinstance(counted, dict) or not all(isinstance(name, str) for name in counted.values()):
        raise ValueError(f"{reason}: files is not a mapping of digests to names")
    past = state.get("past")
    if not isinstance(past, list) or not all(
        isinstance(point, list) and len(point) == 5 and all(type(x) in (int, float) for x in point)
        for point in past
    ):
        raise ValueError(f"{reason}: past is not a list of lists of 5 numbers")
    try:
        return FlagMonitor.from_json(str(state.get("monitor")), detector=detector), counted, past
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _write_state(
    path: Path,
    before: bytes | None,
    watch: FlagMonitor,
    counted: dict[str, str],
    past: list[Point],
) -> None:
    """Write the state at once or not at all; raise if another process wrote it meanwhile."""
    state = {"monitor": watch.to_json(), "files": counted, "past": past}
    with replacing(path) as temporary:
        temporary.write_text(sealed(FORMAT, state, indent=1) + "\n", encoding="utf-8")
        if (path.read_bytes() if path.exists() else None) != before:
            raise ValueError(
                f"{path} was written by another process in the meantime, and is left as it is: run "
                "the command again"
            )


def _draw(path: Path, watch: FlagMonitor, past: list[Point]) -> None:
    """Draw the evidence and the rate of the whole stream."""
    from skdice.plotting import MonitorDisplay
    from skdice.plotting._style import bare_figure

    if not past:
        raise ValueError("there are no rows to draw: none of the files had any")
    rows, evidence, flag_rate, low, high = np.array(past, dtype=np.float64).T
    display = MonitorDisplay(
        rows=rows.astype(np.int64),
        evidence=evidence,
        flag_rate=flag_rate,
        low=low,
        high=high,
        rate=watch.rate,
        alarm_level=watch.alarm_level,
        level=LEVEL,
        alarm_row=watch.alarm_row_,
    )
    figure = bare_figure(7, 5)
    display.plot(figure.subplots())
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
