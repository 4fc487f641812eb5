"""Running a subcommand: signals, exit codes, and errors and warnings in one line.

This module and those of the arguments import the standard library only, so that the help and the
errors about arguments appear at once. The module of a subcommand is imported when the subcommand
runs.
"""

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from skdice.cli._arguments import FIRST_STEPS, OVERVIEW, build_parser

# argparse exits with the same code for wrong arguments.
EXIT_INPUT_ERROR = 2
# The code of a shell for a process that wrote to a pipe without a reader: 128 + SIGPIPE.
EXIT_BROKEN_PIPE = 141

# These exceptions mean that a file, an argument or the environment is at fault. Any other
# exception is a fault of skdice, whose traceback must be seen.
INPUT_ERRORS = (OSError, ValueError, TypeError, ImportError, MemoryError)

# Messages name the parameters of the Python functions. The user of the command knows options.
OPTION_OF_PARAMETER = {
    "key=:": "--key:",
    "key=": "--key ",
    "layer=": "--layer ",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    The signal handlers and the filters of warnings are the caller's again afterwards.

    Parameters
    ----------
    argv : sequence of str, default=None
        Arguments of the command. ``None`` takes the arguments of the process.

    Returns
    -------
    int
        0 for success. 2 for an input error, which is printed in one line on stderr, and for a
        call without a subcommand, which prints the first steps on stderr. 3 if ``skdice monitor``
        raised an alarm. 141 if the reader of standard output went away. 130 if the command was
        interrupted by SIGINT, 143 if it was terminated by SIGTERM.

    Raises
    ------
    SystemExit
        The arguments are wrong (code 2), or ask for the help or the version (code 0).

    Examples
    --------
    >>> from skdice.cli import main
    >>> main(["inspect", "missing.safetensors"])
    2
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    with _open_stderr(), _signals_as_exceptions() as received, warnings.catch_warnings():
        if arguments.run is None:
            parser.print_usage(sys.stderr)
            first_steps = f"\n{OVERVIEW}\n{FIRST_STEPS}\n'skdice --help' lists all commands."
            print(first_steps, file=sys.stderr)
            return EXIT_INPUT_ERROR
        warnings.showwarning = _show_warning
        arguments.verbose = int(sys.stderr.isatty() and not getattr(arguments, "quiet", False))
        try:
            code = _run_subcommand(arguments)
            if sys.stdout is not None:  # It is None if the shell closed it.
                sys.stdout.flush()
        except BrokenPipeError:
            return EXIT_BROKEN_PIPE
        except BaseException as error:
            # A library may have turned the exception of the signal into one of its own.
            if received:
                return 128 + received[0]
            if not isinstance(error, INPUT_ERRORS):
                raise
            print(f"skdice: {_one_line(error)}", file=sys.stderr)
            return EXIT_INPUT_ERROR
    return code


def _run_subcommand(arguments: argparse.Namespace) -> int:
    """Run a subcommand and return its exit code; most subcommands return None for success."""
    module, function = arguments.run.split(".")
    return getattr(import_module(f"skdice.cli.{module}"), function)(arguments) or 0


def _one_line(error: BaseException) -> str:
    message = " ".join(str(error).split()) or type(error).__name__
    for parameter, option in OPTION_OF_PARAMETER.items():
        message = message.replace(parameter, option)
    return message


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"skdice: warning: {message}", file=sys.stderr)


@contextmanager
def _open_stderr() -> Iterator[None]:
    """Replace a stderr that is None, because print(file=None) prints to stdout."""
    if sys.stderr is not None:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        yield


@contextmanager
def _signals_as_exceptions() -> Iterator[list[int]]:
    """Raise an exception when SIGINT or SIGTERM arrives, so that unfinished files are removed.

    The list yielded has the numbers of the signals that arrived.
    """
    received: list[int] = []

    def receive(number: int, frame: Any) -> NoReturn:
        received.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    previous: dict[int, Any] = {}
    try:
        # Python lets no other thread set a signal handler.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                # None is a handler that was not set from Python, which Python cannot restore.
                if handler not in (None, signal.SIG_IGN):
                    previous[number] = signal.signal(number, receive)
        yield received
    finally:
        for handled, handler in previous.items():
            signal.signal(handled, handler)
