"""The torch module that decides about rows by their scores; importing this imports torch."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

# This alias stands outside of the class because TorchScript reads comments on types in functions.
is_scripting = torch.jit.is_scripting  # type: ignore[attr-defined]


class ClassModuleState(NamedTuple):
    """What a module needs to decide by predicted class, as NumPy arrays.

    `thresholds` has a number for each class, `weight` and `bias` are those of the unmasked head,
    `classes` holds the predicted class of each calibration score, and `fallback` the classes whose
    rows are compared with all calibration scores.
    """

    thresholds: Any
    weight: Any
    bias: Any
    classes: Any
    fallback: Any


class ThresholdModule(nn.Module):
    """Base of the modules that score rows and compare the scores with a threshold.

    A derived class implements `forward`. `set_calibration` adds what is known of a conformal
    calibration.

    Parameters
    ----------
    threshold : Tensor of shape ()
        Rows whose score is below it are out-of-distribution; NaN where there is none.

    Attributes
    ----------
    class_thresholds : Tensor of shape (n_classes,)
        The threshold of each predicted class; empty where all classes have one threshold.
    head_weight, head_bias : Tensor of shape (n_classes, n_features) and (n_classes,)
        The unmasked head, which predicts the class; empty with `class_thresholds`.
    calibration_scores : Tensor of shape (n_calibration,)
        The calibration scores in ascending order; empty without a conformal calibration.
    class_places : Tensor of shape (n_calibration,), int64
        The number c (n_calibration + 1) + i for the i-th calibration score, whose class is c, in
        ascending order.
    class_counts : Tensor of shape (n_classes,), int64
        Number of calibration scores of each class; -1 for a class that is compared with all.
    """

    threshold: Tensor
    class_thresholds: Tensor
    head_weight: Tensor
    head_bias: Tensor
    calibration_scores: Tensor
    class_places: Tensor
    class_counts: Tensor
    shaping = ""

    def __init__(self, threshold: Tensor) -> None:
        super().__init__()
        self.register_buffer("threshold", threshold)
        for name in ("class_thresholds", "head_bias", "calibration_scores"):
            self.register_buffer(name, torch.zeros(0, device="cpu"))
        self.register_buffer("head_weight", torch.zeros(0, 0, device="cpu"))
        for name in ("class_places", "class_counts"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.int64, device="cpu"))

    def set_calibration(self, scores: Any, by_class: ClassModuleState | None) -> None:
        """Set the buffers of a conformal calibration from NumPy arrays."""
        self.calibration_scores = as_narrow_tensor(scores)
        if by_class is None:
            return
        self.class_thresholds = as_narrow_tensor(by_class.thresholds)
        self.head_weight, self.head_bias = as_tensor(by_class.weight), as_tensor(by_class.bias)
        n, counts = len(scores), np.bincount(by_class.classes, minlength=len(by_class.bias))
        self.class_places = as_tensor(np.sort(by_class.classes * (n + 1) + np.arange(n)), np.int64)
        counts[by_class.fallback] = -1
        self.class_counts = as_tensor(counts, np.int64)

    def forward(self, features: Tensor) -> Tensor:
        """Return the score of each row of features (n, n_features): (n,)."""
        raise NotImplementedError

    @torch.jit.export
    def decide(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the score, `is_ood` and `pvalue` of each row, all (n,), from one computation."""
        scores: Tensor = self.forward(features)
        sound = features.isfinite().all(1) & scores.isfinite()
        classes = torch.zeros(0, dtype=torch.int64, device=scores.device)
        thresholds = self.threshold.to(scores.dtype)
        if len(self.class_thresholds) > 0:
            classes = self.predicted(features)
            thresholds = self.class_thresholds.to(scores.dtype)[classes]
        is_ood = ((scores < thresholds) | ~sound) & ~self.threshold.isnan()
        return scores, is_ood, self.pvalues_of(scores, sound, classes)

    @torch.jit.export
    def is_ood(self, features: Tensor) -> Tensor:
        """Return for each row whether it is out-of-distribution: (n,), bool.

        A row with a feature or a score that is not finite counts as out-of-distribution. Without
        a threshold, no row does.
        """
        return self.decide(features)[1]

    @torch.jit.export
    def pvalue(self, features: Tensor) -> Tensor:
        """Return the conformal p-value of each row: (n,), in the dtype of the scores.

        After a calibration by predicted class it is the p-value among the calibration rows of
        that class. A row with a feature or a score that is not finite has the smallest p-value.
        Without a conformal calibration all are NaN.
        """
        return self.decide(features)[2]

    def pvalues_of(self, scores: Tensor, sound: Tensor, classes: Tensor) -> Tensor:
        """Return the p-values of scores, of rows of these classes if they count."""
        n = len(self.calibration_scores)
        if n == 0:
            return torch.full_like(scores, torch.nan)
        reference = self.calibration_scores.to(scores.dtype)
        at_or_below = torch.searchsorted(reference, scores.contiguous(), right=True)
        total = torch.full_like(at_or_below, n)
        if len(self.class_counts) > 0:
            # Of the scores at or below, those of the class lie between these two places.
            first = classes * (n + 1)
            stop = torch.searchsorted(self.class_places, first + at_or_below)
            of_class = stop - torch.searchsorted(self.class_places, first)
            counts = self.class_counts[classes]
            at_or_below = torch.where(counts >= 0, of_class, at_or_below)
            total = torch.where(counts >= 0, counts, total)
        pvalues = (at_or_below + 1).to(scores.dtype) / (total + 1).to(scores.dtype)
        return torch.where(sound, pvalues, torch.full_like(pvalues, 1 / (n + 1)))

    def predicted(self, features: Tensor) -> Tensor:
        """Return the class with the largest logit of the unmasked head, the first of several."""
        logits = self.linear(self.precise(features), self.head_weight, self.head_bias)
        return logits.argmax(1)

    def precise(self, features: Tensor) -> Tensor:
        """Return features in the precision in which they are scored."""
        return features.to(torch.float64 if features.dtype == torch.float64 else torch.float32)

    def linear(self, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return a linear layer in the precision of the features."""
        weight, bias = weight.to(features.dtype), bias.to(features.dtype)
        if not is_scripting():
            return uncast_linear(features, weight, bias)
        return nn.functional.linear(features, weight, bias)


def uncast_linear(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the linear layer in the precision of the features, also inside autocast."""
    kind = features.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return nn.functional.linear(features, weight, bias)
    return nn.functional.linear(features, weight, bias)


def as_narrow_tensor(array: Any) -> Tensor:
    """Return numbers in single precision where that holds them: not every device has double."""
    exact = as_tensor(array, np.float64)
    single = exact.float()
    differs = bool(((single < exact) | (single > exact)).any())
    return exact if differs else single


def as_tensor(array: Any, dtype: Any = None) -> Tensor:
    """Return a copy of a NumPy array as a tensor."""
    return torch.from_numpy(np.array(array, dtype))
