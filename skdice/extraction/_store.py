"""The batches that an extraction has written so far, so that an interrupted one can go on."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._head import LinearHead
from skdice.io import save_features


class PartialStore:
    """Batches of features and labels in a folder beside the file that they will become.

    Each batch is appended to a raw file. The state, which is replaced after each batch, says how
    many bytes of it count; bytes that a killed process wrote beyond them are cut off.
    """

    def __init__(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"no such folder: {path.parent}")
        self._path = path
        self.folder = path.with_name(f"{path.name}.partial")
        self._state: dict[str, Any] = {"batches": 0}
        if (self.folder / "state.json").exists():
            self._state = json.loads((self.folder / "state.json").read_text())

    @property
    def n_batches(self) -> int:
        """Number of batches that are stored."""
        return int(self._state["batches"])

    @property
    def layer(self) -> str:
        """Name of the layer that the features entered."""
        return str(self._state["layer"])

    @property
    def digest(self) -> str:
        """Digest of the inputs of these batches."""
        return str(self._state.get("digest", ""))

    def refuse(self) -> None:
        """Raise, because the inputs are not those of the stored batches."""
        raise ValueError(
            f"{self.folder} holds an interrupted extraction of other inputs, or in batches of "
            "another size or order; remove it to start anew"
        )

    def add(
        self,
        features: NDArray[Any],
        labels: NDArray[Any] | None,
        layer: str,
        head: str,
        digest: str,
    ) -> None:
        """Append a batch; `head` is `hash_of` the head, `digest` that of all inputs so far."""
        self.folder.mkdir(exist_ok=True)
        identity = {
            "layer": layer,
            "head": head,
            "features": [features.dtype.str, *features.shape[1:]],
            "labels": None if labels is None else [labels.dtype.str, *labels.shape[1:]],
        }
        before = {key: self._state.get(key, value) for key, value in identity.items()}
        if before != identity:
            raise ValueError(
                f"{self.folder} holds an interrupted extraction of something else ({before}, now "
                f"{identity}); remove it to start anew"
            )
        n_rows = self._state.get("rows", 0)
        for name, values in (("features", features), ("labels", labels)):
            if values is not None:
                with (self.folder / name).open("ab") as file:
                    file.truncate(n_rows * values.dtype.itemsize * int(np.prod(values.shape[1:])))
                    file.seek(0, os.SEEK_END)
                    file.write(np.ascontiguousarray(values).data)
        self._state |= identity
        self._state |= {"rows": n_rows + len(features), "batches": self.n_batches + 1}
        self._state["digest"] = digest
        temporary = self.folder / "state.json.new"
        temporary.write_text(json.dumps(self._state))
        temporary.replace(self.folder / "state.json")

    def finish(self) -> NDArray[Any] | None:
        """Write the feature file, remove the folder, and return the labels."""
        arrays = {}
        for name in ("features", "labels"):
            if self._state[name] is not None:
                dtype, *shape = self._state[name]
                rows = (self._state["rows"], *shape)
                arrays[name] = np.memmap(self.folder / name, dtype, "r", 0, rows)
        features = arrays.pop("features")
        labels = np.array(arrays["labels"]) if arrays else None
        if self._path.suffix == ".npy":
            # A .npy file holds one array, so the labels get a file of their own. Labels of an
            # earlier extraction do not belong to the new features.
            beside = self._path.with_name(f"{self._path.stem}.labels.npy")
            beside.unlink(missing_ok=True)
            save_features(self._path, features)
            if labels is not None:
                save_features(beside, labels)
        else:
            save_features(self._path, features, **arrays)
        shutil.rmtree(self.folder)
        return labels


def hash_of(head: LinearHead) -> str:
    """Return a text that is different for different heads."""
    return hashlib.sha256(head.weight.tobytes() + head.bias.tobytes()).hexdigest()
