"""Types of the arguments of the command: what can be wrong with an argument by itself.

argparse prints the message of an ArgumentTypeError after the argument's name. This module imports
the standard library only: see `skdice.cli._main`.
"""

import argparse
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# These names are repeated here because the modules that define them import NumPy. A test
# compares them with `skdice._scores` and `skdice.shaping`.
SCORES = ("energy", "max_logit", "msp", "gen")
SHAPINGS = {
    "ash": ("quantile",),
    "react": ("quantile", "threshold"),
    "scale": ("quantile",),
    "vra": ("lower_quantile", "upper_quantile", "alpha", "beta"),
}
# The endings of the formats that are written are repeated for the same reason. A test compares them
# with `skdice.io`.
FEATURE_ENDINGS = (
    *(".npy", ".npz", ".safetensors", ".h5", ".hdf5"),
    *(".zarr", ".parquet", ".csv", ".pt", ".pth"),
)
HEAD_ENDINGS = (".npz", ".safetensors")
DETECTOR_ENDINGS = (".safetensors",)
REPORT_ENDINGS = (".html", ".md")
SCORE_ENDINGS = (".npy", ".csv", ".parquet", ".jsonl")
# The name of the in-distribution set among the sets of an evaluation.
ID_NAME = "in-distribution"


def not_empty(text: str) -> str:
    """Return the text of an argument that is not empty."""
    # An empty path would mean the current folder. It comes from an empty variable of the shell.
    if not text:
        raise ArgumentTypeError("expected a path, got ''")
    return text


def path(text: str) -> Path:
    """Return the path that an argument names."""
    return Path(not_empty(text))


def number_or_none(text: str) -> float | str:
    """Return the number that an argument is, or the word none."""
    if text == "none":
        return text
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a number or none, got {text!r}") from None


def ending_in(*endings: str) -> Callable[[str], Path]:
    """Return the type of a path whose file is written in the format that its ending names."""

    def parse(text: str) -> Path:
        output = path(text)
        if output.suffix not in endings:
            names = ", ".join(endings[:-1])
            expected = f"{names} or {endings[-1]}" if names else endings[-1]
            raise ArgumentTypeError(f"expected a name that ends in {expected}, got {text!r}")
        return output

    return parse


def number_in(expected: str, is_valid: Callable[[float], bool]) -> Callable[[str], float]:
    """Return the type of a number, whose message about a percentage proposes the fraction."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if is_valid(value):
            return value
        # The authors' code and other packages take percentages.
        is_percent = 1 < value <= 100 and is_valid(value / 100)
        hint = f"; did you mean {value / 100:g}?" if is_percent else ""
        raise ArgumentTypeError(f"expected {expected}, got {text!r}{hint}")

    return parse


sparsity = number_in("a fraction from 0 to below 1", lambda value: 0 <= value < 1)
share = number_in("a fraction above 0 and at most 0.5", lambda value: 0 < value <= 0.5)
probability = number_in("a probability between 0 and 1", lambda value: 0 < value < 1)
run_length = number_in("a number of rows above 1", lambda value: 1 < value < float("inf"))


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def shaping_options(text: str) -> tuple[str, dict[str, float]]:
    """Split ``react:quantile=0.9`` into the name and the options of a shaping."""
    name, _, options = text.partition(":")
    name = name.lower()
    if name not in SHAPINGS:
        raise ArgumentTypeError(f"expected one of {', '.join(SHAPINGS)}, got {name!r}")
    known = SHAPINGS[name]
    values = {}
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        try:
            values[key] = float(value)
        except ValueError:
            known = ()
        if key not in known:
            raise ArgumentTypeError(
                f"expected {name}:NAME=NUMBER[,NAME=NUMBER] with names among "
                f"{', '.join(SHAPINGS[name])}, got {text!r}"
            )
    return name, values


def named_file(text: str) -> tuple[str, str]:
    """Split ``NAME=FILE``. Without a name, the file's name without its ending is taken."""
    name, equals, file = not_empty(text).partition("=")
    if not equals or Path(text).exists():  # An equals sign may be part of a path.
        name, file = Path(text).stem, text
    elif not (name and file):
        raise ArgumentTypeError(f"expected NAME=FILE, got {text!r}")
    if name == ID_NAME:
        raise ArgumentTypeError(f"expected another name than {ID_NAME!r}, got {text!r}")
    return name, file


class AddNamedFile(argparse.Action):
    """Collect the values of a repeated ``NAME=FILE`` in a dictionary."""

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        assert values is not None
        name, file = tuple(values)
        files = dict(getattr(namespace, self.dest) or {})
        if name in files:
            raise argparse.ArgumentError(
                self, f"the name {name!r} is given twice, to {files[name]} and to {file}"
            )
        setattr(namespace, self.dest, {**files, name: file})
