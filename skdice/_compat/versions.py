"""The versions of everything that a bug report should name."""

import platform
import re
import sys
from importlib import metadata

from skdice._compat.version import __version__


def show_versions() -> None:
    """Print what a bug report should name: Python, the platform, and the versions of packages.

    The packages are the dependencies of skdice, and those of its extras that are installed.
    The libraries that compute with threads, such as the BLAS of NumPy, are listed with their
    numbers of threads.

    See Also
    --------
    sklearn.show_versions : Print the same for scikit-learn.

    Examples
    --------
    >>> import skdice
    >>> skdice.show_versions()  # doctest: +ELLIPSIS
    System
        python: 3...
        executable: ...
        platform: ...
    <BLANKLINE>
    Packages
        skdice: ...
    """
    required, optional = _dependencies()
    sections = {
        "System": [
            f"python: {' '.join(sys.version.split())}",
            f"executable: {sys.executable}",
            f"platform: {platform.platform()}",
        ],
        "Packages": [f"skdice: {__version__}", *_versions(required)],
        "Packages of extras": _versions(optional) or ["none is installed"],
        "Libraries with threads": _thread_pools(),
    }
    print(  # noqa: T201 (printing is what this function is for)
        "\n\n".join("\n    ".join([title, *lines]) for title, lines in sections.items())
    )


def _dependencies() -> tuple[list[str], list[str]]:
    """Return the names of the required packages, and of those that the extra `all` brings."""
    # The names are read from the installed metadata because they already stand in pyproject.toml.
    try:
        requirements = metadata.requires("skdice") or []
    except metadata.PackageNotFoundError:  # The source was put on the path without installing it.
        requirements = []
    required, optional = [], []
    for requirement in requirements:
        specifier, _, marker = requirement.partition(";")
        (name,) = re.findall(r"^[\w.-]+", specifier)
        if not marker:
            required.append(name)
        elif re.search(r"extra == ['\"]all['\"]", marker):
            optional.append(name)
    return sorted(required), sorted(optional)


def _versions(names: list[str]) -> list[str]:
    """Return a line for each of these packages that is installed."""
    lines = []
    for name in names:
        try:
            lines.append(f"{name}: {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return lines


def _thread_pools() -> list[str]:
    # threadpoolctl only sees libraries that are loaded. These two imports load the BLAS of NumPy
    # and of SciPy, and the OpenMP runtime of scikit-learn.
    import sklearn.utils  # noqa: F401
    from threadpoolctl import threadpool_info

    return [
        f"{pool['internal_api']} {pool['version'] or '(version unknown)'}: "
        f"{pool['num_threads']} threads, {pool['filepath']}"
        for pool in threadpool_info()
    ]
