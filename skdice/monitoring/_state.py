"""The text that a monitor is stored as: its digest, and the checks of a text that is read."""

import hashlib
import json
from collections.abc import Collection
from math import isfinite
from typing import Any

FORMAT, SCHEMA = "skdice.monitoring.FlagMonitor", 1
# A state has a few hundred characters; a longer text is something else.
MOST_CHARACTERS = 10_000


def digest_of(content: dict[str, Any]) -> str:
    """Return a digest of the content that does not depend on order or white space."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def sealed(content: dict[str, Any]) -> str:
    """Return the text of a state, with its format, version and digest."""
    content = {"format": FORMAT, "schema": SCHEMA, **content}
    return json.dumps({**content, "sha256": digest_of(content)}, allow_nan=False)


def read_sealed(text: Any, names: Collection[str]) -> dict[str, Any]:
    """Return the content of a text that `sealed` made, with entries of just these names.

    Raises
    ------
    ValueError
        The format, the version, the digest or the entries are others.
    """
    reason = "not the state of a FlagMonitor"
    if not isinstance(text, str) or len(text) > MOST_CHARACTERS:
        raise ValueError(f"{reason}: expected text of at most {MOST_CHARACTERS} characters")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{reason}: not JSON, or cut short") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{reason}: it does not name the format {FORMAT!r}")
    schema = content.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise ValueError(
            f"the state has schema {schema}, written by a newer version of skdice; this version "
            f"reads schema {SCHEMA}: update skdice"
        )
    digest = content.pop("sha256", None)
    # No version writes a schema below 1, so another schema here is an alteration.
    if schema != SCHEMA or digest != digest_of(content):
        raise ValueError(f"{reason}: it was altered, because its digest does not match")
    if set(content) != {"format", "schema", *names}:
        raise ValueError(f"{reason}: it has other entries than {', '.join(sorted(names))}")
    return content


def check_state(values: Any, n_values: int) -> list[float]:
    """Return so many finite numbers of at least 0, or raise."""
    if (
        not isinstance(values, list)
        or len(values) != n_values
        or not all(isinstance(value, float) and isfinite(value) and value >= 0 for value in values)
    ):
        raise ValueError(f"evidence is {values!r}, expected {n_values} numbers of at least 0")
    return values
