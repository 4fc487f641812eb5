"""Saving a fitted detector to a file that runs no code when it is loaded.

The file is a .safetensors file: arrays, and JSON in its metadata. A digest over both reveals
an altered file. The digest is not a signature, because whoever can write the file can also
write the digest. To change the stored content, raise SCHEMA and keep the old reader.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from skdice._base import BaseDetector
from skdice._compat.version import __version__
from skdice._persistence.decode import build
from skdice._persistence.encode import encode
from skdice._persistence.schema import KINDS, SCHEMA, VERSIONS
from skdice._persistence.values import Arrays
from skdice._rows.door import wrap
from skdice.io import _safetensors
from skdice.io._archive import clean_errors, require_file, to_path
from skdice.io._atomic import replacing


def save(detector: BaseDetector, path: str | Path) -> None:
    """Write a fitted detector to a file that runs no code when it is loaded.

    The file is in the .safetensors format, with JSON metadata. `skdice.load` reads it
    back, bit for bit, on any machine. An interrupted save leaves the old file or none.

    Parameters
    ----------
    detector : DICEDetector, DICEDetectorCV, FDBDDetector, ViMDetector or ConformalEnsemble
        Fitted. The members of an ensemble must be detectors of skdice. The result of a search is
        written as a `DICEDetector` with the best sparsity. The second moments of a `ViMDetector`
        are left out, so that `partial_fit` cannot go on from the file.
    path : str or Path
        The file, such as ``detector.safetensors``.

    Raises
    ------
    TypeError
        `detector` is of another class.
    ValueError
        `score_func` is a function, or `shaping` is not one of `skdice.shaping`: these
        cannot be saved without saving code.
    sklearn.exceptions.NotFittedError
        The detector is not fitted.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import skdice
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> data = load_fashion_mnist_ood()
    >>> detector = skdice.DICEDetector(data.head).fit(data.id_train)
    >>> skdice.save(detector, pathlib.Path(tempfile.mkdtemp()) / "detector.safetensors")
    """
    document, arrays = encode(detector)
    text = json.dumps(document, allow_nan=False)
    metadata = {"skdice": text, "sha256": digest_of_document(text, arrays)}
    path = to_path(path)
    with replacing(path) as temporary:
        sources = {name: wrap(array) for name, array in arrays.items()}
        _safetensors.write(temporary, sources, metadata)


def load(path: str | Path) -> Any:
    """Load a detector that `skdice.save` wrote. No code in the file is executed.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    DICEDetector, FDBDDetector, ViMDetector or ConformalEnsemble
        Fitted; its results are those of the saved one, bit for bit.

    Raises
    ------
    ValueError
        The file is damaged or altered, is of another kind, or was written by a newer
        version of skdice.
    FileNotFoundError
        There is no such file.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import skdice
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> data = load_fashion_mnist_ood()
    >>> detector = skdice.DICEDetector(data.head, sparsity=0.1).fit(data.id_train)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "detector.safetensors"
    >>> skdice.save(detector, path)
    >>> bool((skdice.load(path).predict(data.id_test) == detector.predict(data.id_test)).all())
    True
    """
    path = to_path(path)
    document, arrays = read(path)
    with clean_errors(path, "load"):
        return build(document, arrays)


def read_document(path: Path) -> dict[str, Any]:
    """Return the JSON document of a detector file, after all checks that `load` makes."""
    return read(path)[0]


def read(path: Path) -> tuple[dict[str, Any], Arrays]:
    require_file(path)
    with clean_errors(path, "load"):
        try:
            entries, _, metadata = _safetensors.read_header(path)
        except Exception as error:  # a file of another format can cause any error in the library
            raise ValueError(f"it is damaged, or not a detector file ({error})") from error
        if "skdice" not in metadata:
            raise ValueError("it is a .safetensors file, but holds no skdice detector")
        document: dict[str, Any] = json.loads(metadata["skdice"], parse_constant=_refuse_constant)
        if not isinstance(document, dict):
            raise ValueError(f"its document is a {type(document).__name__}, expected an object")
        kind = document.get("kind")
        if not isinstance(kind, str) or kind not in KINDS:
            expected = ", ".join(map(repr, KINDS))
            raise ValueError(f"it holds a {kind!r}, expected {expected}")
        schema, versions = document.get("schema"), document.get("versions")
        if type(schema) is not int or not 1 <= schema < 1 << 31:
            raise ValueError(f"its schema is {schema!r}, expected a number from 1")
        if not isinstance(versions, dict) or not all(
            isinstance(versions.get(name), str) for name in VERSIONS
        ):
            raise ValueError(f"its versions are {versions!r}, expected text")
        if schema > SCHEMA:
            raise ValueError(
                f"it has schema {schema}, written by skdice {versions['skdice']}; this is skdice "
                f"{__version__}, which reads schemas up to {SCHEMA}: upgrade it"
            )
        archive = _safetensors.read(path)
        arrays = {name: np.array(archive.open(name)[:]) for name in entries}
        if digest_of_document(metadata["skdice"], arrays) != metadata.get("sha256"):
            raise ValueError("it was altered or damaged after it was written")
        return document, arrays


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of JSON")


def digest_of_document(text: str, arrays: Arrays) -> str:
    """Return the SHA-256 of the document and of every array with its name, dtype and shape."""
    digest = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
