"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when all went well.

    An interrupted run leaves the old file, or none, under the name. The temporary one is
    removed, unless the process was killed: then it stays, hidden, as ``.<name>.<random>``.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {path.parent}")
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None
    try:
        # The same name inside, as some libraries go by the ending.
        temporary = folder / path.name
        yield temporary
        if temporary.is_file():
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        if path.is_dir() and temporary.is_dir():
            shutil.rmtree(path)  # a Zarr store is a folder, which cannot be replaced at once
        temporary.replace(path)
    except OSError as error:
        # Of the file that was asked for, not of the temporary one.
        if error.filename is None or str(error.filename).startswith(str(folder)):
            raise type(error)(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
