"""Facts about a fitted detector: its class, parameters, head, members and digests."""

import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from skdice._base import BaseDetector
from skdice._compat.arrays import to_numpy
from skdice._compat.version import __version__
from skdice._dice import BaseDICE
from skdice._ensemble import ConformalEnsemble
from skdice._head import LinearHead
from skdice._passes.threshold import digest_of_blocks
from skdice._persistence.encode import encode
from skdice._persistence.files import digest_of_document, read_document
from skdice._vim import ViMDetector
from skdice.report._inputs import Digest, digest_of_path
from skdice.report._numbers import percent

# The parameters that say how rows are computed, not which scores they get.
_COMPUTATION = {"head", "estimators", "device", "batch_size", "n_jobs", "verbose"}


@dataclass(frozen=True)
class HeadFacts:
    """The last linear layer: its shape, its type, and the digest of its weight and bias."""

    n_classes: int
    n_features: int
    dtype: str
    digest: Digest


@dataclass(frozen=True)
class MemberFacts:
    """One detector: its parameters that decide the scores, and what was fitted, as text.

    The name among the members is "detector" for the deployed detector itself.
    """

    name: str
    kind: str
    parameters: dict[str, str]
    fitted: dict[str, str]


@dataclass(frozen=True)
class DetectorFacts:
    """A deployed detector: what it is, and where it comes from."""

    kind: str
    # Path of the detector file, or "in memory".
    source: str
    # Of the file, or of the fitted content.
    digest: Digest
    # Versions with which the file was written; empty for a detector in memory.
    written_by: dict[str, str]
    n_samples: int
    n_features: int
    head: HeadFacts | None
    own: MemberFacts
    members: tuple[MemberFacts, ...]


def describe_detector(detector: BaseDetector, path: Path | None) -> DetectorFacts:
    """Return the facts about a fitted detector, which was loaded from a path or is in memory."""
    kind = type(detector).__name__
    head = detector.head_
    return DetectorFacts(
        kind=kind,
        source="in memory" if path is None else str(path),
        digest=_digest_of_content(detector) if path is None else digest_of_path(path),
        written_by={} if path is None else dict(read_document(path)["versions"]),
        n_samples=int(detector.n_samples_seen_),
        n_features=int(detector.n_features_in_),
        head=None if head is None else _describe_head(head),
        own=_describe_member("detector", detector),
        members=tuple(_describe_member(*member) for member in members_of(detector)),
    )


def versions() -> dict[str, str]:
    """Return the versions of everything that computes the figures of a report."""
    packages = ("numpy", "scipy", "scikit-learn")
    return {
        "skdice": __version__,
        **{name: version(name) for name in packages},
        "Python": platform.python_version(),
    }


def members_of(detector: Any) -> list[tuple[str, Any]]:
    """Return the names and the fitted members of an ensemble; none for another detector."""
    if not isinstance(detector, ConformalEnsemble):
        return []
    return list(detector.named_estimators_.items())


def _describe_head(head: LinearHead) -> HeadFacts:
    return HeadFacts(
        head.n_classes,
        head.n_features,
        str(head.weight.dtype),
        Digest(
            digest_of_blocks((head.weight, head.bias)),
            "the weight and then the bias, little-endian",
        ),
    )


def _describe_member(name: str, detector: Any) -> MemberFacts:
    parameters = {
        parameter: _shown(value)
        for parameter, value in detector.get_params(deep=False).items()
        if parameter not in _COMPUTATION
    }
    return MemberFacts(name, type(detector).__name__, parameters, _fitted_values(detector))


def _fitted_values(detector: Any) -> dict[str, str]:
    """Return what a detector learned, as text."""
    fitted = {}
    if isinstance(detector, BaseDICE):
        mask = to_numpy(detector.mask_)
        kept, weights = int(mask.sum()), mask.size
        fitted["weights kept"] = f"{kept:,} of {weights:,} ({percent(kept / weights)})"
        agreement = getattr(detector, "head_agreement_", None)
        if agreement is not None:
            fitted["head agreement"] = percent(agreement)
        learned = {} if detector.shaping_ is None else vars(detector.shaping_)
        fitted |= {
            f"shaping {name.rstrip('_')}": f"{value:.6g}"
            for name, value in learned.items()
            if name.endswith("_") and isinstance(value, float)
        }
        if hasattr(detector, "sparsity_"):
            fitted["sparsity chosen"] = f"{detector.sparsity_:g}"
    elif isinstance(detector, ViMDetector):
        fitted["n_components"] = f"{detector.n_components_:,}"
        fitted["alpha"] = f"{detector.alpha_:.6g}"
    return fitted


def _shown(value: Any) -> str:
    """Return a parameter as text that is the same in every process."""
    # The representation of a function holds its address in memory.
    return f"function {value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)


def _digest_of_content(detector: BaseDetector) -> Digest:
    try:
        document, arrays = encode(detector)
    except (TypeError, ValueError):
        return Digest(
            None, "not computed, because skdice.save cannot write this detector without code"
        )
    digest = digest_of_document(json.dumps(document, allow_nan=False), arrays)
    return Digest(digest, "the content, as skdice.save stores it in the metadata of a file")
