"""What all formats share: arrays that open lazily by name, and errors that name the file."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from skdice._rows.sources import Sliceable

# save_features writes the features under this name, and open_features looks for it first.
FEATURES = "features"
# A file can hold any number of names of any length; a message shows this much of them.
_NAMES_SHOWN = 12
_NAME_LENGTH = 60
_REASON_LENGTH = 400
# One PiB. HDF5 and Zarr may leave chunks out, so their files can claim any number of rows.
_MOST_BYTES = 1 << 50


def to_path(path: str | Path) -> Path:
    """Return the path of a file; raise for "", which `Path` would turn into the current folder."""
    if not str(path):
        raise ValueError("the path is empty, expected the name of a file")
    return Path(path)


def require_file(path: Path) -> None:
    """Raise if `path` is not a regular file that may be read.

    Opening a FIFO waits for a writer and reading a device may never end, so this function
    looks at the kind of the file before anything opens it.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a FIFO, a socket or a device"
        raise ValueError(f"cannot read {path}: it is {kind}, expected a file")
    # Some libraries report a file that may not be read as damaged. Python does not.
    with path.open("rb"):
        pass


@contextmanager
def clean_errors(path: Path, doing: str = "read") -> Iterator[None]:
    """Turn whatever a library raises for a damaged file into a ValueError that names the file."""
    try:
        yield
    # The messages of these errors tell the user what to do.
    except (PermissionError, ImportError):
        raise
    except MemoryError as error:
        raise MemoryError(f"cannot {doing} {path}: {error or 'out of memory'}") from error
    except Exception as error:
        if isinstance(error, FileNotFoundError) and not path.exists():
            raise
        if doing == "write":
            # A full disk is not the fault of the data. `replacing` reports it with its number.
            # h5py and torch put an error of their own over it when they close the file.
            for cause in (error, error.__context__):
                if isinstance(cause, OSError) and cause.errno is not None:
                    raise cause from None
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot {doing} {path}: {_shortened(reason, _REASON_LENGTH)}") from error


def listed(names: Iterable[str]) -> str:
    """Return the names in sorted order for a message: the first few, and how many more."""
    names = sorted(names)
    shown = [_shortened(name, _NAME_LENGTH) for name in names[:_NAMES_SHOWN]]
    rest = len(names) - len(shown)
    return ", ".join([*shown, f"and {rest} more"] if rest else shown)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def check_shape(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise if an array does not have rows with values, or claims more bytes than can exist."""
    if not shape:
        raise ValueError(f"{name} holds a single value, expected an array of rows")
    # A few bytes can claim 2**62 such rows, and every loop over them would run for ever.
    if shape[0] and 0 in shape[1:]:
        raise ValueError(f"{name} has shape {shape}: its rows have no values")
    if min(shape) < 0 or dtype.itemsize * math.prod(map(int, shape)) > _MOST_BYTES:
        raise ValueError(f"{name} has the impossible shape {shape}")


def check_size(size: int, expected: int) -> None:
    """Raise if a file has become smaller than it was when it was opened."""
    if size < expected:
        raise ValueError(
            f"it was truncated after it was opened: it has {size} bytes, "
            f"expected at least {expected}"
        )


@dataclass(frozen=True)
class Archive:
    """The arrays in a file: by the name of each, a function that opens it."""

    path: Path
    members: Mapping[str, Callable[[], Sliceable]]
    # Opens the features where the user gives no name; None chooses among `members`.
    default: Callable[[], Sliceable] | None = None
    # Text, such as ids, is read whole, so only a user who gives the name of an array gets it.
    text: Mapping[str, Callable[[], Sliceable]] = field(default_factory=dict)

    def open(self, key: str | None) -> Sliceable:
        """Open the array named `key`; None opens the only array that can be the features."""
        with clean_errors(self.path):
            if key is None and self.default is not None:
                rows = self.default()
            else:
                name = self._only_candidate() if key is None else key
                arrays = {**self.members, **self.text}
                if name not in arrays:
                    raise ValueError(f"it has no array {name!r}; it has {self.names()}")
                rows = arrays[name]()
            check_shape("it", rows.shape, rows.dtype)
            return rows

    def names(self) -> str:
        """Return the names of the arrays for a message."""
        return listed({**self.members, **self.text}) or "one array without a name"

    def _only_candidate(self) -> str:
        if FEATURES in self.members:
            return FEATURES
        names = list(self.members)
        if len(names) > 1:
            names = [name for name in names if len(self.members[name]().shape) == 2]
        if len(names) != 1:
            raise ValueError(
                f"it has {'several' if names else 'no'} arrays that could be the features; name "
                f"one with key=: {listed({**self.members, **self.text}) or 'none'}"
            )
        return names[0]
