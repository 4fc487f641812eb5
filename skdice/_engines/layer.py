"""The layer that an engine computes: a shaping, the masked weight, and a score of the logits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from skdice._engines.activations import Activation

FloatArray = NDArray[np.floating[Any]]
Score = str | Callable[[FloatArray], FloatArray] | None
Packed = TypeVar("Packed")


class PackedWeights:
    """The weights of a fitted layer in the layouts that engines have asked for so far.

    A service that scores small batches packs its weights once instead of at every call. No result
    depends on this memory: pickles leave it out, and it is emptied when the layer has other arrays.
    It is safe to use from several threads.
    """

    def __init__(self) -> None:
        self._arrays: tuple[Any, ...] = ()
        self._packed: dict[Hashable, Any] = {}
        self._lock = threading.RLock()

    def get(self, arrays: tuple[Any, ...], key: Hashable, pack: Callable[[], Packed]) -> Packed:
        """Return the packed arrays of a key; `pack` makes them if they are not there yet."""
        with self._lock:
            if len(arrays) != len(self._arrays) or any(
                new is not old for new, old in zip(arrays, self._arrays, strict=True)
            ):
                self._arrays, self._packed = arrays, {}
            if key not in self._packed:
                self._packed[key] = pack()
            packed: Packed = self._packed[key]
            return packed

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeights, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeights:
        return PackedWeights()

    def __dask_tokenize__(self) -> tuple[()]:
        return ()


@dataclass(frozen=True, eq=False)
class MaskedLayer:
    """A masked linear layer with a shaping before it and a score after it.

    Parameters
    ----------
    weight : ndarray of shape (n_classes, n_features)
        Masked weight.
    bias : ndarray of shape (n_classes,)
        Bias.
    shaping : Activation or None
        Applied to the features first.
    score : {"energy", "max_logit", "msp", "gen"}, callable or None
        Score of a row from its logits; None for the logits themselves.
    packed : PackedWeights
        Layouts of the weight that are kept between calls.
    """

    weight: FloatArray
    bias: FloatArray
    shaping: Activation | None = None
    score: Score = "energy"
    packed: PackedWeights = field(default_factory=PackedWeights, repr=False)

    @property
    def is_portable(self) -> bool:
        """Whether every engine can compute the layer: it holds no function of the user."""
        return not callable(self.score) and (self.shaping is None or self.shaping.is_portable)

    def packed_as(self, key: Hashable, pack: Callable[[FloatArray, FloatArray], Packed]) -> Packed:
        """Return the weight and bias in the layout of a key, packed once."""
        return self.packed.get((self.weight, self.bias), key, lambda: pack(self.weight, self.bias))


@dataclass(frozen=True, eq=False)
class LayerPath:
    """One linear layer under several masks, each of which holds the smaller ones.

    Its values are the scores at each mask, (n_samples, n_masks).

    Parameters
    ----------
    weight : ndarray of shape (n_classes, n_features)
        Weight without a mask.
    bias : ndarray of shape (n_classes,)
        Bias.
    masks : sequence of ndarray of shape (n_classes, n_features), bool
        True where a weight is kept.
    shaping : Activation or None
        Applied to the features first.
    score : {"energy", "max_logit", "msp", "gen"} or callable
        Score of a row from its logits.
    """

    weight: FloatArray
    bias: FloatArray
    masks: Sequence[NDArray[np.bool_]]
    shaping: Activation | None
    score: Score

    @property
    def is_portable(self) -> bool:
        """Whether every engine of the CPU can compute the path."""
        return not callable(self.score) and (self.shaping is None or self.shaping.is_portable)
