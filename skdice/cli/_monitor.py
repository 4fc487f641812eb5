"""The subcommand that watches the files of a detector in production."""

import hashlib
import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._compat.extras import import_extra
from skdice._persistence.files import load
from skdice.cli._files import file_name_in_errors, open_rows, refuse_overwriting
from skdice.io._atomic import replacing
from skdice.monitoring import FlagMonitor
from skdice.monitoring._flags import flagged_rows
from skdice.report._inputs import digest_of_path

EXIT_ALARM = 3
FORMAT = "skdice monitor"
SCHEMA = 1
# A file that was counted takes about 150 bytes of the state, so this holds a million files.
MOST_BYTES = 1 << 28


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
    if content is None:
        watch = _new_monitor(arguments, detector)
    else:
        watch, counted = _read_state(arguments.state, content, detector)
        _check_settings(arguments, watch)
    files, all_flags = [], []
    for path in arguments.features:
        with file_name_in_errors(path):
            digest = str(digest_of_path(Path(path)).sha256)
            if digest in counted and not arguments.again:
                raise ValueError(
                    f"these rows were counted already, from {counted[digest]!r}: leave the file "
                    "out, or give --again to count it once more"
                )
            flags = flagged_rows(detector, open_rows(path, arguments.key))
        watch.update(flags)
        counted[digest] = path
        n_flagged = int(np.count_nonzero(flags))
        files.append({"file": path, "rows": len(flags), "flagged": n_flagged})
        all_flags.append(flags)
        if not arguments.json:
            share = n_flagged / max(1, len(flags))
            print(f"{path}: {n_flagged:,} of {len(flags):,} rows flagged ({share:.1%})")
    if arguments.png is not None:
        _draw(arguments.png, watch, np.concatenate(all_flags))
    # All files are counted, or none: a call that was interrupted can be repeated as it was.
    _write_state(arguments.state, content, watch, counted)
    if arguments.json:
        facts = {
            "files": files,
            "rows": watch.n_samples_,
            "flagged": watch.n_flagged_,
            "rate": watch.rate,
            "alarm": watch.alarm_,
            "alarm_row": watch.alarm_row_,
            # JSON has no infinity.
            "evidence": min(watch.evidence_, sys.float_info.max),
            "reading": watch.reading,
        }
        print(json.dumps(facts, allow_nan=False))
    else:
        print(watch.reading)
    return EXIT_ALARM if watch.alarm_ else 0


def _new_monitor(arguments: Namespace, detector: Any) -> FlagMonitor:
    settings = {
        name: getattr(arguments, name)
        for name in ("false_alarm", "run_length")
        if getattr(arguments, name) is not None
    }
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


def _read_state(path: Path, content: bytes, detector: Any) -> tuple[FlagMonitor, dict[str, str]]:
    """Return the monitor of a state file, and the counted files by their digests.

    Raises
    ------
    ValueError
        The file is not a whole and unaltered state, was written by a newer version of skdice, or
        belongs to another calibration.
    """
    reason = f"{path}: not a state of skdice monitor"
    try:
        state = json.loads(content.decode("utf-8")) if len(content) <= MOST_BYTES else None
    except (ValueError, RecursionError):
        raise ValueError(f"{reason}: not JSON, or cut short") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{reason}: it does not name the format {FORMAT!r}")
    schema = state.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise ValueError(
            f"{path}: the state has schema {schema}, written by a newer version of skdice; this "
            f"version reads schema {SCHEMA}: update skdice"
        )
    digest = state.pop("sha256", None)
    if schema != SCHEMA or digest != _digest(state):
        raise ValueError(f"{reason}: it was altered, because its digest does not match")
    counted = state.get("files")
    if not isinstance(counted, dict) or not all(isinstance(name, str) for name in counted.values()):
        raise ValueError(f"{reason}: files is not a mapping of digests to names")
    try:
        return FlagMonitor.from_json(str(state.get("monitor")), detector=detector), counted
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _write_state(
    path: Path, before: bytes | None, watch: FlagMonitor, counted: dict[str, str]
) -> None:
    """Write the state at once or not at all; raise if another process wrote it meanwhile."""
    state: dict[str, Any] = {"format": FORMAT, "schema": SCHEMA}
    state |= {"monitor": watch.to_json(), "files": counted}
    with replacing(path) as temporary:
        text = json.dumps({**state, "sha256": _digest(state)}, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")
        if (path.read_bytes() if path.exists() else None) != before:
            raise ValueError(
                f"{path} was written by another process in the meantime, and is left as it is: run "
                "the command again"
            )


def _digest(state: dict[str, Any]) -> str:
    canonical = json.dumps(state, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _draw(path: Path, watch: FlagMonitor, flags: NDArray[np.bool_]) -> None:
    """Draw the evidence along the rows of this call, from their start."""
    from skdice.plotting import MonitorDisplay
    from skdice.plotting._style import bare_figure

    figure = bare_figure(7, 5)
    MonitorDisplay.from_monitor(watch, flags, ax=figure.subplots())
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
