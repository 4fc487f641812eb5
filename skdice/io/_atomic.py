"""Files that are complete or not there at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# A folder with one of these files is a Zarr store. No other folder is ever replaced.
_STORE_MARKS = (".zarray", ".zgroup", "zarr.json")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path, in a hidden folder, whose file replaces `path` at the end.

    An interrupted run leaves the old file, or none, under the name. The hidden folder is
    removed unless the process is killed: then it stays, as ``.<name>.<random>``. If `path`
    is a link, the file that it points to is replaced. The new file has the permissions of
    the old one.
    """
    check_output(path)
    target = path.resolve()
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=target.parent))
        # The name stays the same because some libraries look at the ending.
        temporary = folder / path.name
        yield temporary
        if temporary.is_file():
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        if target.is_file():
            shutil.copymode(target, temporary)
        if target.is_dir():  # a store: a folder cannot be replaced at once
            target.replace(folder / "old")
        temporary.replace(target)
    except OSError as error:
        # Name the file that the user asked for, not the temporary one.
        own = (
            error.filename is None or folder is None or str(error.filename).startswith(str(folder))
        )
        if own and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
        raise
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def check_output(path: Path) -> None:
    """Raise if nothing can be written to `path`, or if it would replace a folder of the user."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {path.parent}")
    if path.is_dir() and not any((path / mark).exists() for mark in _STORE_MARKS):
        raise ValueError(f"cannot write {path}: it is a folder, and not a Zarr store")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"cannot write {path}: it is not a file")
