"""Running a model, and catching what enters its classification layer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._compat.arrays import to_numpy
from skdice._compat.extras import import_extra
from skdice._head import LinearHead

# Values of each input that a digest takes, about.
DIGEST_VALUES = 4099
LABEL_NAMES = ("labels", "label")


class Tap:
    """Runs a model and catches what enters its classification layer; a context manager."""

    def __init__(self, model: Any, layer: str | None, device: Any) -> None:
        self._torch = import_extra("torch", "torch")
        if not isinstance(model, self._torch.nn.Module):
            raise TypeError(
                f"model must be a torch.nn.Module, got {type(model).__name__}; a saved program is "
                "read by skdice.extraction.load_program, a state dict by the model's "
                "load_state_dict"
            )
        self._model, self._layer = model, layer
        first = next(model.parameters(), None)
        self._home = self._torch.device("cpu") if first is None else first.device
        self._device = self._home if device is None else self._torch.device(device)
        self._stack = ExitStack()

    def __enter__(self) -> Tap:
        if self._layer is not None:
            self._check(self._layer)
        training = {module: module.training for module in self._model.modules()}
        with ExitStack() as stack:  # which takes back what was done, should the rest fail
            stack.callback(self._restore, training)
            self._model.eval()
            if self._device != self._home:
                tensors = [*self._model.parameters(), *self._model.buffers()]
                if len({each.device for each in tensors}) > 1:
                    raise ValueError("the model is spread over several devices; leave device=None")
                stack.callback(self._model.to, self._home)
                self._model.to(self._device)
            self._stack = stack.pop_all()
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
        # Not inference_mode: what a model makes on its way and keeps could not be trained with.
        with ExitStack() as hooks, torch.no_grad():
            for name, seen in calls.items():
                hook = self._model.get_submodule(name).register_forward_hook(
                    lambda _, given, output, seen=seen: seen.append((given, output))
                )
                hooks.callback(hook.remove)
            output = self._model(*inputs, **keywords)
            if self._layer is None:
                self._layer = self._producer(calls, output_tensors(output))
        ((given, _), *more) = calls[self._layer] or [(None, None)]
        if given is None or more:
            raise ValueError(
                f"the layer {self._layer!r} ran {len(calls[self._layer])} times in one pass of "
                "the model, expected once"
            )
        return self._vectors(given[0]), labels

    def digest(self, batch: Any, before: str) -> str:
        """Return what tells the batches so far from others, from a sample of their inputs."""
        inputs, keywords, _ = self._split(batch)
        told = hashlib.sha256(before.encode())
        for value in [*inputs, *keywords.values()]:
            if isinstance(value, self._torch.Tensor):
                flat = value.detach().flatten()
                # An odd step, which does not fall on one column of a width like 2,048.
                sample = to_numpy(flat[:: len(flat) // DIGEST_VALUES | 1])
                told.update(f"{tuple(value.shape)} {value.dtype}".encode())
                told.update(np.ascontiguousarray(sample).data)
        return told.hexdigest()

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
                f"one is none); it has {', '.join(kinds)}. A TorchScript file is read by "
                "skdice.extraction.load_program"
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
            if len(seen) == 1
            and any(same_output(self._torch, seen[0][1], each) for each in outputs)
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


def output_tensors(output: Any) -> list[Any]:
    """Return the tensors in a model's output that may be logits."""
    if hasattr(output, "logits"):
        return [output.logits]
    if isinstance(output, Mapping):
        return [output["logits"]] if "logits" in output else list(output.values())
    return list(output) if isinstance(output, list | tuple) else [output]


def same_output(torch: Any, layer_output: Any, output: Any) -> bool:
    """Tell whether a layer's output is the model's: as it is, averaged, or after a softmax."""
    if not (isinstance(layer_output, torch.Tensor) and isinstance(output, torch.Tensor)):
        return False
    if layer_output.ndim == 4:
        layer_output = layer_output.mean((2, 3))
    if output.ndim == 4 and output.shape[2:] == (1, 1):
        output = output[..., 0, 0]
    if layer_output.shape != output.shape or output.ndim != 2:
        return False
    # A model may return its logits in another precision, or on the device of its inputs.
    kinds = {each.dtype for each in (layer_output, output) if each.is_floating_point()}
    rtol = max([1e-4, *(torch.finfo(kind).eps for kind in kinds)])
    layer_output, output = layer_output.float(), output.to(layer_output.device).float()
    forms = (layer_output, layer_output.log_softmax(1), layer_output.softmax(1))
    return any(torch.allclose(form, output, rtol=rtol, atol=1e-5) for form in forms)


def _array(labels: Any) -> NDArray[Any] | None:
    if labels is None:
        return None
    return np.array(to_numpy(labels) if hasattr(labels, "detach") else labels)
