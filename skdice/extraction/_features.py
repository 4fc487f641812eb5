"""Features of a whole data set from a model: in memory, in a file, or batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from tqdm import tqdm

from skdice._compat.arrays import to_numpy
from skdice._compat.extras import import_extra
from skdice._dice import DICEDetector
from skdice._head import LinearHead
from skdice._rows.sources import Sliceable
from skdice.extraction._store import PartialStore
from skdice.extraction._tap import Tap
from skdice.io import open_features
from skdice.io._save import check_ending

# Rows of a tensor that are run at a time.
TENSOR_BATCH = 64


@dataclass(frozen=True)
class Extraction:
    """What `extract_features` returns.

    Attributes
    ----------
    features : ndarray or source of rows, of shape (n_samples, n_features)
        Penultimate features; a source opened from the file where there is one.
    labels : ndarray of shape (n_samples,) or None
        Labels, where the data had them.
    head : LinearHead
        The classification layer.
    layer : str
        Its name in the model.
    """

    features: NDArray[Any] | Sliceable
    labels: NDArray[Any] | None
    head: LinearHead
    layer: str


def extract_features(
    model: Any,
    data: Any,
    layer: str | None = None,
    out: str | Path | None = None,
    device: Any = None,
    dtype: DTypeLike | None = None,
    verbose: int = 0,
) -> Extraction:
    """Run a model over data and return what enters its classification layer.

    Parameters
    ----------
    model : torch.nn.Module
        The classifier. It is run in evaluation mode without gradients, and left exactly as
        it was: training flags, hooks, device and weights. TorchScript and exported programs
        come from `load_program`.
    data : DataLoader, tensor, or iterable of batches
        A batch is a tensor of inputs, a tuple or list of inputs and labels, or a mapping of
        keyword arguments of the model, such as a Hugging Face tokenizer's, with labels under
        ``"labels"`` or ``"label"``. A tensor is cut into batches of 64.
    layer : str, default=None
        Name of the classification layer, a Linear or a 1x1 Conv2d. None finds the one whose
        output is the model's.
    out : str or Path, default=None
        A feature file to write to, batch by batch, in any format of `skdice.io`, with
        the labels beside (of ``train.npy``, in ``train.labels.npy``). The same call after an
        interruption goes on where it stopped; the data must come in the same order, so do
        not shuffle.
    device : torch.device or str, default=None
        Where to run; None is where the model is. The model is moved back afterwards.
    dtype : dtype, default=None
        Of the features, ``"float16"`` to halve the file; None keeps the model's, with
        bfloat16 as float32.
    verbose : int, default=0
        Above 0, a progress bar on stderr.

    Returns
    -------
    Extraction
        Features, labels, head and the name of the layer.

    Raises
    ------
    ValueError
        The layer is ambiguous or not there (the message lists the candidates), its input is
        not one vector per sample, or the data is empty.
    TypeError
        The layer is neither a Linear nor a 1x1 Conv2d.

    Notes
    -----
    For a 1x1 convolution the features are its input maps, averaged over all positions:
    averaging and a 1x1 convolution commute, so that features and head give the averaged
    logits.

    Examples
    --------
    ``extraction = extract_features(model, DataLoader(train_set, batch_size=256), out="train.npy")``
    """
    with Tap(model, layer, device) as tap:
        if out is not None:
            return _extract_to_file(tap, data, Path(out), dtype, verbose)
        parts = [
            (_converted(features, dtype), labels)
            for features, labels in map(tap.run, _progress(_batches(data), verbose))
        ]
        if not parts:
            raise ValueError("the data has no batches")
        labels = [each for _, each in parts if each is not None]
        return Extraction(
            np.concatenate([each for each, _ in parts]),
            np.concatenate(labels) if len(labels) == len(parts) else None,
            tap.head(),
            tap.name(),
        )


def iterate_features(
    model: Any, data: Any, layer: str | None = None, device: Any = None
) -> Iterator[tuple[NDArray[Any], NDArray[Any] | None]]:
    """Yield the features and the labels of one batch after the other, storing nothing.

    Parameters
    ----------
    model, data, layer, device
        As in `extract_features`.

    Yields
    ------
    features : ndarray of shape (n, n_features)
        What enters the classification layer.
    labels : ndarray of shape (n,) or None
        Labels, where the batch had them.

    Notes
    -----
    The model is in evaluation mode while the iteration runs, and as it was afterwards.

    Examples
    --------
    A detector fitted while extracting::

        detector = DICEDetector(LinearHead.from_torch(model.fc))
        for features, labels in iterate_features(model, loader):
            detector.partial_fit(features)
    """
    with Tap(model, layer, device) as tap:
        yield from map(tap.run, _batches(data))


def load_program(path: str | Path, layer: str | None = None, device: Any = None) -> Any:
    """Load a classifier that was saved as a program, for `extract_features`.

    Parameters
    ----------
    path : str or Path
        A TorchScript file (``torch.jit.save``) or an exported program
        (``torch.export.save``), of one input. It is code: load only what you trust.
    layer : str, default=None
        Name of the classification layer in the program; None finds the one Linear or 1x1
        convolution that gives the output.
    device : torch.device or str, default=None
        Where it is to run, which is settled here; None is the CPU.

    Returns
    -------
    torch.nn.Module
        From inputs to logits, with the classification layer as its ``head``;
        ``layer_name`` is its name in the program, and ``batch_rows`` the one size of batch
        that the program takes, or None. A batch of fewer rows is filled up.

    Raises
    ------
    ValueError
        The file is no program, was saved in training mode, or the layer is ambiguous (the
        message lists the candidates).
    ImportError
        torch is not installed.

    Examples
    --------
    ``extraction = extract_features(load_program("resnet50.pt2"), loader)``
    """
    import_extra("torch", "torch")
    from skdice.extraction import _program

    return _program.load(Path(path), layer, device)


def attach(model: Any, detector: DICEDetector, layer: str | None = None) -> Any:
    """Return a module that gives logits and OOD score in one forward pass.

    Parameters
    ----------
    model : torch.nn.Module
        The classifier, built by its Python code, not by `load_program`. It is not changed;
        the module holds a copy of it.
    detector : DICEDetector
        Fitted on the features that enter its classification layer.
    layer : str, default=None
        Name of that layer, as in `extract_features`; whether it has the weight of the
        detector's head is then not looked at. None finds the one Linear or 1x1 Conv2d that
        has it.

    Returns
    -------
    torch.nn.Module
        In evaluation mode, on the device of that layer. ``forward`` takes what the model takes
        and returns the model's output and the scores (n,). It is traced and exported, to ONNX
        too, as in the guide to deployment; ``torch.jit.script`` refuses it.

    Raises
    ------
    ValueError
        No layer, or more than one, has the detector's head.
    TypeError
        The model is no torch module, or a program that `load_program` read.

    Examples
    --------
    ``logits, score = attach(model, detector)(images)``
    """
    torch = import_extra("torch", "torch")
    from skdice.extraction._attached import AttachedModule
    from skdice.extraction._program import ProgramClassifier

    if not isinstance(model, torch.nn.Module) or isinstance(model, ProgramClassifier):
        raise TypeError(
            f"model is a {type(model).__name__}, expected the classifier as its Python code builds "
            "it: a saved program has no layer that could be watched"
        )
    scorer, copied = detector.to_torch(), deepcopy(model).eval()
    if layer is None:
        wanted = detector.head_
        layers = [
            name
            for name, module in copied.named_modules()
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
            and tuple(module.weight.shape[:2]) == wanted.weight.shape
            and set(module.weight.shape[2:]) <= {1}
            and np.array_equal(to_numpy(module.weight).reshape(wanted.weight.shape), wanted.weight)
        ]
        if len(layers) != 1:
            raise ValueError(
                f"{len(layers)} layers of the model have the weight of the detector's head "
                f"({', '.join(layers) or 'none'}); name the classification layer with layer=, if "
                "this is the model that the features came from"
            )
        (layer,) = layers
    weight = next(copied.get_submodule(layer).parameters(), None)
    if weight is not None:
        scorer = scorer.to(weight.device)
    return AttachedModule(copied, layer, scorer).eval()


def _batches(data: Any) -> Iterable[Any]:
    batches: Iterable[Any] = data.split(TENSOR_BATCH) if hasattr(data, "detach") else data
    return batches


def _converted(features: NDArray[Any], dtype: DTypeLike | None) -> NDArray[Any]:
    """Return features in a dtype, after checking that it holds them."""
    if dtype is None:
        return features
    with np.errstate(over="ignore"):
        converted = features.astype(dtype)
    lost = np.isfinite(features) & ~np.isfinite(converted)
    if lost.any():
        raise ValueError(
            f"a feature is {features[lost][0]:g}, which {converted.dtype} does not hold; choose "
            "another dtype"
        )
    return converted


def _progress(batches: Iterable[Any], verbose: int) -> Iterable[Any]:
    shown: Iterable[Any] = tqdm(batches, desc="batches", unit=" batches", disable=not verbose)
    return shown


def _extract_to_file(
    tap: Tap, data: Any, path: Path, dtype: DTypeLike | None, verbose: int
) -> Extraction:
    """Extract batch by batch into a file; go on where an interrupted call stopped."""
    check_ending(path)
    store = PartialStore(path)
    if store.n_batches:
        sampler = type(getattr(data, "sampler", None)).__name__
        if sampler == "RandomSampler":
            raise ValueError(
                f"{store.folder} holds an interrupted extraction of data in another order: the "
                "loader shuffles. Remove the folder, or load without shuffling"
            )
        tap.use(store.layer)
    n_before, n_seen, digest = store.n_batches, 0, ""
    for batch in _progress(_batches(data), verbose):
        n_seen, digest = n_seen + 1, tap.digest(batch, digest)
        if n_seen > n_before:
            features, labels = tap.run(batch)
            store.add(_converted(features, dtype), labels, tap.name(), tap.head(), digest)
        elif n_seen == n_before and digest != store.digest:
            store.refuse()
    if n_seen < n_before:
        store.refuse()
    if not n_seen:
        raise ValueError("the data has no batches")
    labels = store.finish()
    return Extraction(open_features(path), labels, tap.head(), tap.name())
