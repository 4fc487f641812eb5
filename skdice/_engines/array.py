"""The array engine: a masked layer in any namespace of the array API standard."""

from __future__ import annotations

from typing import Any

from skdice._engines.plan import Plan
from skdice._scores import GEN_GAMMA, GEN_TOP_CLASSES


class ArrayLayer:
    """The masked layer and its score, on arrays of one namespace and device.

    Parameters
    ----------
    plan : Plan
        What is computed, with arrays of that namespace in the dtype of the features.
    xp : module
        Namespace of the array API standard.
    """

    def __init__(self, plan: Plan, xp: Any) -> None:
        self.plan, self.xp = plan, xp

    def logits(self, features: Any) -> Any:
        """Return the logits (n, n_classes) of features (n, n_features)."""
        return self.shape(features) @ self.plan.coef.T + self.plan.intercept

    def compute(self, features: Any, *, logits: bool) -> Any:
        """Return the logits or the scores of features; NaN for rows that are not finite."""
        xp, values = self.xp, self.logits(features)
        if not logits:
            values = self.score(values)
        if not self.plan.shaping:
            return values
        # A shaping may hide a value that is not finite.
        finite = xp.all(xp.isfinite(features), axis=1, keepdims=logits)
        return xp.where(finite, values, xp.full_like(values, xp.nan))

    def score(self, logits: Any) -> Any:
        """Return the scores (n,) of logits (n, n_classes)."""
        xp = self.xp
        match self.plan.score:
            case "max_logit":
                return xp.max(logits, axis=1)
            case "msp":
                return 1 / xp.sum(xp.exp(logits - xp.max(logits, axis=1, keepdims=True)), axis=1)
            case "gen":
                return self._gen(logits)
            case _:
                return self._logsumexp(logits)

    def shape(self, features: Any) -> Any:
        """Return the features after the shaping."""
        xp, plan = self.xp, self.plan
        match plan.shaping:
            case "ReAct":
                return xp.clip(features, max=plan.high)
            case "VRA":
                clipped = xp.clip(features, max=plan.high)
                return xp.where(features < plan.low, xp.zeros_like(features), clipped)
            case "ASH" | "Scale":
                least = xp.sort(features, axis=1)[:, plan.n_pruned : plan.n_pruned + 1]
                above, equal = features > least, features == least
                # Of those that tie for the last places, the ones in the first columns.
                n_kept = features.shape[1] - plan.n_pruned
                places = n_kept - xp.sum(xp.astype(above, xp.int32), axis=1, keepdims=True)
                rank = xp.cumulative_sum(xp.astype(equal, xp.int32), axis=1)
                is_kept = above | (equal & (rank <= places))
                kept = xp.where(is_kept, features, xp.zeros_like(features))
                before = xp.sum(features, axis=1, keepdims=True)
                after = xp.sum(kept, axis=1, keepdims=True)
                empty = (before == 0) & (after == 0)
                ones = xp.ones_like(before)
                ratio = xp.where(empty, ones, before / xp.where(empty, ones, after))
                # Possible with negative entries alone, and without a meaning.
                factor = xp.where(xp.isfinite(ratio), xp.exp(ratio), xp.full_like(ratio, xp.nan))
                return (features if plan.shaping == "Scale" else kept) * factor
            case _:
                return features

    def _logsumexp(self, logits: Any) -> Any:
        maximum = self.xp.max(logits, axis=1, keepdims=True)
        total = self.xp.sum(self.xp.exp(logits - maximum), axis=1)
        return self.xp.log(total) + maximum[:, 0]

    def _gen(self, logits: Any) -> Any:
        xp, n_classes = self.xp, logits.shape[1]
        # What is not finite would come out as if it were certain.
        finite = xp.all(xp.isfinite(logits), axis=1)
        nothing = xp.full_like(logits[:, 0], xp.nan)
        if n_classes == 1:
            return xp.where(finite, xp.zeros_like(nothing), nothing)
        ordered = xp.sort(logits, axis=1, descending=True)
        # From the top first: the logits may be large, and close together.
        others = ordered[:, 1:] - ordered[:, :1]
        rest = self._logsumexp(others)[:, None]
        log_total = xp.log1p(xp.exp(rest))
        log_p = others[:, : min(GEN_TOP_CLASSES, n_classes) - 1] - log_total
        terms = xp.exp(GEN_GAMMA * (log_p + xp.log1p(-xp.exp(log_p))))
        first = xp.exp(GEN_GAMMA * (rest - 2 * log_total))
        return xp.where(finite, -(xp.sum(terms, axis=1) + first[:, 0]), nothing)
