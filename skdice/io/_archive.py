"""What every format has in common: named arrays that open lazily, and clean errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from skdice._rows.sources import Sliceable

# The name under which features are written, and looked for among several arrays.
FEATURES = "features"
_NAMES_SHOWN = 12


@contextmanager
def clean_errors(path: Path, doing: str = "read") -> Iterator[None]:
    """Turn whatever a library makes of a damaged file into a ValueError that names the file."""
    try:
        yield
    # No permission, a missing extra and too little memory speak for themselves.
    except (PermissionError, ImportError, MemoryError):
        raise
    except Exception as error:  # the libraries raise what a damaged file leads them to
        if isinstance(error, FileNotFoundError) and not path.exists():
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot {doing} {path}: {reason}") from error


@dataclass(frozen=True)
class Archive:
    """The arrays in a file.

    Parameters
    ----------
    path : Path
        The file, for messages.
    members : mapping of str to callable
        By name, what opens the array.
    default : callable or None
        What opens the features where no name is asked for and the format has a rule of
        its own.
    """

    path: Path
    members: Mapping[str, Callable[[], Sliceable]]
    default: Callable[[], Sliceable] | None = None

    def open(self, key: str | None) -> Sliceable:
        """Open the array named `key`; for None, the one that can be meant."""
        with clean_errors(self.path):
            if key is None and self.default is not None:
                return self.default()
            name = self._only_candidate() if key is None else key
            if name in self.members:
                return self.members[name]()
        names = ", ".join(self.shown_names()) or "one array without a name"
        raise ValueError(f"{self.path} has no array {name!r}; it has {names}")

    def shown_names(self) -> list[str]:
        """Return the names for a message, cut where there are very many."""
        names = sorted(self.members)
        rest = len(names) - _NAMES_SHOWN
        return names if rest <= 0 else [*names[:_NAMES_SHOWN], f"and {rest} more"]

    def _only_candidate(self) -> str:
        if FEATURES in self.members:
            return FEATURES
        names = list(self.members)
        if len(names) > 1:
            names = [name for name in names if len(self.members[name]().shape) == 2]
        if len(names) != 1:
            raise ValueError(
                f"it has {'several' if names else 'no'} arrays that could be the features; name "
                f"one with key=: {', '.join(self.shown_names()) or 'none'}"
            )
        return names[0]
