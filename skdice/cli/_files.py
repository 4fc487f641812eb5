"""What the subcommands do with files: open inputs, protect them, and say what was written."""

import json
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skdice._compat.extras import import_extra
from skdice._rows.sources import Sliceable
from skdice.io import open_features
from skdice.io._atomic import check_output


def print_result(arguments: Namespace, facts: dict[str, Any], sentence: str) -> None:
    """Print the facts to stdout with --json, or else the sentence to stderr unless --quiet."""
    if arguments.json:
        print(json.dumps(facts))
    elif not arguments.quiet:
        print(sentence.format(**facts), file=sys.stderr)


@contextmanager
def open_rows_or_chunks(arguments: Namespace) -> Iterator[Any]:
    """Open the feature file of a command; with --scheduler as a Dask array of the cluster."""
    if arguments.scheduler is None:
        yield open_rows(arguments.features, arguments.key)
        return
    if arguments.features == "-":
        raise ValueError(
            "--scheduler needs a feature file that the workers can read, got standard input"
        )
    distributed = import_extra("distributed", "dask")
    from skdice.io._distributed import distributed_features

    with distributed.Client(arguments.scheduler):
        try:
            yield distributed_features(arguments.features, arguments.key)
        except distributed.KilledWorker as error:
            raise OSError(str(error)) from error


def open_rows(path: str, key: str | None) -> Sliceable:
    """Open a feature file. The path ``-`` means a .npy file on standard input."""
    if path != "-":
        return open_features(path, key=key)
    if sys.stdin is None:  # The shell closed it.
        raise OSError(
            "cannot read FEATURES from standard input: it is closed; "
            "expected the contents of a .npy file"
        )
    with tempfile.TemporaryDirectory() as folder:
        spool = Path(folder) / "stdin.npy"
        with spool.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        try:
            # The file stays readable after its name is removed, because it is mapped.
            return open_features(spool, key=key)
        except ValueError as error:
            message = str(error).replace(str(spool), "standard input, which must be a .npy file")
            raise ValueError(message) from error


@contextmanager
def file_name_in_errors(path: str) -> Iterator[None]:
    """Put the name of the file before an error about its rows, which does not name the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def refuse_overwriting(output: Path, *inputs: str | Path) -> None:
    """Raise if `output` cannot be written, or if writing it would destroy or change an input."""
    check_output(output)
    for path in map(Path, inputs):
        if output.exists() and path.exists() and output.samefile(path):
            raise ValueError(f"the output {output} is an input, which would be lost")
        if path.is_dir() and output.parent.samefile(path):
            raise ValueError(f"the output {output} lies in the folder {path}, which is an input")
