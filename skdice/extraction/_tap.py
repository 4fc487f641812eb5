"""Running a model, and catching what enters its classification layer."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from skdice._compat.arrays import to_numpy
from skdice._head import LinearHead
from skdice.extraction import _program
from skdice.extraction._data import batches_of, split
from skdice.extraction._find import expected_logits, find_layer, verify
from skdice.extraction._layers import Watch, candidates, head_of, resolve_layer, unwrap


class Tap:
    """Runs a model and catches what enters its classification layer.

    A layer of None is found at the first batch; a device of None is that of the model.
    """

    def __init__(self, model: Any, layer: str | None, device: Any) -> None:
        model = unwrap(model)
        if isinstance(model, torch.jit.ScriptModule | torch.export.ExportedProgram):
            model, layer = _program.from_memory(model, layer, device), None
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"model must be a torch.nn.Module, got {type(model).__name__}; a saved program is "
                "read by skdice.extraction.load_program, a state dict by the model's "
                "load_state_dict"
            )
        if isinstance(model, _program.ProgramClassifier):
            layer = "head" if layer in (None, model.layer_name) else layer
        if not candidates(model):
            kinds = sorted({type(each).__name__ for each in model.modules()})
            raise ValueError(
                "the model has no Linear or 1x1 Conv2d with floating-point weights, and a "
                f"quantised layer cannot be used; it has {', '.join(kinds)}. Of a program "
                "that torch.export made, give the ExportedProgram itself"
            )
        self.model = model
        self._layer = None if layer is None else resolve_layer(model, layer)
        self._head: LinearHead | None = None
        self._is_verified = False
        first = next(model.parameters(), None)
        self._home = torch.device("cpu") if first is None else first.device
        self._device = self._home if device is None else torch.device(device)

    @contextmanager
    def prepared_model(self) -> Iterator[None]:
        """Put the model on the device and in evaluation mode, and leave it as it was."""
        with ExitStack() as stack:
            for module in self.model.modules():
                stack.callback(setattr, module, "training", module.training)
            self.model.eval()
            if self._device != self._home:
                tensors = [*self.model.parameters(), *self.model.buffers()]
                if len({each.device for each in tensors}) > 1:
                    raise ValueError("the model is spread over several devices; leave device=None")
                stack.callback(self.model.to, self._home)
                self.model.to(self._device)
            yield

    @property
    def layer(self) -> str:
        """Name of the classification layer, known after the first batch."""
        assert self._layer is not None
        return getattr(self.model, "layer_name", self._layer)

    @property
    def head(self) -> LinearHead:
        """Copy of the classification layer, known after the first batch or `use`."""
        assert self._layer is not None
        if self._head is None:
            self._head = head_of(self.model.get_submodule(self._layer))
        return self._head

    def batches(self, data: Any) -> Iterable[Any]:
        """Return data of any kind in batches, for `run`."""
        return batches_of(data, self.model)

    def use(self, layer: str) -> None:
        """Take a layer that was found before."""
        if not isinstance(self.model, _program.ProgramClassifier):
            self._layer = resolve_layer(self.model, layer)

    def run(self, batch: Any) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Run the model on a batch; return the features and the labels.

        The first batch also finds the layer, and proves that features and head give the output.
        """
        inputs, keywords, labels = split(batch, self.model, self._device)

        def call() -> Any:
            # The model gets copies, because it may write into its inputs.
            copies = [_copied(value) for value in inputs]
            return self._call(copies, {key: _copied(value) for key, value in keywords.items()})

        if self._layer is None:
            self._layer = find_layer(self.model, call)
        module, watch = self.model.get_submodule(self._layer), Watch(self._layer)
        handle = module.register_forward_hook(watch, with_kwargs=True)
        try:
            output = call()
        except (RuntimeError, IndexError) as error:
            widened = watch.widened()
            if widened is None:
                raise
            raise watch.not_one_vector(widened) from error
        finally:
            handle.remove()
        output, caught, seen = watch.take(output)
        features = np.ascontiguousarray(to_numpy(caught))
        if not self._is_verified:
            logits = expected_logits(self.head, features)
            verify(self.model, self._layer, logits, output, seen.eps, call)
            self._is_verified = True
        return features, labels

    def _call(self, inputs: list[Any], keywords: dict[str, Any]) -> Any:
        # Compiled parts run as they were written, because compiled code does not call hooks.
        # Nothing is compiled where the compiler was not imported, which takes seconds.
        is_compiler_loaded = "torch._dynamo" in sys.modules
        stance = torch.compiler.set_stance("force_eager") if is_compiler_loaded else nullcontext()
        # Do not use inference_mode: a tensor that the model keeps could not be trained with later.
        with stance, torch.no_grad():
            return self.model(*inputs, **keywords)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
