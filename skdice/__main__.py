"""The process of the ``skdice`` command: ``skdice`` and ``python -m skdice`` start here."""

import os
import signal
import sys
from typing import NoReturn


def run() -> NoReturn:
    """Run the command and end the process with its exit code.

    `skdice.cli.main` handles signals while a subcommand runs. This function handles the signals
    that arrive before and after it: while Python imports the command, and while Python exits.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        # A parent process such as nohup asks for a signal to be ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit_at_once)
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The shell closed this standard stream. Without a substitute the next file opened
            # would take its number, and what libraries print would be written into that file.
            os.open(os.devnull, os.O_RDWR)

    from skdice.cli import main

    try:
        code = main()
    except KeyboardInterrupt:  # It arrived while main was restoring the signal handlers.
        code = 128 + signal.SIGINT
    if code == 128 + _SIGPIPE:
        # Python flushes stdout once more at exit. Nobody reads it, so the flush would fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


# The number of SIGPIPE, which Windows does not have.
_SIGPIPE = 13


def _exit_at_once(number: int, frame: object) -> NoReturn:
    # An exception would not do: it would print a traceback, or be ignored, outside of main.
    os._exit(128 + number)


if __name__ == "__main__":
    run()
