"""A model and a detector in one forward pass."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skdice._base import BaseDetector
from skdice._compat.arrays import to_numpy
from skdice._head import LinearHead
from skdice.extraction._find import expected_logits, verify
from skdice.extraction._layers import (
    Watch,
    candidates,
    head_of,
    listed,
    n_outputs,
    plain_layer,
    resolve_layer,
    unwrap,
)
from skdice.extraction._program import ProgramClassifier


class AttachedModule(nn.Module):
    """Returns the output of a model and the OOD score of its penultimate features.

    One of the named layers runs, and is the classification layer.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str], scorer: nn.Module) -> None:
        super().__init__()
        self.model, self.scorer = model, scorer
        layers = list(layers)
        self._layer = " or ".join(layers)
        self._watch, self._is_verified = Watch(self._layer), False
        for name in layers:
            model.get_submodule(name).register_forward_hook(self._watch, with_kwargs=True)

    def forward(self, *inputs: Any, **keywords: Any) -> tuple[Any, Tensor]:
        """Return the model's output, and the scores (n,)."""
        output, features = self._output_and_features(inputs, keywords)
        scores: Tensor = self.scorer(features)
        return output, scores

    def decide(self, *inputs: Any, **keywords: Any) -> tuple[Any, Tensor, Tensor, Tensor]:
        """Return the model's output, and score, `is_ood` and p-value of each row, all (n,).

        The last two are those of the detector's module, as `DICEDetector.to_torch` describes it.
        """
        output, features = self._output_and_features(inputs, keywords)
        scorer: Any = self.scorer
        return output, *scorer.decide(features)

    def _output_and_features(
        self, inputs: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[Any, Tensor]:
        self._watch.start()
        output, features, call = self._watch.take(self.model(*inputs, **keywords))
        if self._is_verified or _is_recorded() or features.is_meta:
            return output, features
        # An input with a NaN must be answered, also if it comes first. A later batch is verified.
        if features.numel() and bool(torch.isfinite(features).all()):

            def call_again() -> Any:
                self._watch.start()
                with torch.no_grad():
                    return self._watch.take(self.model(*inputs, **keywords))[0]

            logits = expected_logits(head_of(call.layer), to_numpy(features))
            verify(self.model, self._layer, logits, output, call.eps, call_again)
            self._is_verified = True
        return output, features


def attached(model: Any, detector: BaseDetector, layer: str | None) -> AttachedModule:
    """Join a copy of a model with a detector; see `skdice.extraction.attach`."""
    model = unwrap(model)
    is_program = isinstance(model, ProgramClassifier | torch.jit.ScriptModule)
    if not isinstance(model, nn.Module) or is_program:
        raise TypeError(
            f"model is a {type(model).__name__}, expected the classifier as its Python code builds "
            "it: a program has no layer that could be watched"
        )
    scorer, copied = detector.to_torch(), _uncompiled(deepcopy(model)).eval()
    if layer is not None:
        layers = [resolve_layer(copied, layer)]
    else:
        head = detector.head_
        layers = _layers_with(copied, head)
        if not layers:
            raise ValueError(
                "no layer of the model has the weight and bias of the detector's head; name the "
                "classification layer with layer=, if this is the model that the features came "
                f"from: {listed(reversed(candidates(copied)))}"
            )
    weight = next(copied.get_submodule(layers[0]).parameters())
    return AttachedModule(copied, layers, scorer.to(weight.device)).eval()


def _uncompiled(model: nn.Module) -> nn.Module:
    """Put the original modules in the places of those that torch.compile made."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not unwrap(child):
                setattr(parent, name, unwrap(child))
    return model


def _layers_with(model: nn.Module, head: LinearHead) -> list[str]:
    """Return the names of the innermost layers that have the weight and bias of a head."""
    found = []
    for name, module in candidates(model).items():
        layer = plain_layer(module)
        n_classes = max(n_outputs(module), 2)  # The head of one logit has two rows.
        assert layer is not None
        if layer.weight.is_meta or (n_classes, layer.weight.shape[1]) != head.weight.shape:
            continue
        own = head_of(module)
        if np.array_equal(own.weight, head.weight) and np.array_equal(own.bias, head.bias):
            found.append(name)
    return [name for name in found if not any(each.startswith(f"{name}.") for each in found)]


def _is_recorded() -> bool:
    """Tell whether torch traces, compiles or exports the module."""
    is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]
    return is_tracing() or torch.compiler.is_compiling()
