"""Penultimate features and the head, from any torch classifier.

The features are what enters the classification layer, caught by a forward hook; the model
is run in evaluation mode, without gradients, and left as it was found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from tqdm import tqdm

from skdice._detector import DICEDetector
from skdice._extraction_store import PartialStore
from skdice._extras import import_extra
from skdice._head import LinearHead
from skdice._rows import Rows
from skdice._xp import to_numpy
from skdice.features import open_features

__all__ = ["Extraction", "attach", "extract_features", "iterate_features"]

# Rows of a tensor that are run at a time.
TENSOR_BATCH = 64
LABEL_NAMES = ("labels", "label")


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

    features: NDArray[Any] | Rows
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
        it was: training flags, hooks, device and weights.
    data : DataLoader, tensor, or iterable of batches
        A batch is a tensor of inputs, a tuple or list of inputs and labels, or a mapping of
        keyword arguments of the model, such as a Hugging Face tokenizer's, with labels under
        ``"labels"`` or ``"label"``. A tensor is cut into batches of 64.
    layer : str, default=None
        Name of the classification layer, a Linear or a 1x1 Conv2d. None finds the one whose
        output is the model's.
    out : str or Path, default=None
        A feature file to write to, batch by batch, in any format of `skdice.features`, with
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
    with _Tap(model, layer, device) as tap:
        if out is not None:
            return _extract_to_file(tap, data, Path(out), dtype, verbose)
        parts = [
            (features if dtype is None else features.astype(dtype), labels)
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
    with _Tap(model, layer, device) as tap:
        yield from map(tap.run, _batches(data))


def attach(model: Any, detector: DICEDetector, layer: str | None = None) -> Any:
    """Return a module that gives logits and OOD score in one forward pass.

    Parameters
    ----------
    model : torch.nn.Module
        The classifier. It is not changed; the module holds a copy of it.
    detector : DICEDetector
        Fitted on the features that enter its classification layer.
    layer : str, default=None
        Name of that layer, as in `extract_features`. None finds the one Linear or 1x1
        Conv2d that has the weight of the detector's head.

    Returns
    -------
    torch.nn.Module
        In evaluation mode. ``forward`` takes what the model takes and returns the model's
        output and the scores (n,). It exports to ONNX like any module.

    Raises
    ------
    ValueError
        No layer, or more than one, has the detector's head.

    Examples
    --------
    ``logits, score = attach(model, detector)(images)``
    """
    torch = import_extra("torch", "torch")
    from skdice.engines._attached import AttachedModule

    scorer, copied = detector.to_torch(), deepcopy(model).eval()
    if layer is None:
        wanted = detector._resolve_head(detector.n_features_in_)
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
                f"({', '.join(layers) or 'none'}); name the classification layer with layer="
            )
        (layer,) = layers
    return AttachedModule(copied, layer, scorer).eval()


class _Tap:
    """Runs a model and catches what enters its classification layer; a context manager."""

    def __init__(self, model: Any, layer: str | None, device: Any) -> None:
        self._torch = import_extra("torch", "torch")
        if not isinstance(model, self._torch.nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self._model, self._layer = model, layer
        first = next(model.parameters(), None)
        self._home = self._torch.device("cpu") if first is None else first.device
        self._device = self._home if device is None else self._torch.device(device)
        self._stack = ExitStack()

    def __enter__(self) -> _Tap:
        if self._layer is not None:
            self._check(self._layer)
        training = {module: module.training for module in self._model.modules()}
        self._stack.callback(self._restore, training)
        self._model.eval()
        if self._device != self._home:
            if len({each.device for each in self._model.parameters()}) > 1:
                raise ValueError("the model is spread over several devices; leave device=None")
            self._stack.callback(self._model.to, self._home)
            self._model.to(self._device)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @staticmethod
    def _restore(training: dict[Any, bool]) -> None:
        for module, was in training.items():
            module.training = was

    def name(self) -> str:
        """Return the name of the classification layer, known after the first batch."""
        assert self._layer is not None
        return self._layer

    def head(self) -> LinearHead:
        """Return a copy of the classification layer."""
        return LinearHead.from_torch(self._model.get_submodule(self.name()))

    def use(self, layer: str) -> None:
        """Take a layer that was found before."""
        self._check(layer)
        self._layer = layer

    def run(self, batch: Any) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Run the model on a batch; return the features and the labels."""
        torch = self._torch
        inputs, keywords, labels = self._split(batch)
        wanted = [self._layer] if self._layer is not None else self._candidates()
        calls: dict[str, list[tuple[Any, Any]]] = {name: [] for name in wanted}
        with ExitStack() as hooks, torch.inference_mode():
            for name, seen in calls.items():
                hook = self._model.get_submodule(name).register_forward_hook(
                    lambda _, given, output, seen=seen: seen.append((given, output))
                )
                hooks.callback(hook.remove)
            output = self._model(*inputs, **keywords)
            if self._layer is None:
                self._layer = self._producer(calls, _logits(output))
        ((given, _), *more) = calls[self._layer] or [(None, None)]
        if given is None or more:
            raise ValueError(
                f"the layer {self._layer!r} ran {len(calls[self._layer])} times in one pass of "
                "the model, expected once"
            )
        return self._vectors(given[0]), labels

    def _vectors(self, given: Any) -> NDArray[Any]:
        layer = self._model.get_submodule(self._layer)
        if isinstance(layer, self._torch.nn.Conv2d):
            given = given.mean((2, 3))
        if given.ndim != 2:
            raise ValueError(
                f"the input of the layer {self._layer!r} has shape {tuple(given.shape)}, expected "
                "one vector per sample (n, n_features)"
            )
        return np.array(to_numpy(given))

    def _split(self, batch: Any) -> tuple[list[Any], dict[str, Any], NDArray[Any] | None]:
        """Return positional and keyword arguments of the model, and the labels, of a batch."""
        labels = None
        if isinstance(batch, Mapping):
            named = {key: each for key, each in batch.items() if key not in LABEL_NAMES}
            labels = next((batch[key] for key in LABEL_NAMES if key in batch), None)
            return [], {key: self._moved(each) for key, each in named.items()}, _array(labels)
        if isinstance(batch, list | tuple):
            if not 1 <= len(batch) <= 2:
                raise ValueError(
                    f"a batch is a {type(batch).__name__} of {len(batch)}, expected inputs, or "
                    "inputs and labels; for several inputs give a mapping of keyword arguments"
                )
            batch, labels = (*batch, None)[:2]
        return [self._moved(batch)], {}, _array(labels)

    def _moved(self, value: Any) -> Any:
        return value.to(self._device) if isinstance(value, self._torch.Tensor) else value

    def _candidates(self) -> list[str]:
        """Return the names of the layers that could be the head; refuse what hides it."""
        hidden = [name for name, _ in self._model.named_modules() if ".lora_" in f".{name}"]
        if hidden:
            raise ValueError(
                f"the model is wrapped by LoRA ({hidden[0]}, ...), which adds to the output of its "
                "layers: merge the adapters first, or name the head with layer="
            )
        names = [name for name, module in self._model.named_modules() if self._is_head(module)]
        if not names:
            kinds = sorted({type(each).__name__ for each in self._model.modules()})
            raise ValueError(
                "the model has no Linear or 1x1 Conv2d with floating-point weights (a quantised "
                f"one is none); it has {', '.join(kinds)}"
            )
        return names

    def _is_head(self, module: Any) -> bool:
        nn = self._torch.nn
        is_layer = isinstance(module, nn.Linear) or (
            isinstance(module, nn.Conv2d) and tuple(module.kernel_size) == (1, 1)
        )
        return is_layer and module.weight.is_floating_point()

    def _check(self, layer: str) -> None:
        modules = dict(self._model.named_modules())
        if layer not in modules:
            likely = [name for name, each in modules.items() if self._is_head(each)]
            raise ValueError(f"the model has no layer {layer!r}; candidates: {', '.join(likely)}")
        if not self._is_head(modules[layer]):
            raise TypeError(
                f"the layer {layer!r} is a {type(modules[layer]).__name__}, expected a Linear or "
                "a 1x1 Conv2d with floating-point weights"
            )

    def _producer(self, calls: dict[str, list[tuple[Any, Any]]], outputs: list[Any]) -> str:
        """Return the name of the one layer whose output is the model's."""
        found = [
            name
            for name, seen in calls.items()
            if len(seen) == 1 and any(_same(self._torch, seen[0][1], each) for each in outputs)
        ]
        ran = [name for name, seen in calls.items() if seen]
        if len(found) != 1:
            what = "several layers give outputs" if found else "no layer's output is the output"
            raise ValueError(
                f"{what} of the model; name the classification layer with layer=: "
                f"{', '.join(found or ran)}"
            )
        weight = self._model.get_submodule(found[0]).weight
        tied = [
            name
            for name, module in self._model.named_modules()
            if name != found[0] and getattr(module, "weight", None) is weight
        ]
        if tied:
            raise ValueError(
                f"the layer {found[0]!r} shares its weight with {', '.join(tied)}; if it is the "
                f"classification layer all the same, say layer={found[0]!r}"
            )
        return found[0]


def _logits(output: Any) -> list[Any]:
    """Return the tensors in a model's output that may be logits."""
    if hasattr(output, "logits"):
        return [output.logits]
    if isinstance(output, Mapping):
        return [output["logits"]] if "logits" in output else list(output.values())
    return list(output) if isinstance(output, list | tuple) else [output]


def _same(torch: Any, layer_output: Any, output: Any) -> bool:
    """Tell whether a layer's output is the model's: as it is, averaged, or after a softmax."""
    if not (isinstance(layer_output, torch.Tensor) and isinstance(output, torch.Tensor)):
        return False
    if layer_output.ndim == 4:
        layer_output = layer_output.mean((2, 3))
    if output.ndim == 4 and output.shape[2:] == (1, 1):
        output = output[..., 0, 0]
    if layer_output.shape != output.shape or output.ndim != 2:
        return False
    forms = (layer_output, layer_output.log_softmax(1), layer_output.softmax(1))
    return any(torch.allclose(form, output, rtol=1e-4, atol=1e-5) for form in forms)


def _array(labels: Any) -> NDArray[Any] | None:
    if labels is None:
        return None
    return np.array(to_numpy(labels) if hasattr(labels, "detach") else labels)


def _batches(data: Any) -> Iterable[Any]:
    batches: Iterable[Any] = data.split(TENSOR_BATCH) if hasattr(data, "detach") else data
    return batches


def _progress(batches: Iterable[Any], verbose: int) -> Iterable[Any]:
    shown: Iterable[Any] = tqdm(batches, desc="batches", unit=" batches", disable=not verbose)
    return shown


def _extract_to_file(
    tap: _Tap, data: Any, path: Path, dtype: DTypeLike | None, verbose: int
) -> Extraction:
    """Extract batch by batch into a file; go on where an interrupted call stopped."""
    store = PartialStore(path)
    if store.n_batches:
        sampler = type(getattr(data, "sampler", None)).__name__
        if sampler == "RandomSampler":
            raise ValueError(
                f"{store.folder} holds an interrupted extraction of data in another order: the "
                "loader shuffles. Remove the folder, or load without shuffling"
            )
        tap.use(store.layer)
    for number, batch in enumerate(_progress(_batches(data), verbose)):
        if number < store.n_batches:
            continue
        features, labels = tap.run(batch)
        store.add(
            features if dtype is None else features.astype(dtype), labels, tap.name(), tap.head()
        )
    if not store.n_batches:
        raise ValueError("the data has no batches")
    labels = store.finish()
    return Extraction(open_features(path), labels, tap.head(), tap.name())
