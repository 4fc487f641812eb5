"""A model and a detector in one forward pass; importing this imports torch."""

from threading import get_ident
from typing import Any

from torch import Tensor, nn


class _Watched(nn.Module):
    """The classification layer, which keeps what entered it last, in each thread."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        # By thread: a service may have several in the model at once.
        self._seen: dict[int, Tensor] = {}

    def forward(self, features: Tensor) -> Tensor:
        self._seen[get_ident()] = features
        logits: Tensor = self.layer(features)
        return logits

    def take(self) -> Tensor | None:
        """Return what entered the layer in this thread, and keep it no longer."""
        return self._seen.pop(get_ident(), None)


class AttachedModule(nn.Module):
    """Returns the output of a model and the OOD score of its penultimate features.

    Parameters
    ----------
    model : Module
        The classifier, whose layer is replaced by one that is watched.
    layer : str
        Name of its classification layer.
    scorer : Module
        From features to scores.
    """

    def __init__(self, model: nn.Module, layer: str, scorer: nn.Module) -> None:
        super().__init__()
        self.watched = _Watched(model.get_submodule(layer))
        if layer:
            parent, _, name = layer.rpartition(".")
            setattr(model.get_submodule(parent), name, self.watched)
        self.model = model if layer else self.watched
        self.scorer = scorer

    def forward(self, *inputs: Any, **keywords: Any) -> tuple[Any, Tensor]:
        """Return the model's output, and the scores (n,)."""
        output = self.model(*inputs, **keywords)
        features = self.watched.take()
        assert features is not None, "the classification layer did not run"
        if features.ndim == 4:  # the maps that enter a 1x1 convolution
            features = features.mean((2, 3))
        scores: Tensor = self.scorer(features)
        return output, scores
