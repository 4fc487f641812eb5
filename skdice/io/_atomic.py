"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What marks a folder as a Zarr store, the only kind of folder that is ever replaced.
_STORE_MARKS = (".zarray", ".zgroup", "zarr.json")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when all went well.

    An interrupted run leaves the old file, or none, under the name. The temporary one is
    removed, unless the process was killed: then it stays, hidden, as ``.<name>.<random>``.
    A link keeps pointing to the file, which keeps its permissions.
    """
    check_output(path)
    target = path.resolve()
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=target.parent))
        # The same name inside, as some libraries go by the ending.
        temporary = folder / path.name
        yield temporary
        if temporary.is_file():
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        if target.is_file():
            shutil.copymode(target, temporary)
        if target.is_dir():  # a store, which cannot be replaced at once: it is moved aside
            target.replace(folder / "old")
        temporary.replace(target)
    except OSError as error:
        # Of the file that was asked for, not of the temporary one.
        own = (
            error.filename is None or folder is None or str(error.filename).startswith(str(folder))
        )
        if own and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def check_output(path: Path) -> None:
    """Raise if nothing can, or should, be written under this name."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {path.parent}")
    if path.is_dir() and not any((path / mark).exists() for mark in _STORE_MARKS):
        raise ValueError(f"cannot write {path}: it is a folder, and no Zarr store")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"cannot write {path}: it is no regular file")
