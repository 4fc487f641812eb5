"""Numbers as text, the same in every part of a report."""

UNKNOWN = "\N{EN DASH}"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share in percent; a dash if it is not known.

    Examples
    --------
    >>> print(percent(0.0493), percent(0.05, 0), percent(None))
    4.9 % 5 % –
    """
    return UNKNOWN if share is None else f"{100 * share:.{digits}f} %"


def rate_percent(rate: float) -> str:
    """Return a rate that the user chose, with all its digits.

    Examples
    --------
    >>> print(rate_percent(0.05), rate_percent(0.025))
    5 % 2.5 %
    """
    return f"{100 * rate:.6g} %"


def points(value: float | None) -> str:
    """Return a metric in percent without its sign; a dash if it is not known."""
    return UNKNOWN if value is None else f"{100 * value:.1f}"


def interval(ends: tuple[float, float] | None) -> str:
    """Return an interval in percent without its sign; a dash if there is none.

    Examples
    --------
    >>> interval((0.081, 0.1049))
    '8.1 to 10.5'
    """
    return UNKNOWN if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def count(number: float | None) -> str:
    """Return a whole number with commas; a dash if it is not known."""
    return UNKNOWN if number is None else f"{number:,}"


def score(value: float | None) -> str:
    """Return a score or a threshold; a dash if there is none."""
    return UNKNOWN if value is None else f"{value:.6g}"
