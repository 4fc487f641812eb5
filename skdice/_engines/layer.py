"""The layer that an engine computes: the fitted state of a detector, as arrays and numbers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from skdice._engines.activations import Activation

FloatArray = NDArray[np.floating[Any]]
Score = str | Callable[[FloatArray], FloatArray] | None
Packed = TypeVar("Packed")


@dataclass(eq=False, repr=False)
class PackedWeights:
    """The weights of a fitted layer in the layouts that engines have asked for so far.

    A service that scores small batches packs its weights once instead of at every call. No result
    depends on this memory: pickles leave it out, and it is emptied when the layer has other arrays.
    It is safe to use from several threads.
    """

    _arrays: tuple[Any, ...] = ()
    _packed: dict[Hashable, Any] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

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

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(vars(PackedWeights()))

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeights:
        return PackedWeights()

    def __dask_tokenize__(self) -> tuple[()]:
        return ()


class FittedLayer:
    """Base of the layers that engines compute from the features and a linear layer.

    Attributes
    ----------
    weight : ndarray of shape (n_classes, n_features)
        Weight of the linear layer.
    bias : ndarray of shape (n_classes,)
        Bias of the linear layer.
    packed : PackedWeights
        Layouts of the arrays that are kept between calls.
    """

    weight: FloatArray
    bias: FloatArray
    packed: PackedWeights
    # While a row is processed, it takes this many arrays of n_classes and of n_features numbers.
    row_arrays: ClassVar[tuple[int, int]] = (1, 1)
    # Number of values of a row; None for one value without a column of its own.
    n_columns: ClassVar[int | None] = None

    @property
    def arrays(self) -> tuple[FloatArray, ...]:
        """The arrays of the layer, which engines convert and pack."""
        return self.weight, self.bias

    @property
    def settings(self) -> tuple[Hashable, ...]:
        """The settings besides the arrays on which the values depend."""
        return ()

    def packed_as(self, key: Hashable, pack: Callable[..., Packed]) -> Packed:
        """Return the arrays packed for a key; `pack` packs them once."""
        arrays = self.arrays
        return self.packed.get(arrays, key, lambda: pack(*arrays))


@dataclass(frozen=True, eq=False)
class MaskedLayer(FittedLayer):
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

    @property
    def settings(self) -> tuple[Hashable, ...]:
        """The settings besides the arrays on which the values depend."""
        return self.score, self.shaping


@dataclass(frozen=True, eq=False)
class FDBDLayer(FittedLayer):
    """A linear layer, and the mean that distances to its decision boundaries are divided by.

    Parameters
    ----------
    weight : ndarray of shape (n_classes, n_features)
        Weight.
    bias : ndarray of shape (n_classes,)
        Bias.
    mean : ndarray of shape (n_features,), float64
        Mean of the in-distribution features.
    packed : PackedWeights
        Layouts of the arrays that are kept between calls.
    """

    weight: FloatArray
    bias: FloatArray
    mean: FloatArray
    packed: PackedWeights = field(default_factory=PackedWeights, repr=False)
    row_arrays: ClassVar[tuple[int, int]] = (3, 2)
    score: ClassVar[str] = "fdbd"
    shaping: ClassVar[None] = None
    is_portable: ClassVar[bool] = True

    @property
    def arrays(self) -> tuple[FloatArray, ...]:
        """The arrays of the layer, which engines convert and pack."""
        return self.weight, self.bias, self.mean


@dataclass(frozen=True, eq=False)
class ViMLayer(FittedLayer):
    """A linear layer, and the directions of the features in which in-distribution rows vary least.

    Parameters
    ----------
    weight : ndarray of shape (n_classes, n_features)
        Weight.
    bias : ndarray of shape (n_classes,)
        Bias.
    components : ndarray of shape (n_residual, n_features), float64
        Orthonormal directions. The residual of features h is ``components @ h + shift``.
    shift : ndarray of shape (n_residual,), float64
        The residual of the zero vector.
    alpha : float or None
        The score is the energy minus alpha times the norm of the residual. With None, the values
        of a row are the three numbers that alpha and the score come from: the largest logit, the
        energy and the norm of the residual.
    packed : PackedWeights
        Layouts of the arrays that are kept between calls.
    """

    weight: FloatArray
    bias: FloatArray
    components: FloatArray
    shift: FloatArray
    alpha: float | None = None
    packed: PackedWeights = field(default_factory=PackedWeights, repr=False)
    # There are about half as many components as features.
    row_arrays: ClassVar[tuple[int, int]] = (1, 2)
    score: ClassVar[str] = "vim"
    shaping: ClassVar[None] = None
    is_portable: ClassVar[bool] = True

    @property
    def arrays(self) -> tuple[FloatArray, ...]:
        """The arrays of the layer, which engines convert and pack."""
        return self.weight, self.bias, self.components, self.shift

    @property
    def n_columns(self) -> int | None:  # type: ignore[override]
        """Number of values of a row; None for one value without a column of its own."""
        return 3 if self.alpha is None else None

    @property
    def settings(self) -> tuple[Hashable, ...]:
        """The settings besides the arrays on which the values depend."""
        return (self.alpha,)


Layer = MaskedLayer | FDBDLayer | ViMLayer


@dataclass(frozen=True, eq=False)
class GeometricLayers(FittedLayer):
    """Layers of one head that also look at the features, and share the logits.

    Its values are a list of those of its layers.

    Parameters
    ----------
    layers : tuple of FDBDLayer or ViMLayer
        The layers, which have the same weight and bias.
    packed : PackedWeights
        Layouts of the arrays that are kept between calls.
    """

    layers: tuple[FDBDLayer | ViMLayer, ...]
    packed: PackedWeights = field(default_factory=PackedWeights, repr=False)

    @property
    def weight(self) -> FloatArray:  # type: ignore[override]
        """Weight of the head."""
        return self.layers[0].weight

    @property
    def bias(self) -> FloatArray:  # type: ignore[override]
        """Bias of the head."""
        return self.layers[0].bias

    @property
    def arrays(self) -> tuple[FloatArray, ...]:
        """The arrays of all layers, which engines convert and pack."""
        return tuple(array for layer in self.layers for array in layer.arrays)


@dataclass(frozen=True, eq=False)
class NestedLayers:
    """Masked layers after the same shaping, the first of which holds all weights of the others.

    Its values are a list of those of its layers.

    Parameters
    ----------
    layers : tuple of MaskedLayer
        The layers, which have the same bias.
    pruned : tuple of MaskedLayer
        For each layer but the first, the weights that the first has and it has not, without bias.
    """

    layers: tuple[MaskedLayer, ...]
    pruned: tuple[MaskedLayer, ...]


@dataclass(frozen=True, eq=False)
class HeadLayers:
    """Layers of one head: some look at the features, and some are nested after clipping them.

    Its values are a list of those of the layers of `geometric`, and then those of `nested`.

    Parameters
    ----------
    geometric : GeometricLayers
        Layers with the weight of the head.
    nested : NestedLayers
        Masked layers, of which the first has the same weight, and the shaping only clips large
        features.
    """

    geometric: GeometricLayers
    nested: NestedLayers


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
    row_arrays: ClassVar[tuple[int, int]] = (1, 1)

    @property
    def is_portable(self) -> bool:
        """Whether every engine of the CPU can compute the path."""
        return not callable(self.score) and (self.shaping is None or self.shaping.is_portable)
