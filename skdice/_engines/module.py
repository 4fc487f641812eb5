"""The torch module that a fitted detector becomes; importing this imports torch."""

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from skdice._engines.activations import Clip, ScaleRows
from skdice._engines.geometric import ROUNDINGS, fdbd_arrays
from skdice._engines.layer import FDBDLayer, Layer, MaskedLayer
from skdice._engines.reference_scores import ReferenceDistribution
from skdice._engines.threshold_module import (
    ThresholdModule,
    as_narrow_tensor,
    as_tensor,
)
from skdice._scores import GEN_GAMMA, GEN_TOP_CLASSES


class ScoringModule(ThresholdModule):
    """Base of the modules that score penultimate features as the detectors they were made from.

    A derived class implements `forward`.

    Parameters
    ----------
    coef : Tensor of shape (n_classes, n_features)
        Weight.
    intercept : Tensor of shape (n_classes,)
        Bias.
    threshold : Tensor of shape ()
        Rows whose score is below it are out-of-distribution; NaN where there is none.

    Notes
    -----
    Rows in double precision are scored in double precision, all others in single precision, also
    inside the caller's autocast.
    """

    coef: Tensor
    intercept: Tensor

    def __init__(self, coef: Tensor, intercept: Tensor, threshold: Tensor) -> None:
        super().__init__(threshold)
        self.register_buffer("coef", coef)
        self.register_buffer("intercept", intercept)

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits of the layer, (n, n_classes)."""
        return self.linear(self.precise(features), self.coef, self.intercept)


class FDBDModule(ScoringModule):
    """The module of an `FDBDLayer`.

    Parameters
    ----------
    coef, intercept, threshold : Tensor
        As for `ScoringModule`.
    mean : Tensor of shape (n_features,)
        Mean of the in-distribution features.
    boundaries : Tensor of shape (n_classes, n_classes), or with 0 rows
        Inverse distances of all pairs of classes; with 0 rows, `centred` and `squares` give them.
    centred : Tensor of shape (n_classes, n_features), or with 0 rows
        Weight, less its mean over the classes.
    squares : Tensor of shape (n_classes,), or empty
        Squared norms of the rows of `centred`.
    least_distance : float
        The least distance to the mean.
    """

    roundings: Final[float] = ROUNDINGS
    mean: Tensor
    boundaries: Tensor
    centred: Tensor
    squares: Tensor

    def __init__(
        self,
        coef: Tensor,
        intercept: Tensor,
        threshold: Tensor,
        mean: Tensor,
        boundaries: Tensor,
        centred: Tensor,
        squares: Tensor,
        least_distance: float,
    ) -> None:
        super().__init__(coef, intercept, threshold)
        self.register_buffer("mean", mean)
        self.register_buffer("boundaries", boundaries)
        self.register_buffer("centred", centred)
        self.register_buffer("squares", squares)
        self.least_distance = least_distance
        self.is_tabled = len(boundaries) > 0

    def forward(self, features: Tensor) -> Tensor:
        """Return the score of each row of features (n, n_features): (n,)."""
        features = self.precise(features)
        logits = self.logits(features)
        predicted = logits.argmax(1)
        if self.is_tabled:
            inverse = self.boundaries.to(features.dtype)[predicted]
        else:
            inverse = self.inverse_distances(predicted, features.dtype)
        margins = logits.amax(1, keepdim=True) - logits
        boundary_distance = (margins * inverse).sum(1)
        distance = (features - self.mean.to(features.dtype)).square().sum(1).sqrt()
        distance = distance.clamp(min=self.least_distance)
        # An overflow of the distance must not look like a score of zero.
        nothing = torch.full_like(distance, torch.nan)
        return boundary_distance / torch.where(torch.isfinite(distance), distance, nothing)

    def inverse_distances(self, classes: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what `skdice._engines.geometric.inverse_distances` does."""
        centred, squares = self.centred.to(dtype), self.squares.to(dtype)
        sums = squares[classes].unsqueeze(1) + squares.unsqueeze(0)
        squared = sums - 2 * self.linear(centred[classes], centred, torch.zeros_like(squares))
        # torch.finfo is not known to TorchScript.
        epsilon = 2.0**-52 if dtype == torch.float64 else 2.0**-23
        is_apart = squared > self.roundings * epsilon * sums
        one, zero = torch.ones_like(sums), torch.zeros_like(sums)
        inverse = torch.where(is_apart, torch.where(is_apart, squared, one).rsqrt(), zero)
        return inverse / is_apart.sum(1, keepdim=True).clamp(min=1)


class ViMModule(ScoringModule):
    """The module of a `ViMLayer`.

    Parameters
    ----------
    coef, intercept, threshold : Tensor
        As for `ScoringModule`.
    components : Tensor of shape (n_residual, n_features)
        Directions of the residual.
    shift : Tensor of shape (n_residual,)
        Residual of the zero vector.
    alpha : float
        Weight of the norm of the residual; NaN for the numbers that it is estimated from.
    """

    components: Tensor
    shift: Tensor

    def __init__(
        self,
        coef: Tensor,
        intercept: Tensor,
        threshold: Tensor,
        components: Tensor,
        shift: Tensor,
        alpha: float,
    ) -> None:
        super().__init__(coef, intercept, threshold)
        self.register_buffer("components", components)
        self.register_buffer("shift", shift)
        self.alpha = alpha
        self.has_alpha = alpha == alpha

    def forward(self, features: Tensor) -> Tensor:
        """Return the score of each row of features (n, n_features): (n,)."""
        features = self.precise(features)
        logits = self.logits(features)
        residual = self.linear(features, self.components, self.shift).square().sum(1).sqrt()
        energy = logits.logsumexp(1)
        if not self.has_alpha:
            return torch.stack([logits.amax(1), energy, residual], 1)
        return energy - self.alpha * residual


class DetectorModule(ScoringModule):
    """Scores features as a detector that prunes its head.

    Parameters
    ----------
    coef, intercept, threshold : Tensor
        As for `ScoringModule`; `coef` is the masked weight.
    score : {"energy", "max_logit", "msp", "gen"}
        Score of a row from its logits.
    shaping : {"", "clip", "scale_rows"}
        Shaping of the features, as `skdice._engines.activations` defines it.
    low, high : float
        Bounds of ``"clip"``.
    n_pruned : int
        Number of features of each row that the sum of ``"scale_rows"`` leaves out.
    zero_pruned : bool
        Whether these features become zero.
    """

    # TorchScript knows constants by this annotation.
    gen_top_classes: Final[int] = GEN_TOP_CLASSES
    gen_gamma: Final[float] = GEN_GAMMA

    def __init__(
        self,
        coef: Tensor,
        intercept: Tensor,
        threshold: Tensor,
        score: str,
        shaping: str = "",
        low: float = 0.0,
        high: float = 0.0,
        n_pruned: int = 0,
        zero_pruned: bool = False,
    ) -> None:
        super().__init__(coef, intercept, threshold)
        self.score, self.shaping = score, shaping
        self.low, self.high = low, high
        self.n_pruned, self.zero_pruned = n_pruned, zero_pruned

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits of the masked layer, (n, n_classes)."""
        shaped = self.apply_shaping(self.precise(features))
        return self.linear(shaped, self.coef, self.intercept)

    def forward(self, features: Tensor) -> Tensor:
        """Return the score of each row of features (n, n_features): (n,)."""
        logits = self.logits(features)
        if self.score == "max_logit":
            return logits.amax(1)
        if self.score == "msp":
            return logits.softmax(1).amax(1)
        if self.score == "gen":
            return self.gen(logits)
        return logits.logsumexp(1)

    def apply_shaping(self, features: Tensor) -> Tensor:
        """Return the features after the shaping."""
        if self.shaping == "clip":
            clipped = features.clamp(max=self.high)
            return torch.where(features < self.low, torch.zeros_like(features), clipped)
        if self.shaping == "scale_rows":
            n_kept = features.size(1) - self.n_pruned
            least = features.topk(n_kept, dim=1).values[:, -1:]
            above, equal = features > least, features == least
            # Of the features that tie for the last places, those in the first columns are kept.
            places = n_kept - above.sum(1, keepdim=True)
            is_kept = above | (equal & (equal.to(torch.int64).cumsum(1) <= places))
            kept = torch.where(is_kept, features, torch.zeros_like(features))
            before, after = features.sum(1, keepdim=True), kept.sum(1, keepdim=True)
            empty = (before == 0) & (after == 0)
            ratio = torch.where(empty, torch.ones_like(before), before / after)
            # An infinite ratio comes from negative features alone, and has no meaning.
            undefined = torch.full_like(ratio, torch.nan)
            factor = torch.where(torch.isfinite(ratio), torch.exp(ratio), undefined)
            return (kept if self.zero_pruned else features) * factor
        return features

    def gen(self, logits: Tensor) -> Tensor:
        """Return the generalised entropy, through logarithms as skdice computes it."""
        n_classes = logits.size(1)
        # Without this check a logit that is not finite would look like a certain class.
        bad = ~torch.isfinite(logits).all(1)
        if n_classes == 1:
            return torch.zeros_like(logits[:, 0]).masked_fill(bad, torch.nan)
        n_top = min(self.gen_top_classes, n_classes)
        ordered = logits.sort(dim=1, descending=True).values
        # Subtract the largest logit first, because the logits may be large and close together.
        others = ordered[:, 1:] - ordered[:, :1]
        rest = others.logsumexp(1, keepdim=True)
        log_total = torch.log1p(rest.exp())
        log_p = others[:, : n_top - 1] - log_total
        terms = torch.exp(self.gen_gamma * (log_p + torch.log1p(-log_p.exp())))
        first = torch.exp(self.gen_gamma * (rest - 2 * log_total))
        return -(terms.sum(1) + first[:, 0]).masked_fill(bad, torch.nan)


class EnsembleModule(ThresholdModule):
    """Scores rows by the p-values of several modules among reference scores.

    Parameters
    ----------
    threshold : Tensor of shape ()
        Threshold on the combined score.
    members : list of Module
        Modules from features to scores.
    reference : Tensor of shape (n_members, n_kept)
        Kept reference scores of each member in ascending order, then infinity.
    log_pvalues : Tensor of shape (n_members, n_kept + 1)
        Logarithm of the p-value by the number of kept scores at or below a score.
    tail_start, tail_mean, at_start : Tensor of shape (n_members,)
        Start of the exponential tail, its mean distance (infinity for no tail), and the logarithm
        of the p-value at its start.
    by_minimum : bool
        Whether the score is the minimum of the logarithms rather than their mean.
    """

    reference: Tensor
    log_pvalues: Tensor
    tail_start: Tensor
    tail_mean: Tensor
    at_start: Tensor

    def __init__(
        self,
        threshold: Tensor,
        members: list[nn.Module],
        reference: Tensor,
        log_pvalues: Tensor,
        tail_start: Tensor,
        tail_mean: Tensor,
        at_start: Tensor,
        by_minimum: bool,
    ) -> None:
        super().__init__(threshold)
        self.members = nn.ModuleList(members)
        self.register_buffer("reference", reference)
        self.register_buffer("log_pvalues", log_pvalues)
        self.register_buffer("tail_start", tail_start)
        self.register_buffer("tail_mean", tail_mean)
        self.register_buffer("at_start", at_start)
        self.by_minimum = by_minimum

    def forward(self, features: Tensor) -> Tensor:
        """Return the score of each row of features (n, n_features): (n,)."""
        columns: list[Tensor] = []
        for n, member in enumerate(self.members):
            scores = member(features).to(self.reference.dtype)
            # A search would be faster, but not every export knows one.
            at_or_below = (scores[:, None] >= self.reference[n][None, :]).sum(1)
            log_p = self.log_pvalues[n][at_or_below]
            tail = self.at_start[n] - (self.tail_start[n] - scores) / self.tail_mean[n]
            log_p = torch.where(scores < self.tail_start[n], tail, log_p)
            columns.append(torch.where(scores.isfinite(), log_p, scores))
        stacked = torch.stack(columns, dim=1)
        return stacked.amin(1) if self.by_minimum else stacked.mean(1)


def detector_module(
    layer: Layer, threshold: float = torch.nan, dtype: np.dtype[Any] | None = None
) -> ScoringModule:
    """Return the module of a layer.

    Parameters
    ----------
    layer : MaskedLayer, FDBDLayer or ViMLayer
        The layer; one without a score becomes a module that scores by energy.
    threshold : float
        Threshold on the scores; NaN where there is none.
    dtype : dtype, default=None
        Precision of the fitted arrays beside the head; None takes that of the head, because not
        every device has double precision.

    Raises
    ------
    ValueError
        The score or the shaping is a function that torch does not know.
    """
    limit = _threshold(threshold)
    dtype = layer.weight.dtype if dtype is None else dtype
    if isinstance(layer, MaskedLayer):
        return _masked_module(layer, limit)
    if isinstance(layer, FDBDLayer):
        arrays = fdbd_arrays(layer.weight, layer.mean)
        none = np.zeros((0, layer.weight.shape[1]))
        boundaries = np.zeros((0, 0)) if arrays.boundaries is None else arrays.boundaries
        centred = none if arrays.centred is None else arrays.centred
        squares = np.zeros(0) if arrays.squares is None else arrays.squares
        return FDBDModule(
            as_tensor(layer.weight),
            as_tensor(layer.bias),
            limit,
            as_tensor(arrays.mean, dtype),
            as_tensor(boundaries, dtype),
            as_tensor(centred, dtype),
            as_tensor(squares, dtype),
            arrays.least_distance,
        )
    coef, intercept = map(as_tensor, (layer.weight, layer.bias))
    components, shift = (as_tensor(array, dtype) for array in (layer.components, layer.shift))
    alpha = torch.nan if layer.alpha is None else layer.alpha
    return ViMModule(coef, intercept, limit, components, shift, alpha)


def ensemble_module(
    layers: list[Layer],
    references: list[ReferenceDistribution],
    *,
    by_minimum: bool,
    threshold: float = torch.nan,
) -> EnsembleModule:
    """Return the module of an ensemble.

    Parameters
    ----------
    layers : list of layer
        The fitted layer of each member.
    references : list of ReferenceDistribution
        The reference scores of each member.
    by_minimum : bool
        Whether the score is the minimum of the logarithms of the p-values, rather than their mean.
    threshold : float
        Threshold on the combined score; NaN where there is none.
    """
    # The reference scores have the precision of the heads, so single precision holds them.
    dtype = np.result_type(*(layer.weight.dtype for layer in layers))
    length = max(len(each.scores) for each in references)
    kept = np.full((len(references), length), np.inf)
    log_pvalues = np.zeros((len(references), length + 1))
    tails = np.zeros((3, len(references)))
    for n, reference in enumerate(references):
        kept[n, : len(reference.scores)] = reference.scores
        # One value below all kept scores, and one at each of them.
        asked = np.concatenate([[-np.inf], reference.scores])
        log_pvalues[n, : len(asked)] = reference.empirical_log_pvalues(asked)
        tails[:, n] = (
            reference.tail_start if reference.tail_mean else -np.inf,
            reference.tail_mean or np.inf,
            reference.empirical_log_pvalues(np.array([reference.tail_start]))[0],
        )
    start, mean, at_start = (as_tensor(array, dtype) for array in tails)
    return EnsembleModule(
        _threshold(threshold),
        [detector_module(layer) for layer in layers],
        as_tensor(kept, dtype),
        as_tensor(log_pvalues, dtype),
        start,
        mean,
        at_start,
        by_minimum,
    )


def _threshold(value: float) -> Tensor:
    return as_narrow_tensor(np.array(value))


def _masked_module(layer: MaskedLayer, threshold: Tensor) -> DetectorModule:
    score = "energy" if layer.score is None else layer.score
    if not isinstance(score, str):
        raise ValueError(f"score_func is {score!r}: only the named scores become a torch module")
    match layer.shaping:
        case None:
            shaping: dict[str, Any] = {}
        case Clip(low, high):
            shaping = {"shaping": "clip", "low": low, "high": high}
        case ScaleRows(n_pruned, zero_pruned):
            shaping = {"shaping": "scale_rows", "n_pruned": n_pruned, "zero_pruned": zero_pruned}
        case other:
            raise ValueError(
                f"shaping is {other.transformer!r}: only those of skdice.shaping become a torch "
                "module"
            )
    coef, intercept = map(as_tensor, layer.arrays)
    return DetectorModule(coef, intercept, threshold, score, **shaping)
