"""The parser of the command, which proposes the names that the user probably meant.

This module imports the standard library only: see `skdice.cli._main`.
"""

import argparse
import sys
from argparse import Action, ArgumentError, ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from skdice._compat.extras import import_extra

SHELLS = ("bash", "zsh", "tcsh")
# The placeholders of arguments that take files.
FILE_METAVARS = ("DATA", "DETECTOR", "FEATURES", "FILE", "MODEL")


class Parser(ArgumentParser):
    """An ArgumentParser whose errors propose a name and show the usage of the right subcommand."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None
    ) -> tuple[Namespace, list[str]]:
        """Parse the arguments; an unknown option is an error of this parser.

        argparse would report a missing argument first, and an unknown option of a subcommand with
        the usage of the whole command.
        """
        if args is not None and self._subparsers is None:
            self._refuse_unknown_options(args)
        parsed, rest = super().parse_known_args(args, namespace)
        if rest:
            self._refuse(rest)
        return parsed, rest

    def _refuse_unknown_options(self, args: Sequence[str]) -> None:
        for arg in args:
            if arg == "--":
                return
            name = arg.partition("=")[0]
            is_known = any(option.startswith(name) for option in self._option_string_actions)
            if arg.startswith("--") and not is_known:
                self._refuse([arg])

    def _refuse(self, unknown: list[str]) -> NoReturn:
        given = unknown[0].partition("=")[0]
        hint = did_you_mean(given, self._option_string_actions) if given[:1] == "-" else ""
        self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")

    def _check_value(self, action: Action, value: Any) -> None:
        """Raise if a value is not one of the choices of an argument."""
        if action.choices is not None and value not in action.choices:
            hint = did_you_mean(str(value), action.choices)
            expected = ", ".join(map(str, action.choices))
            raise ArgumentError(
                action, f"invalid choice: {value!r}{hint or f' (choose from {expected})'}"
            )


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return the end of a message with the names that resemble a name; empty without any."""
    similar = get_close_matches(given, list(known), n=2)
    return f"; did you mean {' or '.join(similar)}?" if similar else ""


class PrintCompletion(Action):
    """An option that prints the completion script of a shell, and ends the command."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, choices=SHELLS, **options)

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> NoReturn:
        try:
            shtab = import_extra("shtab", "completion")
        except ImportError as error:
            parser.error(str(error))
        _complete_file_names(parser, shtab)
        # This method ignores a reader that went away, as it does for the help.
        parser._print_message(shtab.complete(parser, values), sys.stdout)
        parser.exit()


def _complete_file_names(parser: ArgumentParser, shtab: Any) -> None:
    """Let the shell complete names of files and folders in the arguments that take them."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_file_names(command, shtab)
        elif action.metavar == "FOLDER":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif str(action.metavar).removeprefix("[NAME=]") in FILE_METAVARS:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
