"""Arguments, exit codes and error lines of the ``skdice`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import skdice
from skdice.cli._demo import run_demo

# What a shell and argparse itself use for a usage or input error.
EXIT_USAGE = 2


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command and its subcommands."""
    parser = argparse.ArgumentParser(
        prog="skdice",
        description="Out-of-distribution detection for any trained classifier, from its "
        "penultimate features and its last linear layer.",
    )
    parser.add_argument("--version", action="version", version=f"skdice {skdice.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="which score, and how much pruning, suits a network: measured on embedded real data",
        description="Measures MSP, MaxLogit, Energy, ReAct, DICE and DICE + ReAct on real features "
        "of a Fashion-MNIST network that come with skdice. Prints a table (FPR95 and AUROC for "
        "three real out-of-distribution sets), chooses on one half of the rows and reports on the "
        "other half, draws the result and saves the chosen detector.",
    )
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("skdice-demo"),
        metavar="FOLDER",
        help="where the picture and the detector go (default: %(default)s)",
    )
    demo.set_defaults(run=lambda arguments: run_demo(arguments.output))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Parameters
    ----------
    argv : sequence of str, default=None
        Arguments; None takes those of the process.

    Returns
    -------
    int
        0, or 2 for an input error, which is told in one line on stderr.
    """
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (OSError, ValueError) as error:
        print(f"skdice: {error}", file=sys.stderr)
        return EXIT_USAGE
    return 0
