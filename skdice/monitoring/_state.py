"""Texts that the states of monitors are stored as: JSON with a format, a schema and a digest."""

import hashlib
import json
from math import isfinite
from typing import Any

SCHEMA = 1


def digest_of(content: dict[str, Any]) -> str:
    """Return a digest of the content that does not depend on order or white space."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def sealed(form: str, content: dict[str, Any], *, indent: int | None = None) -> str:
    """Return the text of a state of a format, with the schema and the digest."""
    content = {"format": form, "schema": SCHEMA, **content}
    return json.dumps({**content, "sha256": digest_of(content)}, allow_nan=False, indent=indent)


def read_sealed(text: str, form: str, name: str) -> dict[str, Any]:
    """Return the content of a text that `sealed` made, without format, schema and digest.

    Parameters
    ----------
    text : str
        The text.
    form : str
        The format that it must name.
    name : str
        Name of such a state for messages, as in "not the state of a FlagMonitor".

    Raises
    ------
    ValueError
        The text has another format, was altered, or was written by a newer version of skdice.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"not {name}: not JSON, or cut short") from None
    if not isinstance(content, dict) or content.get("format") != form:
        raise ValueError(f"not {name}: it does not name the format {form!r}")
    schema = content.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise ValueError(
            f"the state has schema {schema}, written by a newer version of skdice; this version "
            f"reads schema {SCHEMA}: update skdice"
        )
    digest = content.pop("sha256", None)
    # No version writes a schema below 1, so another schema here is an alteration.
    if schema != SCHEMA or digest != digest_of(content):
        raise ValueError(f"not {name}: it was altered, because its digest does not match")
    return {key: value for key, value in content.items() if key not in ("format", "schema")}


def check_state(values: Any, n_values: int) -> list[float]:
    """Return so many finite numbers of at least 0, or raise."""
    if (
        not isinstance(values, list)
        or len(values) != n_values
        or not all(isinstance(value, float) and isfinite(value) and value >= 0 for value in values)
    ):
        raise ValueError(f"evidence is {values!r}, expected {n_values} numbers of at least 0")
    return values
