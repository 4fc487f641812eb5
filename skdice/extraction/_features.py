"""Features of a whole data set from a model: in memory, in a file, or batch by batch.

The modules that import torch are imported in the functions, because torch is an extra.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from tqdm import tqdm

from skdice._base import BaseDetector
from skdice._compat.extras import import_extra
from skdice._head import LinearHead
from skdice._rows.sources import Sliceable
from skdice.extraction._store import PartialStore, hash_of
from skdice.io import open_features
from skdice.io._save import check_ending


@dataclass(frozen=True)
class Extraction:
    """Features, labels and head, as `extract_features` returns them.

    Parameters
    ----------
    features : ndarray or source of rows, of shape (n_samples, n_features)
        Penultimate features; they are a source of rows where they were written to a file.
    labels : ndarray of shape (n_samples,) or None
        Labels, if the data had them.
    head : LinearHead
        The classification layer.
    layer : str
        Name of the classification layer in the model.
    """

    features: NDArray[Any] | Sliceable
    labels: NDArray[Any] | None
    head: LinearHead
    layer: str


def extract_features(
    model: Any,
    data: Any,
    *,
    layer: str | None = None,
    out: str | Path | None = None,
    device: Any = None,
    dtype: DTypeLike | None = None,
    verbose: int = 0,
) -> Extraction:
    """Run a model over data and return the features that enter its classification layer.

    Parameters
    ----------
    model : torch.nn.Module, TorchScript module, ExportedProgram or skorch net
        The classifier. It is run in evaluation mode without gradients, and left exactly as
        it was: training flags, hooks, device, weights and compiled code. Compiled modules are run
        uncompiled. Programs in files are read by `load_program`.
    data : DataLoader, data set, array, tensor, mapping or iterable of batches
        A batch is a tensor or array of inputs, a pair of inputs and labels, or a mapping of
        keyword arguments of the model, such as a Hugging Face tokenizer's, with labels under
        ``"labels"`` or ``"label"``. Several inputs are a mapping, or a tuple as the first of the
        pair. A NumPy array, a tensor, a torch or Hugging Face data set, and a mapping of whole
        arrays are cut into batches of 64. Of a Hugging Face data set the columns are used that the
        model's ``forward`` names.
    layer : str, default=None
        Name of the classification layer, a Linear or a 1x1 Conv2d, also one that PEFT adapts.
        None finds the layer whose output is the model's.
    out : str or Path, default=None
        A feature file to write to, batch by batch, in any format of `skdice.io`, with
        the labels beside the features (those of ``train.npy`` in ``train.labels.npy``). The same
        call after an interruption goes on where it stopped; the data must come in the same order,
        so do not shuffle.
    device : torch.device or str, default=None
        Device to run on; None is the device of the model. The model is moved back afterwards.
    dtype : dtype, default=None
        Dtype of the features, such as ``"float16"`` to halve the file; None keeps the model's,
        with bfloat16 as float32.
    verbose : int, default=0
        Above 0, a progress bar is shown on stderr.

    Returns
    -------
    Extraction
        Features, labels, head and the name of the layer.

    Raises
    ------
    ValueError
        The layer is ambiguous or not there (the message lists the likeliest candidates), its input
        is not one vector per sample, features and head do not give the model's output, or the
        data is empty.
    TypeError
        The layer is neither a Linear nor a 1x1 Conv2d, or the data is of a kind that is not read.

    Warns
    -----
    UserWarning
        The output of the model holds no logits to check the features with, or is the mean of two
        heads.

    Notes
    -----
    After the first batch, features times weight plus bias are compared with the output of the
    model: a tensor, or tensors in containers and objects. The output may be the logits, their
    softmax, log-softmax or sigmoid, each perhaps of the logits over a temperature. The features are
    copied before the model goes on, so that operations in place do not change them.

    For a 1x1 convolution the features are its input maps, averaged over all positions:
    averaging and a 1x1 convolution commute, so that features and head give the averaged
    logits. Where the model runs the head on every token, as the decoder classifiers of Hugging
    Face do, the features are pooled as the model pools the logits.

    Examples
    --------
    ``extraction = extract_features(model, DataLoader(train_set, batch_size=256), out="train.npy")``
    """
    with _tap(model, layer, device) as tap:
        shown = {"desc": "batches", "unit": " batches", "disable": not verbose}
        batches: Iterable[Any] = tqdm(tap.batches(data), **shown)
        if out is not None:
            return _extract_to_file(tap, data, batches, Path(out), dtype)
        parts = [
            (_converted(features, dtype), labels) for features, labels in map(tap.run, batches)
        ]
        if not parts:
            raise ValueError("the data has no batches")
        labels = [part for _, part in parts if part is not None]
        return Extraction(
            np.concatenate([features for features, _ in parts]),
            np.concatenate(labels) if len(labels) == len(parts) else None,
            tap.head,
            tap.layer,
        )


def iterate_features(
    model: Any, data: Any, *, layer: str | None = None, device: Any = None
) -> Iterator[tuple[NDArray[Any], NDArray[Any] | None]]:
    """Yield the features and the labels of one batch after the other, storing nothing.

    Parameters
    ----------
    model : torch.nn.Module, TorchScript module, ExportedProgram or skorch net
        The classifier, as `extract_features` takes it.
    data : DataLoader, data set, array, tensor, mapping or iterable of batches
        The inputs, as `extract_features` takes them.
    layer : str, default=None
        Name of the classification layer; None finds the layer.
    device : torch.device or str, default=None
        Device to run on; None is the device of the model.

    Yields
    ------
    features : ndarray of shape (n, n_features)
        The features that enter the classification layer.
    labels : ndarray of shape (n,) or None
        Labels, if the batch had them.

    Notes
    -----
    The model is in evaluation mode while the iteration runs, and as it was afterwards. The first
    batch is checked as in `extract_features`.

    Examples
    --------
    A detector fitted while extracting::

        detector = DICEDetector(LinearHead.from_torch(model.fc))
        for features, labels in iterate_features(model, loader):
            detector.partial_fit(features)
    """
    with _tap(model, layer, device) as tap:
        yield from map(tap.run, tap.batches(data))


def load_program(path: str | Path, *, layer: str | None = None, device: Any = None) -> Any:
    """Load a classifier that was saved as a program, for `extract_features`.

    Parameters
    ----------
    path : str or Path
        A TorchScript file (``torch.jit.save``) or an exported program
        (``torch.export.save``). It is code: load only files that you trust.
    layer : str, default=None
        Name of the classification layer in the program; None finds the one Linear or 1x1
        convolution that gives the output.
    device : torch.device or str, default=None
        Device to run on, which cannot be changed later; None is the CPU.

    Returns
    -------
    torch.nn.Module
        A module from inputs to logits, with the classification layer as its ``head``;
        ``layer_name`` is its name in the program, and ``batch_rows`` the one size of batch
        that the program takes, or None. A batch of fewer rows is filled up.

    Raises
    ------
    ValueError
        The file is not a program, was saved in training mode, or the layer is ambiguous (the
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


def attach(model: Any, detector: BaseDetector, *, layer: str | None = None) -> Any:
    """Return a module that gives logits and OOD score in one forward pass.

    Parameters
    ----------
    model : torch.nn.Module or skorch net
        The classifier, built by its Python code, not by `load_program`. It is not changed;
        the module holds a copy of it, uncompiled.
    detector : detector of skdice
        Fitted on the features that enter the classification layer. An ensemble is one, too, if
        all its members are detectors of skdice.
    layer : str, default=None
        Name of the classification layer, as in `extract_features`; its weight is then not compared
        with the detector's head. None finds the Linear or 1x1 Conv2d, perhaps adapted by PEFT,
        that has the head's weight and bias.

    Returns
    -------
    torch.nn.Module
        In evaluation mode, on the device of that layer. ``forward`` takes the arguments of the
        model and returns the model's output and the scores (n,); ``decide`` also returns whether
        each row is out-of-distribution, and its p-value. The module can be traced and exported,
        to ONNX too, as in the guide to deployment; ``torch.jit.script`` refuses it.

    Raises
    ------
    ValueError
        No layer has the detector's head. At the first call with finite features outside of
        tracing and export: the layer does not give the output of the model, as in
        `extract_features`.
    TypeError
        The model is not a torch module, or is a program.

    Examples
    --------
    ``logits, score = attach(model, detector)(images)``
    """
    import_extra("torch", "torch")
    from skdice.extraction import _attached

    return _attached.attached(model, detector, layer)


@contextmanager
def _tap(model: Any, layer: str | None, device: Any) -> Iterator[Any]:
    import_extra("torch", "torch")
    from skdice.extraction._tap import Tap

    tap = Tap(model, layer, device)
    with tap.prepared_model():
        yield tap


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


def _extract_to_file(
    tap: Any, data: Any, batches: Iterable[Any], path: Path, dtype: DTypeLike | None
) -> Extraction:
    """Extract batch by batch into a file; go on where an interrupted call stopped."""
    from skdice.extraction._data import digest_of

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
    n_before, n_seen, digest, head_hash = store.n_batches, 0, "", ""
    for batch in batches:
        n_seen, digest = n_seen + 1, digest_of(batch, digest)
        if n_seen > n_before:
            features, labels = tap.run(batch)
            head_hash = head_hash or hash_of(tap.head)
            store.add(_converted(features, dtype), labels, tap.layer, head_hash, digest)
        elif n_seen == n_before and digest != store.digest:
            store.refuse()
    if n_seen < n_before:
        store.refuse()
    if not n_seen:
        raise ValueError("the data has no batches")
    labels = store.finish()
    return Extraction(open_features(path), labels, tap.head, tap.layer)
