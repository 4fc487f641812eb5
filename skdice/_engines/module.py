"""The torch module that a fitted detector becomes; importing this imports torch."""

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from skdice._engines.activations import Clip, ScaleRows
from skdice._engines.layer import MaskedLayer
from skdice._scores import GEN_GAMMA, GEN_TOP_CLASSES

# This alias stands outside of the class because TorchScript reads comments on types in functions.
is_scripting = torch.jit.is_scripting  # type: ignore[attr-defined]


class DetectorModule(nn.Module):
    """Scores penultimate features as the detector that it was made from.

    Parameters
    ----------
    coef : Tensor of shape (n_classes, n_features)
        Masked weight.
    intercept : Tensor of shape (n_classes,)
        Bias.
    threshold : Tensor of shape ()
        Rows whose score is below it are out-of-distribution; NaN where there is none.
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

    Notes
    -----
    Rows in double precision are scored in double precision, all others in single precision, also
    inside the caller's autocast.
    """

    # TorchScript knows constants by this annotation.
    gen_top_classes: Final[int] = GEN_TOP_CLASSES
    gen_gamma: Final[float] = GEN_GAMMA
    coef: Tensor
    intercept: Tensor
    threshold: Tensor

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
        super().__init__()
        self.register_buffer("coef", coef)
        self.register_buffer("intercept", intercept)
        self.register_buffer("threshold", threshold)
        self.score, self.shaping = score, shaping
        self.low, self.high = low, high
        self.n_pruned, self.zero_pruned = n_pruned, zero_pruned

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits of the masked layer, (n, n_classes)."""
        dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        shaped = self.shape(features.to(dtype))
        coef, intercept = self.coef.to(dtype), self.intercept.to(dtype)
        if not is_scripting():
            return uncast_linear(shaped, coef, intercept)
        return nn.functional.linear(shaped, coef, intercept)

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

    @torch.jit.export
    def is_ood(self, features: Tensor) -> Tensor:
        """Return for each row whether it is out-of-distribution: (n,), bool.

        A row with a feature or a score that is not finite counts as out-of-distribution. Without
        a threshold, no row does.
        """
        scores = self.forward(features)
        sound = features.isfinite().all(1) & scores.isfinite()
        below = scores < self.threshold.to(scores.dtype)
        return (below | ~sound) & ~self.threshold.isnan()

    def shape(self, features: Tensor) -> Tensor:
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


def uncast_linear(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the linear layer in the precision of the features, also inside autocast."""
    kind = features.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return nn.functional.linear(features, weight, bias)
    return nn.functional.linear(features, weight, bias)


def detector_module(layer: MaskedLayer, threshold: float = torch.nan) -> DetectorModule:
    """Return the module of a masked layer.

    Parameters
    ----------
    layer : MaskedLayer
        The layer; one without a score becomes a module that scores by energy.
    threshold : float
        Threshold on the scores; NaN where there is none.

    Raises
    ------
    ValueError
        The score or the shaping is a function that torch does not know.
    """
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
    coef, intercept = (torch.from_numpy(np.array(array)) for array in (layer.weight, layer.bias))
    exact = torch.tensor(threshold, dtype=torch.float64, device="cpu")
    # Single precision holds every score of that precision; not every device has double precision.
    single = exact.float()
    differs = bool((single < exact) | (single > exact))
    return DetectorModule(coef, intercept, exact if differs else single, score, **shaping)
